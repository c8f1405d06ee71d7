"""Send the same flows through the same network in three ways: hashed by flow, spread by packet, chosen by queue."""

from __future__ import annotations

from fourlane.twin.fabric import Scenario, all_to_all, leaf_spine, permutation


def main() -> None:
    """Print when each workload was done, and what its packets' latency was."""
    net = leaf_spine(leaves=16, hosts_per_leaf=8, spines=8, rate="400Gbps", propagation="100ns", switch_latency="500ns")
    for name, flows in {
        "permutation of 2 MB": permutation(net, size="2MB"),
        "all-to-all of 64 KiB": all_to_all(net, size="64KiB", hosts=range(64)),
    }.items():
        print(name)
        for routing in ("ecmp", "spray", "adaptive"):
            result = Scenario(net, flows, routing=routing).run()
            p50, p99 = (result.percentile("expert", percent) for percent in (50, 99))
            print(f"  {routing:9} done in {result.makespan_us:6.1f} us; packets p50 {p50:6.2f} us, p99 {p99:6.2f} us")


if __name__ == "__main__":
    main()
