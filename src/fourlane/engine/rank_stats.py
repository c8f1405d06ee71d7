"""What a rank tells about itself: gauges and totals, at a bounded rate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fourlane.engine.durations import DurationCounts
from fourlane.engine.messages import BalanceStats, RankStats

if TYPE_CHECKING:
    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.messages import OverlapStats, Phase
    from fourlane.engine.scheduler import Scheduler
    from fourlane.lanes.connections import LaneBook

__all__ = ["StatsReporter", "resident_bytes"]

BUSY_INTERVAL_S = 0.2
IDLE_INTERVAL_S = 2.0
LOAD_INTERVAL_S = 2.0
MEMORY_INTERVAL_S = 10.0


def resident_bytes() -> int:
    """Return this process's proportional share of memory (PSS): shared pages are split."""
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    lines = (line.split() for line in rollup.splitlines() if line.startswith("Pss:"))
    return sum(int(line[1]) * 1024 for line in lines)


class StatsReporter:
    """Counts steps and says when the next report is due."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.steps = 0
        self.idle_steps = 0
        self.step_s = 0.0
        self._exchange_times = DurationCounts()
        self._scheduler = scheduler
        self._sent_at = 0.0
        self._steps_sent = -1
        self._load_sent_at = -LOAD_INTERVAL_S
        self._load_sent: dict[Phase, int] = {}
        self._memory = (0.0, 0)

    def count_step(self, seconds: float, *, exchange_s: float, empty: bool) -> None:
        """Add a step that waited `exchange_s` for the exchange; `empty`: this rank had no tokens in it."""
        self.steps += 1
        self.idle_steps += int(empty)
        self.step_s += seconds
        self._exchange_times.add(exchange_s)

    def due(self, now: float) -> bool:
        """Tell whether a report should go out."""
        interval = BUSY_INTERVAL_S if self.steps != self._steps_sent else IDLE_INTERVAL_S
        return now - self._sent_at >= interval

    def wait_ms(self, now: float) -> int:
        """Return how long the rank may sleep before the next report."""
        interval = BUSY_INTERVAL_S if self.steps != self._steps_sent else IDLE_INTERVAL_S
        return max(1, int((self._sent_at + interval - now) * 1000))

    def report(
        self,
        counters: ExchangeCounters | None,
        *,
        kv_bytes: int,
        bulk_bytes: int | None = None,
        lanes: LaneBook,
        overlap: OverlapStats,
        migrations: BalanceStats | None = None,
    ) -> RankStats:
        """Return the report and start the next interval.

        Args:
            counters: of the exchange, None before there is one.
            kv_bytes: payload sent on the kv lane.
            bulk_bytes: sent on the bulk lane, None if there is none.
            lanes: knows what connections were opened.
            overlap: what is known of steps in one and in two streams.
            migrations: what is known of them, None if experts never move; the sums are put in here.
        """
        now = time.monotonic()
        scheduler = self._scheduler
        self._sent_at, self._steps_sent = now, self.steps
        return RankStats(
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            reserved=len(scheduler.reserved),
            queued_tokens=scheduler.queued_tokens,
            free_blocks=scheduler.pool.free_blocks,
            total_blocks=scheduler.pool.total_blocks,
            steps=self.steps,
            step_s=self.step_s,
            exchange_s=counters.wait_s if counters else 0.0,
            step_exchange_times=self._exchange_times.counts,
            idle_steps=self.idle_steps,
            prompt_tokens=scheduler.prompt_tokens,
            cached_tokens=scheduler.cached_tokens,
            output_tokens=scheduler.output_tokens,
            evictions=scheduler.evictions,
            lane_bytes={"expert": counters.bytes_sent if counters else 0, "kv": kv_bytes}
            | ({"bulk": bulk_bytes} if bulk_bytes is not None else {}),
            expert_tokens=self._changed_load(counters, now),
            balance_max_over_mean=counters.balance if counters else 1.0,
            overlap=overlap,
            balance=_with_sums(migrations or BalanceStats(), counters),
            memory_bytes=self._resident(now),
            connections=lanes.opened(),
        )

    def _changed_load(self, counters: ExchangeCounters | None, now: float) -> dict[Phase, list[int]]:
        """Return the loads of phases that have changed; the first time also those of none, to count from."""
        if counters is None or now - self._load_sent_at < LOAD_INTERVAL_S:
            return {}
        changed: dict[Phase, list[int]] = {}
        for phase, load_LE in counters.load_by_phase().items():
            total = int(load_LE.sum())
            if self._load_sent.get(phase) != total:
                changed[phase] = load_LE.reshape(-1).tolist()
                self._load_sent[phase] = total
        if changed:
            self._load_sent_at = now
        return changed

    def _resident(self, now: float) -> int:
        measured_at, value = self._memory
        if value == 0 or now - measured_at >= MEMORY_INTERVAL_S:
            value = resident_bytes()
            self._memory = (now, value)
        return value


def _with_sums(migrations: BalanceStats, counters: ExchangeCounters | None) -> BalanceStats:
    if counters is None:
        return migrations
    return msgspec.structs.replace(
        migrations,
        sum_of_max_split_L=counters.max_split_L.tolist(),
        sum_of_max_equal_L=counters.max_equal_L.tolist(),
        sum_of_mean_L=counters.mean_L.tolist(),
    )
