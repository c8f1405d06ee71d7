"""Requests through the simulated service: by hand where one can, by what must hold where one cannot."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from serving_doubles import PlainExchange, PlainKv, PlainSteps, plain_assembly

from fourlane.spec.twin import Fault, TwinPool, Workload
from fourlane.twin.assembly_parts import Overheads
from fourlane.twin.serving import decode_unit
from fourlane.twin.serving.simulation import Service, ServingProgress, simulate
from fourlane.units import Duration


def s(seconds: float) -> Duration:
    return Duration.parse(f"{seconds}s")


ONE = Workload(rate=1.0, requests=1, input_len="1000", output_len="11")


def test_a_request_alone_takes_what_its_steps_and_its_transfer_take() -> None:
    # chunks of 512 and 488 on one of two ranks, 1 ms a token of the mean rank; then ten steps of 10 ms
    kv = PlainKv(out_rate=1e6, in_rate=2e6, latency_s=0.001)
    overheads = Overheads(arrive_s=0.002, reserve_s=0.004, deliver_s=0.003)
    results = simulate(plain_assembly(workload=ONE, kv=kv, overheads=overheads))
    requests = results.requests
    assert requests.ttft[0] == pytest.approx(0.002 + 0.004 + 0.256 + 0.244 + 0.003)
    # 512 kB begin to travel when the first of ten layers is done, and end after the step; 488 kB follow
    sent = 0.006 + 0.0256 + 0.512 + 0.488
    assert requests.kv_done[0] == pytest.approx(sent + 0.001)
    assert requests.ended[0] == pytest.approx(sent + 0.001 + 10 * 0.01 + 0.003)
    assert results.decode.steps == 10
    assert requests.state.tolist() == ["done"]


def test_an_answer_of_one_token_needs_no_decode_step() -> None:
    results = simulate(plain_assembly(workload=Workload(rate=1.0, requests=3, input_len="40", output_len="1")))
    assert results.requests.done.all()
    assert results.decode.steps == 0
    assert np.isnan(results.requests.tpot).all()
    assert results.requests.ttft == pytest.approx(results.requests.e2e)


def test_accepted_drafts_shorten_answers() -> None:
    results = simulate(plain_assembly(workload=ONE, tokens_per_step=2.5))
    assert results.decode.steps == 4


def test_everything_begun_is_given_back() -> None:
    workload = Workload(rate=40.0, requests=400, input_len="20..900", output_len="1..120", shared_prefix=128)
    service = Service(plain_assembly(workload=workload, blocks=150, decode_steps=PlainSteps(fixed=0.01, position=1e-6)))
    results = service.run()
    assert results.requests.done.all()
    assert results.requests.evictions.sum() > 0
    gateway = service.gateway
    for books in (gateway.queued_G, gateway.owned_G, gateway.pages_G):
        assert not books.any()
    assert all(not unit.held_G.any() and unit.sequences == 0 for unit in service.decode)
    assert all(unit.held_pages == 0 and not unit.everyone_here() for unit in service.prefill)


def test_the_same_seed_gives_the_same_results_and_another_seed_others() -> None:
    def times(seed: int) -> list[float]:
        workload = Workload(rate=20.0, requests=60, input_len="20..900", output_len="1..60", burstiness=3.0)
        return simulate(plain_assembly(workload=workload, seed=seed)).requests.ended.tolist()

    assert times(1) == times(1)
    assert times(1) != times(2)


@pytest.mark.parametrize("tokens_per_step", [1.0, 1.7])
def test_leaps_change_nothing(monkeypatch: pytest.MonkeyPatch, tokens_per_step: float) -> None:
    workload = Workload(rate=30.0, requests=80, input_len="20..400", output_len="1..150")

    def run() -> tuple[list[float], int]:
        results = simulate(
            plain_assembly(
                workload=workload,
                decode_steps=PlainSteps(fixed=0.004, token=1e-4, position=2e-7),
                tokens_per_step=tokens_per_step,
                blocks=90,
            )
        )
        return results.requests.ended.tolist(), len(results.decode_leaps)

    leaping, leaps = run()
    monkeypatch.setattr(decode_unit, "SHORT_STEPS", 1)
    monkeypatch.setattr(decode_unit, "GROWTH", 0.0)
    stepping, steps = run()
    assert leaping == pytest.approx(stepping, rel=1e-9)
    assert leaps < steps / 2


def test_a_closed_loop_keeps_so_many_requests_under_way() -> None:
    workload = Workload(concurrency=3, requests=30, input_len="50..300", output_len="5..40")
    requests = simulate(plain_assembly(workload=workload)).requests
    assert requests.done.all()
    under_way = [int(((requests.sent <= at) & (requests.ended > at)).sum()) for at in requests.sent]
    assert under_way[3:] == [3] * 27


def test_prompts_that_begin_alike_are_found_in_the_cache() -> None:
    workload = Workload(rate=2.0, requests=40, input_len="600", output_len="2", shared_prefix=320)
    cached = simulate(plain_assembly(workload=workload)).requests.cached_tokens
    assert Counter(cached.tolist()) == {320: 38, 0: 2} or Counter(cached.tolist()) == {320: 39, 0: 1}
    pool = TwinPool(ranks=2, chunk_tokens=512, prefix_cache=False)
    assert not simulate(plain_assembly(workload=workload, prefill=pool)).requests.cached_tokens.any()


def test_below_a_bandwidth_of_kv_first_tokens_come_late_too() -> None:
    """Whoever waits for KV holds pages on both sides, until nobody gets any: the knee."""
    workload = Workload(rate=20.0, requests=600, input_len="400", output_len="20")
    needed = 20.0 * 400 * 1000 / 2  # of each rank

    def ttft(rate: float) -> float:
        kv = PlainKv(out_rate=rate, in_rate=rate)
        return simulate(
            plain_assembly(workload=workload, kv=kv, prefill_steps=PlainSteps(token=1e-4), blocks=400)
        ).ttft.mean

    plenty, enough, little = ttft(100 * needed), ttft(1.5 * needed), ttft(0.7 * needed)
    assert enough < 1.5 * plenty
    assert little > 20 * plenty


def test_ranks_that_share_cores_take_turns() -> None:
    workload = Workload(concurrency=1, requests=4, input_len="512", output_len="50")
    own = simulate(plain_assembly(workload=workload))
    shared = simulate(plain_assembly(workload=workload, cores=1))
    # one request at a time: two ranks step together, on one core half as fast
    assert shared.tpot.mean == pytest.approx(2 * own.tpot.mean, rel=1e-3)
    assert shared.ttft.mean == pytest.approx(2 * own.ttft.mean, rel=1e-3)
    both = Workload(concurrency=6, requests=60, input_len="512", output_len="50")
    assert simulate(plain_assembly(workload=both, cores=2)).tpot.mean > 1.2 * own.tpot.mean


def test_prompts_no_rank_can_hold_are_refused_and_long_answers_cut() -> None:
    workload = Workload(rate=5.0, requests=20, input_len="100..300", output_len="400")
    results = simulate(plain_assembly(workload=workload, blocks=17))
    limit = 16 * 16
    refused = results.requests.state == "refused"
    assert refused.tolist() == (results.requests.prompt_tokens >= limit).tolist()
    assert 0 < refused.sum() < 20
    answered = results.requests.done
    held = (results.requests.prompt_tokens + results.requests.output_tokens)[answered]
    assert held.max() <= 17 * 16
    assert sum(results.failures.values()) == refused.sum()


def test_twice_the_requests_are_twice_the_events() -> None:
    def events(requests: int) -> int:
        workload = Workload(rate=50.0, requests=requests, input_len="64..512", output_len="8..64")
        service = Service(plain_assembly(workload=workload, prefill_steps=PlainSteps(token=1e-5)))
        service.run()
        return service.clock.planned

    assert events(1600) == pytest.approx(2 * events(800), rel=0.1)


def test_progress_ends_with_all_requests() -> None:
    told: list[ServingProgress] = []
    workload = Workload(rate=50.0, requests=50, input_len="64", output_len="8")
    simulate(plain_assembly(workload=workload), told.append)
    assert (told[-1].done, told[-1].total, told[-1].share) == (50, 50, 1.0)


def test_a_summary_is_plain_and_says_where_figures_come_from() -> None:
    summary = simulate(plain_assembly(workload=ONE)).summary()
    assert summary["answered"] == 1
    assert summary["ttft_s"]["p50"] == pytest.approx(0.5)
    assert sum(summary["ttft_parts_s"].values()) == pytest.approx(0.5)
    assert summary["sources"]["prefill: experts"] == "made up"
    assert all(not isinstance(value, float) or math.isfinite(value) for value in summary["decode"].values())


BUSY = Workload(rate=10.0, requests=200, input_len="100..400", output_len="20..80")
FOUR = {"prefill": TwinPool(units=2, ranks=2, chunk_tokens=512), "decode": TwinPool(units=2, ranks=2)}


def test_a_dead_decode_rank_stops_its_unit_and_only_its_own_sequences_start_anew() -> None:
    fault = Fault(at=s(5), lasts=s(1), kind="rank", target="decode/1", recovery=s(2))
    whole = simulate(plain_assembly(workload=BUSY, **FOUR)).requests
    service = Service(plain_assembly(workload=BUSY, faults=(fault,), **FOUR))
    results = service.run()
    requests = results.requests
    assert requests.done.all()
    assert service.gateway.decode_ok_G.all()
    retried = requests.retries > 0
    assert 0 < retried.sum() < 20
    assert (requests.decode_rank[retried] != 1).all()
    # rank 0 of the same unit kept its sequences: they ended late, without a retry
    late = (requests.ended - whole.ended > 2.5) & ~retried
    assert late.any()
    assert (requests.decode_rank[late] < 2).all()
    begins = [begin for leap, begin, _ in results.decode_leaps if leap.unit == 0]
    assert not [begin for begin in begins if 5 < begin < 8]
    assert any(begin >= 8 for begin in begins)


def test_a_dead_prefill_rank_loses_its_prompts_and_its_cache() -> None:
    workload = Workload(rate=10.0, requests=200, input_len="300..400", output_len="20", shared_prefix=64)
    fault = Fault(at=s(5), kind="rank", target="prefill/0")
    slow = PlainSteps(token=2e-3)
    service = Service(plain_assembly(workload=workload, faults=(fault,), prefill_steps=slow, **FOUR))
    requests = service.run().requests
    # its unit never comes back: what had reached its other rank waits until the deadline
    stuck = requests.state == "failed"
    assert set(requests.prefill_rank[stuck]) <= {1}
    assert requests.done.sum() >= 195
    later = requests.sent > 5
    assert set(requests.prefill_rank[later & requests.done]) == {2, 3}
    assert requests.retries.sum() > 0


def test_a_cut_kv_path_breaks_transfers_until_it_is_mended() -> None:
    fault = Fault(at=s(5), lasts=s(3), kind="kv", target="prefill/0")
    service = Service(plain_assembly(workload=BUSY, faults=(fault,), kv=PlainKv(1e6, 1e6), **FOUR))
    requests = service.run().requests
    assert requests.done.all()
    retried = requests.retries > 0
    assert retried.any()
    assert (requests.sent[retried] < 8).all()
    assert not service.kv_cut


def test_slower_links_make_exchanges_and_transfers_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    from fourlane.twin import fault_factors

    factors = fault_factors.FaultFactors(
        {"prefill": (1.0, 1.0), "decode": (3.0, math.inf)}, kv=(2.0, math.inf), source="made up"
    )
    monkeypatch.setattr(fault_factors, "fault_factors", lambda *_: factors)
    steps = PlainSteps(fixed=0.005, exchange=PlainExchange(seconds=0.005))
    fault = Fault(at=s(0), kind="switch", target="spine0", lasts=s(10))
    workload = Workload(rate=10.0, requests=50, input_len="100", output_len="20")
    results = simulate(plain_assembly(workload=workload, faults=(fault,), decode_steps=steps, **FOUR))
    assert results.requests.done.all()
    assert {leap.unit for leap, _, _ in results.decode_leaps} == {0}
    assert results.decode.step_s == pytest.approx(0.005 + 3 * 0.005)
    assert set(results.requests.prefill_rank) <= {0, 1}
    assert results.decode.make_up.bounds["fault"] == pytest.approx(0.75)


def test_kv_beside_expert_traffic_slows_exchanges() -> None:
    steps = PlainSteps(fixed=0.005, exchange=PlainExchange(seconds=0.005))
    workload = Workload(rate=20.0, requests=800, input_len="400", output_len="20")

    def tpot(share: float) -> float:
        kv = PlainKv(out_rate=1e9, in_rate=1e9, nic_share=share)
        return simulate(
            plain_assembly(workload=workload, kv=kv, decode_steps=steps, prefill_steps=PlainSteps(token=1e-4))
        ).tpot.mean

    # 4 MB/s into each of two ranks, of NICs of 10 MB/s: exchanges take 1 / (1 - 0.4) as long
    assert tpot(1 / 10e6) == pytest.approx(tpot(0.0) + 0.005 * (1 / 0.6 - 1), rel=0.1)


def test_kv_travels_slower_while_its_ranks_exchange() -> None:
    steps = PlainSteps(token=1e-3, exchange=PlainExchange(seconds=0.5))

    def exposed(share: float) -> float:
        kv = PlainKv(out_rate=5e5, in_rate=1e9, nic_share=share)
        results = simulate(plain_assembly(workload=ONE, kv=kv, prefill_steps=steps))
        return float(results.requests.kv_done[0] - results.requests.started[0])

    # half a second of exchange in steps of about three quarters: two thirds of the rate is left
    assert exposed(1e-9) == pytest.approx(1.5 * exposed(0.0), rel=0.1)
