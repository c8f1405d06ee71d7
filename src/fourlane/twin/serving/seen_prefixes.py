"""What the gateway believes prefill ranks to have in their prefix caches: what it sent them last.

As `gateway.ranks.RankView` remembers it, as many pages as the rank has, but for all ranks at once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fourlane.twin.serving.prompt_names import PromptNames

__all__ = ["SeenPrefixes"]


class SeenPrefixes:
    """Runs by the ranks that were sent them: a bit a rank."""

    def __init__(self, ranks: int, pages: int, names: PromptNames) -> None:
        self._ranks = ranks
        self.pages = pages
        self._names = names
        self._holders: dict[int, int] = {}
        self._of: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(ranks)]
        self._used = [0] * ranks

    def tokens(self, runs: Sequence[int], prompt_tokens: int) -> NDArray[np.int64]:
        """Return how many leading tokens of a prompt each rank has seen, less than all."""
        cached_G = np.zeros(self._ranks, np.int64)
        mask = (1 << self._ranks) - 1
        depth = 0
        for run in runs:
            still = self._holders.get(run, 0) & mask
            if depth and still != mask:
                self._set(cached_G, mask & ~still, depth)
            mask = still
            if not mask:
                return cached_G
            depth = min(self._names.end_pages[run] * self._names.block_size, prompt_tokens - 1)
        self._set(cached_G, mask, depth)
        return cached_G

    def remember(self, rank: int, runs: Sequence[int]) -> None:
        """Note that these runs will be in a rank's cache; the oldest give way."""
        seen, bit, pages_of = self._of[rank], 1 << rank, self._names.pages
        for run in runs:
            if run in seen:
                seen.move_to_end(run)
                continue
            seen[run] = None
            self._used[rank] += pages_of[run]
            self._holders[run] = self._holders.get(run, 0) | bit
        while self._used[rank] > max(1, self.pages):
            self._drop(rank, seen.popitem(last=False)[0])

    def forget(self, rank: int) -> None:
        """Forget a rank's: its process is another one."""
        while self._of[rank]:
            self._drop(rank, self._of[rank].popitem()[0])

    def _drop(self, rank: int, run: int) -> None:
        self._used[rank] -= self._names.pages[run]
        left = self._holders[run] & ~(1 << rank)
        if left:
            self._holders[run] = left
        else:
            del self._holders[run]

    def _set(self, cached_G: NDArray[np.int64], mask: int, depth: int) -> None:
        """Write `depth` where a rank's bit is set."""
        if mask & (mask - 1) == 0:
            cached_G[mask.bit_length() - 1] = depth
            return
        octets = np.frombuffer(mask.to_bytes(-(-self._ranks // 8), "little"), np.uint8)
        bits_G = np.unpackbits(octets, count=self._ranks, bitorder="little").view(np.bool_)
        cached_G[bits_G] = depth
