"""What the leader of a group decides from: windows of loads; and what it then wants, layer by layer.

Knows no thread and no socket, so that every course of events can be tested.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from fourlane.policy.expert_cost import ExpertCost
from fourlane.policy.expert_statistics import LoadStatistics
from fourlane.policy.migration import expect_equal_shares, expect_split, gains, worthwhile_layers
from fourlane.policy.placement import place_experts

if TYPE_CHECKING:
    from fourlane.engine.rank_config import RankBalance
    from fourlane.policy.migration import Expectation
    from fourlane.policy.placement import Placement

__all__ = ["Leader"]

_log = logging.getLogger(__name__)
_MOST_BATCHES = 32
MOST_FAILURES = 3
"""Migrations that may fail one after the other before the group stops trying."""


class Leader:
    """Watches a group's load and says which layer moves next.

    Args:
        settings: how often, and what for.
        layers: layers with experts.
        experts: logical experts a layer.
    """

    def __init__(self, settings: RankBalance, *, layers: int, experts: int) -> None:
        self.forecast: float | None = None
        self.realised: float | None = None
        self._settings = settings
        self._cost = ExpertCost(tokens=settings.cost_tokens, activated=settings.cost_activated)
        window, keep = settings.window_steps, settings.interval_steps // settings.window_steps
        self._loads = LoadStatistics(layers, experts, window=window, keep=keep)
        self._batches: deque[np.ndarray] = deque(maxlen=min(keep, _MOST_BATCHES))
        self._windows_since: int | None = None
        """Windows that have come since the last migration was completed; None before the first."""
        self._steps = 0
        self._wanted: Placement | None = None
        self._layers: deque[int] = deque()
        self._under_way = False
        self._number = 0
        self._failures = 0
        self._expected: float | None = None

    def add_window(self, load_LE: np.ndarray, batch_LE: np.ndarray, steps: int, placement: Placement) -> None:
        """Count the tokens each expert got from the whole group in so many steps.

        Args:
            load_LE: [layers, experts].
            batch_LE: those of the last of these steps: what a batch looks like.
            steps: that it covers.
            placement: where experts live now.
        """
        self._batches.append(batch_LE)
        self._loads.add(load_LE, steps=steps)
        self._steps += steps
        if self._windows_since is not None:
            self._windows_since += 1
            recent_WLE = np.array(self._batches)[-self._windows_since :]
            self.realised = self._expect(placement, recent_WLE).balance

    def next_layer(self, placement: Placement) -> tuple[int, int, list[int]] | None:
        """Return the number of a migration, its layer and the expert in each slot then; None if there is none now."""
        if self._under_way or self._failures >= MOST_FAILURES:
            return None
        if not self._layers:
            if self._steps < self._settings.interval_steps:
                return None
            self._decide(placement)
        if not self._layers or self._wanted is None:
            return None
        self._under_way = True
        self._number += 1
        layer = self._layers[0]
        return self._number, layer, self._wanted.slot_of_LP[layer].tolist()

    def ended(self, number: int, *, committed: bool) -> None:
        """Note that a migration was committed, or dropped; after a failure the rest waits for the next decision."""
        if not self._under_way or number != self._number:
            return
        self._under_way = False
        self._failures = 0 if committed else self._failures + 1
        if committed:
            self._layers.popleft()
            if not self._layers:
                self.forecast, self.realised, self._windows_since = self._expected, None, 0
        else:
            self._layers.clear()
            if self._failures >= MOST_FAILURES:
                _log.warning("%d migrations failed in a row: experts stay until the group forms anew", MOST_FAILURES)

    def _decide(self, placement: Placement) -> None:
        """Work out which layers are worth moving, from what was counted since the last time."""
        self._steps = 0
        settings = self._settings
        wanted = place_experts(
            np.array(self._batches) if settings.cost_activated else self._loads.windows_WLE,
            ranks=placement.ranks,
            slots=placement.slots,
            previous=placement,
            moves=settings.moves,
            cost=self._cost,
            split_aware=settings.split,
        )
        batch_WLE = np.array(self._batches)
        before, after = self._expect(placement, batch_WLE), self._expect(wanted, batch_WLE)
        layers = worthwhile_layers(gains(before, after), min_gain=settings.min_gain)
        self._wanted, self._layers = wanted, deque(layers)
        self._expected = before.with_layers(layers, after).balance
        if layers:
            _log.info(
                "experts of %d of %d layers move: balance %.3f now, %.3f expected",
                len(layers), placement.layers, before.balance, self._expected,
            )  # fmt: skip

    def _expect(self, placement: Placement, batch_WLE: np.ndarray) -> Expectation:
        """Return what to expect of a placement as tokens are split and costs are counted here."""
        if self._settings.split and not self._settings.cost_activated:
            return expect_split(placement, batch_WLE)
        return expect_equal_shares(placement, self._cost.replica_cost(batch_WLE, placement.ranks))
