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
from fourlane.policy.migration import gains, overall_balance, rank_costs, worthwhile_layers
from fourlane.policy.placement import place_experts

if TYPE_CHECKING:
    from fourlane.engine.rank_config import RankBalance
    from fourlane.policy.placement import Placement

__all__ = ["Leader"]

_log = logging.getLogger(__name__)
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
        self._batches: deque[np.ndarray] = deque(maxlen=keep)
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
            recent_WLE = self._samples()[-self._windows_since :]
            self.realised = overall_balance(rank_costs(placement, self._costs(recent_WLE, placement)))

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
        load_WLE = self._samples()
        wanted = place_experts(
            load_WLE, ranks=placement.ranks, slots=placement.slots, cost=self._cost, split_aware=self._settings.split
        )
        cost_LEC = self._costs(load_WLE, placement)
        before_LG, after_LG = rank_costs(placement, cost_LEC), rank_costs(wanted, cost_LEC)
        layers = worthwhile_layers(gains(before_LG, after_LG), min_gain=self._settings.min_gain)
        chosen_LG = before_LG.copy()
        chosen_LG[layers] = after_LG[layers]
        self._wanted, self._layers, self._expected = wanted, deque(layers), overall_balance(chosen_LG)
        if layers:
            _log.info(
                "experts of %d of %d layers move: balance %.3f now, %.3f expected",
                len(layers), placement.layers, overall_balance(before_LG), self._expected,
            )  # fmt: skip

    def _samples(self) -> np.ndarray:
        """Return what costs are worked out from: windows; where activated experts count, batches, [samples, L, E].

        In a window every expert has tokens, so only batches tell how many are activated.
        """
        return np.array(self._batches) if self._settings.cost_activated else self._loads.windows_WLE

    def _costs(self, load_WLE: np.ndarray, placement: Placement) -> np.ndarray:
        return self._cost.replica_cost(load_WLE, placement.ranks)
