"""Memory of a fixed number of slots, from which another process reads chunks of KV.

Bookkeeping only; who may read, and when a slot is free again, is told by `offers`.
"""

from __future__ import annotations

import mmap
from collections import deque

import numpy as np

__all__ = ["Ring"]


class Ring:
    """Slots of equal size in memory of its own, handed out to sequences.

    Args:
        slots: how many chunks can wait to be read.
        slot_bytes: the most bytes of a chunk.
    """

    def __init__(self, *, slots: int, slot_bytes: int) -> None:
        self.slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.size = slots * self.slot_bytes
        self._memory = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.bytes = np.frombuffer(self._memory, dtype=np.uint8)
        self.address: int = self.bytes.ctypes.data
        self._free = deque(range(slots))
        self._taken: dict[int, deque[int]] = {}

    @property
    def has_room(self) -> bool:
        """Tell whether a slot is free."""
        return bool(self._free)

    @property
    def idle(self) -> bool:
        """Tell whether no slot is taken."""
        return not self._taken

    def take(self, sequence_id: int) -> int:
        """Give a sequence a free slot; return where it begins, in bytes."""
        slot = self._free.popleft()
        self._taken.setdefault(sequence_id, deque()).append(slot)
        return slot * self.slot_bytes

    def give_back(self, sequence_id: int) -> None:
        """Free the slot that a sequence has had the longest."""
        slots = self._taken.get(sequence_id)
        if slots:
            self._free.append(slots.popleft())
            if not slots:
                del self._taken[sequence_id]
