"""What a rank reports of its experts: loads by phase, now and then, and balance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from fourlane.engine import rank_stats
from fourlane.engine.exchange.counters import ExchangeCounters
from fourlane.engine.kv_cache import BlockPool
from fourlane.engine.messages import BalanceStats, OverlapStats, RankStats, decode_from_rank, encode
from fourlane.engine.rank_stats import BUSY_INTERVAL_S, LOAD_INTERVAL_S, StatsReporter
from fourlane.engine.scheduler import Limits, Scheduler
from fourlane.lanes.connections import LaneBook

if TYPE_CHECKING:
    import pytest


class Reports:
    """A reporter under a clock of its own; reports go through the wire format."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limits = Limits(chunk_tokens=8, max_running=4, max_length=64, block_size=4, eos_ids=frozenset())
        self.reporter = StatsReporter(Scheduler(BlockPool(8, prefix_cache=False), limits))
        self.counters = ExchangeCounters(layers=2, experts=3)
        self.now = 1000.0
        monkeypatch.setattr(rank_stats, "time", SimpleNamespace(monotonic=lambda: self.now))

    def after(self, seconds: float, migrations: BalanceStats | None = None) -> RankStats:
        self.now += seconds
        lanes = LaneBook({}, owner="decode/0")
        report = self.reporter.report(
            self.counters, kv_bytes=0, lanes=lanes, overlap=OverlapStats(), migrations=migrations
        )
        decoded = decode_from_rank(encode(report))
        assert isinstance(decoded, RankStats)
        return decoded


def test_loads_are_told_from_nothing_on_and_then_when_they_change_but_not_in_every_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports = Reports(monkeypatch)
    assert reports.after(0).expert_tokens == {"prefill": [0] * 6, "decode": [0] * 6}
    reports.counters.observe_own(1, np.array([4, 0, 1]), np.array([1, 0, 0]))
    assert reports.after(BUSY_INTERVAL_S).expert_tokens == {}
    assert reports.after(LOAD_INTERVAL_S).expert_tokens == {"prefill": [0, 0, 0, 3, 0, 1], "decode": [0, 0, 0, 1, 0, 0]}
    reports.counters.observe_own(0, np.array([0, 2, 0]), np.array([0, 2, 0]))
    assert reports.after(LOAD_INTERVAL_S).expert_tokens == {"decode": [0, 2, 0, 1, 0, 0]}
    assert reports.after(LOAD_INTERVAL_S).expert_tokens == {}


def test_balance_and_what_is_known_of_migrations_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports(monkeypatch)
    count_E = np.array([6, 1, 1])
    reports.counters.observe(1, count_E, fullest=5, fullest_if_equal=6, ranks=2)
    found = reports.after(0, BalanceStats(placement_version=4, realised_balance=1.02)).balance
    assert found == BalanceStats(
        sum_of_max_split_L=[0, 5],
        sum_of_max_equal_L=[0, 6],
        sum_of_mean_L=[0.0, 4.0],
        placement_version=4,
        realised_balance=1.02,
    )
    assert reports.counters.load_LE.tolist() == [[0, 0, 0], [6, 1, 1]]
    assert reports.after(1).balance_max_over_mean == 1.25
