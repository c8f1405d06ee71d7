"""The closed form beside the simulation of single requests, both with step times that are plain formulas."""

from __future__ import annotations

from typing import Any

import pytest
from twin_stand_in import LinearSteps, PlainKv, stand_in

from fourlane.spec.twin import TwinPool, Workload
from fourlane.twin.operating_point import operating_point
from fourlane.twin.serving.simulation import simulate

DECODE = LinearSteps(10e-3, 1e-4, 1e-8)
FIXED = {"input_len": "1024", "output_len": "129"}
SPREAD = {"input_len": "lognormal:800/4000", "output_len": "lognormal:100/500"}
TWO = {"prefill": TwinPool(units=2, chunk_tokens=4096), "decode": TwinPool(units=2, max_running=64)}
EIGHT = {"prefill": TwinPool(units=8, chunk_tokens=4096), "decode": TwinPool(units=4, ranks=16, max_running=128)}
ONE = {
    "prefill": TwinPool(ranks=2, chunk_tokens=2048),
    "decode": TwinPool(ranks=2, max_running=64),
}


@pytest.mark.parametrize(
    ("pools", "lengths", "rate"),
    [
        (TWO, FIXED, 50),
        (TWO, FIXED, 300),
        (TWO, SPREAD, 150),
        (EIGHT, SPREAD, 200),
        (ONE, FIXED, 30),
        (ONE, SPREAD, 30),
    ],
)
def test_a_point_is_near_the_simulation_at_light_and_at_heavy_load(
    pools: dict[str, Any], lengths: dict[str, Any], rate: int
) -> None:
    requests = max(1200, 10 * rate)
    workload = Workload(rate=rate, requests=requests, warmup=requests // 3, **lengths)
    assembly = stand_in(workload, decode_steps=DECODE, **pools)
    point, simulated = operating_point(assembly), simulate(assembly).summary()
    assert point.tpot.mean == pytest.approx(simulated["tpot_s"]["mean"], rel=0.03)
    assert point.ttft.mean == pytest.approx(simulated["ttft_s"]["mean"], rel=0.2)
    assert point.ttft.p99 == pytest.approx(simulated["ttft_s"]["p99"], rel=0.45)


def test_below_a_knee_of_kv_bandwidth_time_to_first_token_collapses() -> None:
    """Prompts keep their pages until their KV has arrived: too slow a way, and no rank has pages for the next."""
    needed = 100 * 1024 * 1e6 / 16  # bytes a second of each rank
    ttft = {}
    for share in (0.5, 4, 16):
        assembly = stand_in(
            Workload(rate=100, requests=2000, input_len="1024", output_len="65"),
            kv=PlainKv(rate=needed * share),
            kv_token_bytes=1e6,
            kv_blocks=600,
        )
        ttft[share] = simulate(assembly).summary()["ttft_s"]["mean"]
    assert ttft[4] < 1.1 * ttft[16]
    assert ttft[0.5] > 10 * ttft[16]
