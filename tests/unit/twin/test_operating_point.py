"""A service in steady state, of which every time is a plain formula."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from twin_stand_in import FixedExchange, PlainKv, stand_in

from fourlane.errors import SpecError
from fourlane.spec.twin import Slo, TwinPool, Workload
from fourlane.twin.operating_point import NEAR_CAPACITY, operating_point, peak_point
from fourlane.twin.steady.prefill import Queue, queue_wait
from fourlane.twin.steady.request_mix import request_mix
from fourlane.units import Duration

if TYPE_CHECKING:
    from pathlib import Path

LOAD = Workload(rate=100, input_len="1024", output_len="129")


def test_an_idle_service_takes_a_step_for_the_prompt_and_one_for_each_further_token() -> None:
    point = operating_point(stand_in(Workload(rate=0.0001, input_len="1024", output_len="129")))
    assert point.ttft.p50 == pytest.approx(5e-3 + 1024 * 20e-6, rel=1e-3)
    assert point.tpot.p50 == pytest.approx(10e-3 + 1e-4, rel=0.01)
    assert point.stable
    assert point.concurrency == pytest.approx(0.0001 * (point.ttft.mean + 128 * point.tpot.mean), rel=0.01)


def test_littles_law_holds_between_sequences_rate_and_time() -> None:
    assembly = stand_in(LOAD)
    point = operating_point(assembly)
    decoding = point.decode.load * assembly.decode.ranks
    assert decoding == pytest.approx(100 * 128 * point.decode.step.seconds, rel=0.02)


def test_the_capacity_of_prefill_is_that_of_full_steps() -> None:
    point = operating_point(stand_in(LOAD))
    assert point.prefill.capacity == pytest.approx(16 * 4096 / (5e-3 + 4096 * 20e-6) / 1024)
    assert point.prefill.peak_tokens_s_gpu == pytest.approx(point.prefill.capacity * 1024 / 16)


def test_the_capacity_of_decode_is_bounded_by_sequences_and_by_kv_blocks() -> None:
    by_sequences = operating_point(stand_in(LOAD)).decode.capacity
    assert by_sequences == pytest.approx(16 * 64 / (10e-3 + 65e-4) / 128, rel=0.03)
    by_blocks = operating_point(stand_in(LOAD, kv_blocks=200)).decode.capacity
    assert by_blocks < by_sequences / 2


def test_latency_rises_with_the_rate_until_nothing_keeps_up() -> None:
    points = [operating_point(stand_in(LOAD), rate) for rate in (1, 50, 200, 400)]
    assert all(point.stable for point in points)
    for before, after in pairwise(points):
        assert after.ttft.mean >= before.ttft.mean * 0.999
        assert after.tpot.mean > before.tpot.mean
    over = operating_point(stand_in(LOAD), 5000)
    assert not over.stable
    assert math.isinf(over.ttft.p99)
    assert over.rate == pytest.approx(min(over.prefill.capacity, over.decode.capacity), rel=0.1)
    assert (over.binds, over.slo.binds) == ("decode", "decode")
    assert "decode does not keep up" in over.slo.says


def test_a_prompt_longer_than_a_chunk_takes_several_steps() -> None:
    point = operating_point(stand_in(Workload(rate=0.0001, input_len="10000", output_len="2")))
    assert point.ttft.p50 == pytest.approx(2 * (5e-3 + 4096 * 20e-6) + 5e-3 + 1808 * 20e-6, rel=1e-3)


def test_a_closed_loop_has_as_many_requests_under_way_as_clients() -> None:
    point = operating_point(stand_in(Workload(concurrency=64, input_len="1024", output_len="129")))
    assert point.concurrency == pytest.approx(64, rel=0.01)
    assert point.rate == pytest.approx(64 / (point.ttft.mean + 128 * point.tpot.mean), rel=0.01)


def test_a_shared_prefix_is_computed_once() -> None:
    workload = Workload(rate=1, input_len="1024", output_len="2", shared_prefix=1024)
    reused = operating_point(stand_in(workload))
    computed = operating_point(stand_in(workload, prefill=TwinPool(units=2, chunk_tokens=4096, prefix_cache=False)))
    assert computed.ttft.p50 - reused.ttft.p50 == pytest.approx(1024 * 20e-6, rel=0.05)


@pytest.mark.parametrize(("ttft", "tpot", "binds"), [("500ms", "11ms", "tpot"), ("120ms", "1s", "ttft")])
def test_the_greatest_rate_meets_the_slo_and_a_little_more_does_not(ttft: str, tpot: str, binds: str) -> None:
    slo = Slo(ttft=Duration.parse(ttft), tpot=Duration.parse(tpot), share=0.95)
    workload = Workload(input_len="128..4000", output_len="129")
    assembly = stand_in(workload, slo=slo)
    best = operating_point(assembly)
    assert best.offered is None
    assert best.slo.met
    assert best.slo.attainment >= 0.95
    assert best.binds == binds
    assert not operating_point(assembly, best.rate * 1.1).slo.met


def test_an_slo_that_nothing_meets_is_told_with_what_binds_and_the_nearest_miss() -> None:
    assembly = stand_in(Workload(input_len="1024", output_len="129"), slo=Slo(tpot=Duration.parse("5ms")))
    point = peak_point(assembly)
    assert not point.slo.met
    assert point.slo.binds == "tpot"
    assert "TPOT binds, 10" in point.slo.says
    assert "5ms is asked" in point.slo.says
    assert point.goodput == 0


def test_without_an_slo_the_rate_sought_is_near_capacity() -> None:
    point = operating_point(stand_in(Workload(input_len="1024", output_len="129")))
    assert point.rate == pytest.approx(NEAR_CAPACITY * point.decode.capacity, rel=0.02)


def test_kv_cache_on_the_experts_network_slows_their_exchange() -> None:
    given = {"exchange": FixedExchange(2e-3), "kv_token_bytes": 1e6}
    apart = operating_point(stand_in(LOAD, kv=PlainKv(rate=25e9), **given))
    shared = operating_point(stand_in(LOAD, kv=PlainKv(rate=25e9, shared=True), **given))
    assert 0 < shared.kv.background < 0.9
    assert apart.kv.background == 0
    assert shared.tpot.mean > apart.tpot.mean + 2 * 2e-3 * 0.2
    assert shared.ttft.mean > apart.ttft.mean


def test_below_a_knee_of_kv_bandwidth_nothing_keeps_up() -> None:
    needed = 100 * 1024 * 1e6 / 16  # bytes a second of each rank
    points = {
        share: operating_point(stand_in(LOAD, kv=PlainKv(rate=needed * share), kv_token_bytes=1e6))
        for share in (0.9, 1.2, 8, 32)
    }
    assert not points[0.9].stable
    assert points[0.9].binds == "kv"
    assert points[1.2].tpot.mean > 1.5 * points[32].tpot.mean
    assert points[8].tpot.mean < 1.05 * points[32].tpot.mean


def test_ranks_that_share_cores_slow_each_other_down() -> None:
    pools = {"prefill": TwinPool(units=1, ranks=2, chunk_tokens=4096), "decode": TwinPool(units=1, ranks=2)}
    workload = Workload(concurrency=8, input_len="1024", output_len="129")
    alone = operating_point(stand_in(workload, **pools))
    crowded = operating_point(stand_in(workload, cores=1, **pools))
    assert 1.9 < crowded.tpot.mean / alone.tpot.mean < 3


def test_drafted_tokens_that_are_accepted_shorten_the_time_per_token() -> None:
    plain = operating_point(stand_in(LOAD))
    drafted = operating_point(stand_in(LOAD, tokens_per_step=1.7))
    assert drafted.tpot.mean == pytest.approx(plain.tpot.mean / 1.7, rel=0.1)


def test_an_operating_point_says_where_its_figures_come_from_and_is_plain_data() -> None:
    point = operating_point(stand_in(LOAD))
    assert point.sources["requests"] == "prompts 1024, answers 129"
    assert point.summary()["prefill"]["step"]["parts"]["experts"] > 0


def test_queues_of_many_servers_wait_little_until_they_are_nearly_full() -> None:
    one = queue_wait(0.8, 1, 1.0, 1.0)
    assert one.mean_s == pytest.approx(0.8 / 0.2, rel=0.01)  # M/M/1
    assert queue_wait(0.8, 512, 1.0, 1.0).mean_s < 1e-4
    assert math.isinf(queue_wait(1.0, 512, 1.0, 1.0).mean_s)
    share_N = (np.arange(20_000) + 0.5) / 20_000
    assert Queue(0.4, 2.0).quantiles(share_N).mean() == pytest.approx(2.0, rel=0.01)


def test_a_wrong_length_is_refused() -> None:
    with pytest.raises(SpecError, match=r"workload\.input_len"):
        operating_point(stand_in(Workload(rate=1, input_len="many")))


def test_a_malformed_trace_is_refused_with_its_line(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 10, "output_length": 2}\n{"timestamp": "x"}\n')
    with pytest.raises(SpecError, match=r"trace\.jsonl:2"):
        operating_point(stand_in(Workload(trace=str(trace))))


def test_prefixes_of_a_trace_are_reused_as_far_as_the_cache_holds_them(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    line = '{{"timestamp": {at}, "input_length": 2048, "output_length": 2, "hash_ids": [1, 2, 3, {own}]}}\n'
    trace.write_text("".join(line.format(at=100 * at, own=10 + at) for at in range(20)))
    workload = Workload(trace=str(trace), speed=2)
    reused = operating_point(stand_in(workload))
    without = operating_point(stand_in(workload, prefill=TwinPool(units=2, chunk_tokens=4096, prefix_cache=False)))
    assert reused.rate == without.rate == pytest.approx(20)
    assert without.ttft.p50 > 1.8 * reused.ttft.p50


def test_a_prefix_cache_that_is_too_small_holds_the_latest(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    line = '{{"timestamp": {at}, "input_length": 1024, "output_length": 2, "hash_ids": [{first}, {second}]}}\n'
    trace.write_text("".join(line.format(at=at, first=2 * (at % 3), second=2 * (at % 3) + 1) for at in range(30)))
    workload = Workload(trace=str(trace))
    held = request_mix(workload, block_size=64, cache_blocks=6 * 8)
    too_small = request_mix(workload, block_size=64, cache_blocks=5 * 8)
    assert (held.cached_N > 0).sum() == 27
    assert (too_small.cached_N > 0).sum() == 0
