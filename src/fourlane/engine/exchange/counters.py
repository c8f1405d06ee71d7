"""What an exchange counts while it runs: bytes on the lane, waiting, tokens an expert by phase, balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.engine.messages import Phase

__all__ = ["ExchangeCounters"]


class ExchangeCounters:
    """Running totals of one rank.

    `load_LE` [layers, experts]: tokens that all ranks of the group routed to each expert; it grows by the
    same on every rank. `prefill_LE`, `decode_LE`: those of this rank's own tokens, by phase.
    Balance is kept a layer, as sums over steps: `max_split_L` of the fullest rank's rows, `max_equal_L`
    of what they had been with each expert's tokens spread evenly over its replicas, `mean_L` of the
    mean. `balance` is sum of maxima over sum of means: what a pass really waits for.

    Units:
        wait_s: seconds the computing thread was blocked in `Pending.wait`; communication_s: seconds a
            communication thread was busy, blocked or not; bytes_sent: payload bytes to other ranks, each time
            they are sent; cross_node_bytes: those of them to ranks on other nodes; waited_for_G: [ranks] seconds
            from the beginning of a wait until what was due from a rank had come, whichever thread waited; []
            where the carrier does not know.
    """

    def __init__(self, *, layers: int, experts: int) -> None:
        self.load_LE = np.zeros((layers, experts), dtype=np.int64)
        self.prefill_LE = np.zeros((layers, experts), dtype=np.int64)
        self.decode_LE = np.zeros((layers, experts), dtype=np.int64)
        self.wait_s = 0.0
        self.waited_for_G: list[float] = []
        self.communication_s = 0.0
        self.overlapped = False
        """A communication thread runs an operation: what it waits for, the computing thread does not."""
        self.bytes_sent = 0
        self.cross_node_bytes = 0
        self.over_nodes = 0
        """Dispatches whose tokens went once per node."""
        self.max_split_L = np.zeros(layers, dtype=np.int64)
        self.max_equal_L = np.zeros(layers, dtype=np.int64)
        self.mean_L = np.zeros(layers)

    def blocked(self, seconds: float) -> None:
        """Add time in which an operation waited for other ranks."""
        if not self.overlapped:
            self.wait_s += seconds

    def waited(self, seconds_G: Sequence[float]) -> None:
        """Add how long one wait lasted for each rank; all but the slowest did not hold it up to its end."""
        if len(self.waited_for_G) != len(seconds_G):
            self.waited_for_G = [0.0] * len(seconds_G)
        self.waited_for_G = [total + more for total, more in zip(self.waited_for_G, seconds_G, strict=True)]

    def observe(self, layer: int, count_E: np.ndarray, *, fullest: int, fullest_if_equal: int, ranks: int) -> None:
        """Add one layer of one step.

        Args:
            layer: which.
            count_E: [experts] tokens of all ranks routed to each expert.
            fullest: rows of the rank that computes most.
            fullest_if_equal: the same had each expert's tokens been spread evenly over its replicas.
            ranks: of the group.
        """
        self.load_LE[layer] += count_E
        self.max_split_L[layer] += fullest
        self.max_equal_L[layer] += fullest_if_equal
        self.mean_L[layer] += int(count_E.sum()) / ranks

    def observe_own(self, layer: int, count_E: np.ndarray, decode_E: np.ndarray | None) -> None:
        """Add this rank's own tokens in one layer of one step.

        Args:
            layer: which.
            count_E: [experts] this rank's tokens routed to each expert.
            decode_E: those of them that were decoded, None if none were.
        """
        self.prefill_LE[layer] += count_E
        if decode_E is not None:
            self.prefill_LE[layer] -= decode_E
            self.decode_LE[layer] += decode_E

    def load_by_phase(self) -> dict[Phase, np.ndarray]:
        """Return this rank's own tokens routed to each expert, [layers, experts], by phase."""
        return {"prefill": self.prefill_LE, "decode": self.decode_LE}

    @property
    def balance(self) -> float:
        """Return max/mean tokens a rank since the beginning; 1.0 before any token."""
        mean = float(self.mean_L.sum())
        return int(self.max_split_L.sum()) / mean if mean else 1.0
