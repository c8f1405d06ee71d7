"""What an exchange counts while it runs: bytes on the lane, waiting, tokens an expert, balance."""

from __future__ import annotations

import numpy as np

__all__ = ["ExchangeCounters"]


class ExchangeCounters:
    """Running totals of one rank.

    `load_LE` [layers, experts]: tokens computed here. Balance is kept a layer, as sums over steps:
    `max_split_L` of the fullest rank's rows, `max_equal_L` of what they had been with each expert's
    tokens spread evenly over its replicas, `mean_L` of the mean. `balance` is sum of maxima over sum
    of means: what a pass really waits for.

    Units:
        wait_s: seconds blocked in `Pending.wait`; bytes_sent: payload bytes to other ranks.
    """

    def __init__(self, *, layers: int, experts: int) -> None:
        self.load_LE = np.zeros((layers, experts), dtype=np.int64)
        self.wait_s = 0.0
        self.bytes_sent = 0
        self.max_split_L = np.zeros(layers, dtype=np.int64)
        self.max_equal_L = np.zeros(layers, dtype=np.int64)
        self.mean_L = np.zeros(layers)

    def observe(self, layer: int, local_experts: np.ndarray, count_GE: np.ndarray, tokens_G: np.ndarray) -> None:
        """Add one layer of one step.

        Args:
            layer: which.
            local_experts: experts computed here.
            count_GE: [ranks, experts] tokens each rank routed to each expert.
            tokens_G: [ranks] rows each rank computes in this layer.
        """
        self.load_LE[layer, local_experts] += count_GE[:, local_experts].sum(axis=0)
        fullest = tokens_G.max()
        self.max_split_L[layer] += fullest
        self.max_equal_L[layer] += fullest
        self.mean_L[layer] += tokens_G.mean()

    def observe_alone(self, layer: int, count_E: np.ndarray) -> None:
        """Add one layer of one step of a group of one rank, which computes everything.

        Args:
            layer: which.
            count_E: [experts] tokens routed to each expert.
        """
        self.load_LE[layer] += count_E
        rows = count_E.sum()
        self.max_split_L[layer] += rows
        self.max_equal_L[layer] += rows
        self.mean_L[layer] += rows

    @property
    def balance(self) -> float:
        """Return max/mean tokens a rank since the beginning; 1.0 before any token."""
        mean = float(self.mean_L.sum())
        return int(self.max_split_L.sum()) / mean if mean else 1.0
