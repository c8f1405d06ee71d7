"""Ask a service that does not exist what it can do: change one thing at a time, then send it requests one by one."""

from __future__ import annotations

from fourlane.spec.load import load_twin
from fourlane.twin.assembly import assemble
from fourlane.twin.operating_point import operating_point, peak_point
from fourlane.twin.serving.simulation import simulate

CHANGES = {
    "as it is": [],
    "one stream": ["prefill.overlap=never", "decode.overlap=never"],
    "experts in order": ["experts.placement=linear", "experts.split=false", "decode.redundant_experts=0"],
    "queue shared with KV cache": ["lanes.expert_queue=shared"],
}


def main() -> None:
    """Print the most each variant serves within its SLO, then what single requests see."""
    print("Qwen3-235B-A22B on 64 GPUs, 90 % of requests within TTFT 1 s and TPOT 40 ms")
    print("                            requests/s  bound by  TTFT p90  TPOT p90  fullest rank of decode")
    for name, changes in CHANGES.items():
        peak = peak_point(assemble(load_twin("qwen3-rails", overrides=changes)))
        times = f"{peak.ttft.p90 * 1e3:5.0f} ms  {peak.tpot.p90 * 1e3:5.1f} ms"
        print(f"{name:27} {peak.rate:11.1f}  {peak.binds:8}  {times}  {peak.decode.balance:.2f} x mean")
    service = assemble(load_twin("qwen3-rails", overrides=["workload.requests=500", "workload.warmup=200"]))
    found, steady = simulate(service), operating_point(service)
    print(f"\n{service.twin.workload.rate:g} requests a second, 300 of them looked at; in brackets the steady state")
    for name, seen, closed in (("TTFT", found.ttft, steady.ttft), ("TPOT", found.tpot, steady.tpot)):
        p50, p90 = (f"{a * 1e3:.0f} ms ({b * 1e3:.0f})" for a, b in ((seen.p50, closed.p50), (seen.p90, closed.p90)))
        print(f"{name}: p50 {p50}, p90 {p90}")
    print(f"within the SLO: {found.attainment.share:.0%} ({steady.slo.attainment:.0%})")
    bounds = (f"{name} {share:.0%}" for name, share in found.decode.make_up.bounds.items())
    print(f"decode steps are bound by {', '.join(bounds)}")


if __name__ == "__main__":
    main()
