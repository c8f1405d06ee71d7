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
from fourlane.policy.migration import Expectation, expect_equal_shares, expect_split, gains, worthwhile_layers
from fourlane.policy.placement import Placement, place_experts

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.rank_config import RankBalance

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
        self.rest: Callable[[], None] = _go_on
        """Called after each piece of work that takes long: whoever runs this may pause there."""
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
            layers = range(placement.layers)
            expected = [self._expect(placement.only_layer(each), recent_WLE[:, each : each + 1]) for each in layers]
            self.realised = Expectation.of_layers(expected).balance

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
        """Work out which layers are worth moving, from what was counted since the last time; layer by layer."""
        self._steps = 0
        batch_WLE = np.array(self._batches)
        sample_WLE = batch_WLE if self._settings.cost_activated else self._loads.windows_WLE
        rows: list[np.ndarray] = []
        expected: list[tuple[Expectation, Expectation]] = []
        for layer in range(placement.layers):
            one, batches = placement.only_layer(layer), batch_WLE[:, layer : layer + 1]
            better = self._place(sample_WLE[:, layer : layer + 1], one)
            expected.append((self._expect(one, batches), self._expect(better, batches)))
            rows.append(better.slot_of_LP[0])
        before, after = (Expectation.of_layers(each) for each in zip(*expected, strict=True))
        layers = worthwhile_layers(gains(before, after), min_gain=self._settings.min_gain)
        self._wanted = Placement(np.stack(rows), experts=placement.experts, ranks=placement.ranks)
        self._layers = deque(layers)
        self._expected = before.with_layers(layers, after).balance
        if layers:
            _log.info(
                "experts of %d of %d layers move: balance %.3f now, %.3f expected",
                len(layers), placement.layers, before.balance, self._expected,
            )  # fmt: skip

    def _place(self, sample_WLE: np.ndarray, now: Placement) -> Placement:
        """Return a better placement of some layers."""
        wanted = place_experts(
            sample_WLE,
            ranks=now.ranks,
            slots=now.slots,
            previous=now,
            moves=self._settings.moves,
            cost=self._cost,
            split_aware=self._settings.split,
        )
        self.rest()
        return wanted

    def _expect(self, placement: Placement, batch_WLE: np.ndarray) -> Expectation:
        """Return what to expect of a placement as tokens are split and costs are counted here."""
        if self._settings.split and not self._settings.cost_activated:
            expected = expect_split(placement, batch_WLE)
        else:
            expected = expect_equal_shares(placement, self._cost.replica_cost(batch_WLE, placement.ranks))
        self.rest()
        return expected


def _go_on() -> None:
    """Rest not at all."""
