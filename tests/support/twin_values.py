"""A small operating point and ladder with figures that are easily told apart, for tests of tables and pictures."""

from __future__ import annotations

from dataclasses import replace

from fourlane.spec.load import load_twin
from fourlane.twin.ladder_values import LadderResult, Rung
from fourlane.twin.point_values import KvPoint, Latency, OperatingPoint, PhasePoint, Verdict
from fourlane.twin.times import StepTime

PREFILL_STEP = StepTime(
    seconds=0.5,
    streams=2,
    computing_s=0.45,
    exchange_s=0.3,
    exposed_s=0.05,
    parts={"attention 0": 0.1, "attention 1": 0.15, "experts": 0.2, "dispatch": 0.1, "combine": 0.2},
    bounds={"attention 0": "compute", "attention 1": "compute", "experts": "memory", "dispatch": "nic"},
    sources={"experts": "roofline of h800", "dispatch": "packets: table 3f0a2c"},
)
DECODE_STEP = StepTime(
    seconds=0.04,
    streams=1,
    computing_s=0.03,
    exchange_s=0.01,
    exposed_s=0.01,
    parts={"attention 1": 0.02, "experts": 0.01, "dispatch": 0.004, "combine": 0.006},
    bounds={"attention 1": "memory", "experts": "memory", "dispatch": "nic", "combine": "nic"},
    sources={"experts": "roofline of h800"},
)


def small_point(*, tpot: float = 0.04, ttft: float = 0.9, output: float = 420.0, rate: float = 100.0) -> OperatingPoint:
    """Return a point with these figures."""
    prefill = PhasePoint(
        phase="prefill", load=6000.0, fullest=8192.0, capacity=120.0, utilisation=0.83, busy=0.9, tokens_s_gpu=3100.0,
        peak_tokens_s_gpu=3700.0, step=PREFILL_STEP, balance=1.12, bound="compute",
    )  # fmt: skip
    decode = PhasePoint(
        phase="decode", load=96.0, fullest=110.0, capacity=140.0, utilisation=0.71, busy=1.0, tokens_s_gpu=700.0,
        peak_tokens_s_gpu=990.0, step=DECODE_STEP, balance=1.31, bound="memory",
    )  # fmt: skip
    return OperatingPoint(
        rate=rate,
        offered=rate,
        stable=True,
        concurrency=2000.0,
        ttft=Latency(ttft, ttft * 0.9, ttft * 1.5, ttft * 2.2),
        tpot=Latency(tpot, tpot, tpot * 1.1, tpot * 1.2),
        ttft_parts={"waiting": 0.3, "prefill": 0.5, "exposed": 0.1},
        input_tokens_s_gpu=output * 5,
        output_tokens_s_gpu=output,
        prefill=prefill,
        decode=decode,
        kv=KvPoint(
            capacity=float("inf"), utilisation=0.2, transfer_s=0.03, exposed_s=0.1, blocks_used=0.6, background=0.0
        ),
        binds="prefill",
        goodput=97.0,
        slo=Verdict(
            met=True, attainment=0.97, ttft_share=0.975, tpot_share=0.99, binds="ttft", says="TTFT would bind first"
        ),
        sources={"TTFT": "closed form"},
    )


def small_ladder() -> LadderResult:
    """Return a ladder of three rungs, the second a loss in throughput."""
    base = ["lanes.routing=ecmp", "lanes.expert_queue=shared", "decode.overlap=never", "prefill.overlap=never"]
    twins = [
        load_twin("deepseek-512", overrides=base),
        load_twin("deepseek-512", overrides=[*base, "lanes.routing=adaptive"]),
        load_twin("deepseek-512", overrides=[*base, "lanes.routing=adaptive", "lanes.expert_queue=own"]),
    ]
    points = [small_point(), small_point(tpot=0.044, output=400.0), small_point(tpot=0.02, output=840.0, ttft=0.45)]
    gains = [
        {},
        {"throughput": -0.048, "tpot": -0.1, "ttft": 0.0, "prefill": 0.0, "decode": -0.12},
        {"throughput": 1.1, "tpot": 0.545, "ttft": 0.5, "prefill": 0.9, "decode": 1.5},
    ]
    names = [("Baseline", ""), ("Adaptive routing", "ECMP -> adaptive routing"), ("Own queue", "shared -> own queue")]
    rungs = [
        Rung(
            name=name,
            measure=measure,
            twin=twin,
            point=point,
            peak=replace(point, rate=150.0),
            exchange_s={"prefill": 0.2, "decode": 0.0104},
            slowdown={"prefill": 1.4, "decode": 1.25},
            gain=gain,
            sources={"exchange": f"packets, {name}"},
        )
        for (name, measure), twin, point, gain in zip(names, twins, points, gains, strict=True)
    ]
    return LadderResult(
        name="deepseek-512",
        gpus=416,
        rate=100.0,
        rate_says="70% of what the weakest rung can serve",
        rungs=tuple(rungs),
        total={"throughput": 1.0, "tpot": 0.5, "ttft": 0.5, "prefill": 0.9, "decode": 1.2},
        seconds=1.5,
        skipped={"KV on the DCN": "the cluster has one network"},
    )
