"""Loads of experts and balance, made from the totals that ranks report."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fourlane.engine.messages import BalanceStats, RankStats
from fourlane.gateway import expert_balance, expert_loads
from fourlane.gateway.expert_balance import RecentBalance, balance_of
from fourlane.gateway.expert_loads import WINDOW_S, WINDOWS, ExpertLoads
from fourlane.spec.expert_files import read_loads

if TYPE_CHECKING:
    from pathlib import Path

    from fake_service import FakeService

SHAPE = (2, 3)
NOTHING = [0] * 6


def totals(*decode: int, prefill: list[int] | None = None) -> dict[str, list[int]]:
    return {"decode": list(decode)} | ({} if prefill is None else {"prefill": prefill})


def test_windows_hold_what_ranks_routed_between_their_reports_summed_over_ranks() -> None:
    loads = ExpertLoads()
    for rank in ("decode/0", "decode/1"):
        loads.report(rank, totals(*NOTHING), SHAPE, 0.0)
    assert loads.by_phase() == {}
    loads.report("decode/0", totals(1, 2, 3, 0, 0, 6), SHAPE, 1.0)
    loads.report("decode/1", totals(0, 0, 0, 4, 2, 0), SHAPE, 2.0)
    loads.report("decode/0", totals(2, 2, 3, 0, 1, 6), SHAPE, 3.0)
    loads.report("decode/0", totals(2, 2, 3, 0, 1, 9), SHAPE, 1.0 + WINDOW_S)
    found = loads.by_phase()["decode"].load_WLE
    assert found.tolist() == [[[2, 2, 3], [4, 3, 6]], [[0, 0, 0], [0, 0, 3]]]
    assert found.dtype == np.int64


def test_phases_are_apart_and_each_has_windows_of_its_own() -> None:
    loads = ExpertLoads()
    loads.report("unified/0", totals(*NOTHING, prefill=NOTHING), SHAPE, 0.0)
    loads.report("unified/0", totals(1, 0, 0, 0, 0, 1), SHAPE, 1.0)
    loads.report("unified/0", totals(2, 0, 0, 0, 0, 2, prefill=[7] * 6), SHAPE, 2 * WINDOW_S)
    found = loads.by_phase()
    assert list(found) == ["decode", "prefill"]
    assert [phase.load_WLE.shape[0] for phase in found.values()] == [2, 1]
    assert found["prefill"].load_WLE.tolist() == [[[7, 7, 7], [7, 7, 7]]]


@pytest.mark.parametrize("told", [True, False])
def test_a_restarted_rank_counts_on_though_its_totals_start_over(told: bool) -> None:
    loads = ExpertLoads()
    loads.report("decode/0", totals(*NOTHING), SHAPE, 0.0)
    loads.report("decode/0", totals(5, 5, 5, 5, 5, 5), SHAPE, 1.0)
    if told:
        loads.forget("decode/0")
        loads.report("decode/0", totals(*NOTHING), SHAPE, 2.0)
    loads.report("decode/0", totals(1, 0, 0, 0, 0, 9), SHAPE, 3.0)
    loads.report("decode/0", totals(2, 0, 0, 0, 0, 9), SHAPE, 4.0)
    assert loads.by_phase()["decode"].load_WLE.tolist() == [[[7, 5, 5], [5, 5, 14]]]


def test_what_a_rank_routed_before_this_gateway_began_is_in_no_window() -> None:
    loads = ExpertLoads()
    loads.report("decode/0", totals(100, 0, 0, 0, 0, 100), SHAPE, 0.0)
    loads.report("decode/0", totals(101, 0, 0, 0, 0, 101), SHAPE, 1.0)
    assert loads.by_phase()["decode"].load_WLE.sum() == 2


def test_only_so_many_windows_are_kept_the_last() -> None:
    loads = ExpertLoads()
    loads.report("decode/0", totals(*NOTHING), SHAPE, 0.0)
    for step in range(1, WINDOWS + 4):
        loads.report("decode/0", totals(step, 0, 0, 0, 0, step * step), SHAPE, step * WINDOW_S)
    found = loads.by_phase()["decode"].load_WLE
    assert found.shape == (WINDOWS, *SHAPE)
    assert found[-1, 1, 2] == (WINDOWS + 3) ** 2 - (WINDOWS + 2) ** 2


def sums(scale: int, *, split: list[int], equal: list[int], mean: list[float]) -> BalanceStats:
    return BalanceStats(
        sum_of_max_split_L=[scale * n for n in split],
        sum_of_max_equal_L=[scale * n for n in equal],
        sum_of_mean_L=[scale * n for n in mean],
    )


def test_balance_is_of_the_recent_past() -> None:
    rank = RecentBalance()
    assert balance_of([rank]) is None
    skewed = {"split": [30, 20], "equal": [40, 20], "mean": [10.0, 20.0]}
    rank.report(sums(1, **skewed), 1.0)
    found = balance_of([rank])
    assert found is not None
    assert (found.before_L, found.after_L, found.before, found.after) == ([4.0, 1.0], [3.0, 1.0], 2.0, 50 / 30)
    span = expert_balance.SPAN_S
    for turn in (1, 2, 3):  # even from here on
        even = {"split": [30 + 10 * turn, 20 + 20 * turn], "equal": [40 + 10 * turn, 20 + 20 * turn]}
        rank.report(sums(1, **even, mean=[10.0 + 10 * turn, 20.0 + 20 * turn]), 1.0 + turn * span)
    found = balance_of([rank])
    assert found is not None
    assert (found.before_L, found.after_L) == ([1.0, 1.0], [1.0, 1.0])
    for quiet in range(5):  # nothing happens: what was last known stays
        rank.report(rank.now, (10 + quiet) * span)
    assert balance_of([rank]) == found


def test_balance_begins_anew_with_a_ranks_process_and_weighs_groups_by_their_tokens() -> None:
    first, second = RecentBalance(), RecentBalance()
    first.report(sums(50, split=[3], equal=[3], mean=[1.0]), 1.0)
    first.report(sums(1, split=[10], equal=[20], mean=[10.0]), 2.0)
    second.report(sums(1, split=[60], equal=[60], mean=[30.0]), 2.0)
    found = balance_of([first, second, RecentBalance()])
    assert found is not None
    assert (found.after, found.before) == (70 / 40, 80 / 40)


def report(service: FakeService, name: str, **values: object) -> RankStats:
    message = service.call(lambda: service.ranks.stats(name, **values))
    time.sleep(0.02)
    return message


def test_the_service_tells_loads_and_balance(service: FakeService, tmp_path: Path) -> None:
    layers = sums(1, split=[11, 10], equal=[15, 12], mean=[10.0, 10.0])
    moved = {"placement_version": 3, "layers_migrated": 2, "experts_moved": 5, "migration_bytes": 700}
    more = {"migration_s": 0.5, "migrations_failed": 1, "forecast_balance": 1.04}
    balance = BalanceStats(
        **{name: getattr(layers, name) for name in ("sum_of_max_split_L", "sum_of_max_equal_L", "sum_of_mean_L")},
        **moved,
        **more,
    )
    with httpx.Client(base_url=service.url) as http:
        assert http.get("/experts/load").json()["phases"] == {}
        assert http.get("/health").json()["pools"]["decode"]["balance"] is None
        report(service, "decode/0", expert_tokens={"decode": [0] * 16})
        report(service, "decode/0", expert_tokens={"decode": list(range(16))}, balance=balance)
        health = http.get("/health").json()
        metrics = http.get("/metrics").text
        response = http.get("/experts/load")
        service.call(lambda: service.ranks.kill("decode/0"))
        service.call(lambda: service.ranks.revive("decode/0"))
        report(service, "decode/0", balance=balance)
        after_restart = http.get("/metrics").text
    assert health["pools"]["decode"]["balance"] == {"before": 1.35, "after": 1.05}
    assert response.headers["content-type"] == "application/json"
    (tmp_path / "loads.json").write_bytes(response.content)
    loads = read_loads(tmp_path / "loads.json")
    assert list(loads) == ["decode"]
    assert loads["decode"].load_WLE.tolist() == [[list(range(8)), list(range(8, 16))]]
    assert service.state.model.name in loads["decode"].source
    found, again = values_of(metrics), values_of(after_restart)
    assert found["fourlane_expert_balance", "0", "decode", "before"] == 1.5
    assert found["fourlane_expert_balance", "1", "decode", "after"] == 1.0
    assert found["fourlane_placement_version", "decode/0"] == 3
    assert found["fourlane_migration_forecast_balance", "decode/0"] == 1.04
    assert ("fourlane_migration_realised_balance", "decode/0") not in found
    for name in ("layers_migrated", "experts_moved", "migration_bytes", "migration_seconds", "migrations_failed"):
        value = found[f"fourlane_{name}_total", "decode/0"]
        assert value == (moved | more)[name.replace("seconds", "s")]
        assert again[f"fourlane_{name}_total", "decode/0"] == 2 * value


def values_of(text: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(text)
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
    }


def test_a_window_is_some_seconds_and_what_is_kept_some_minutes() -> None:
    assert 2 <= expert_loads.WINDOW_S <= 60
    assert expert_loads.WINDOW_S * expert_loads.WINDOWS >= 300
