"""A transfer library within one process, whose reads can be held, failed and counted."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import TYPE_CHECKING

from fourlane.engine.kv_transfer.library import Exposure
from fourlane.errors import TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence


class MemoryLibrary:
    """Copies memory. As with UCX over TCP, a read goes on only while its owner and its peer advance."""

    name = "memory"
    needs_advancing = True

    def __init__(self, *, held: bool = False) -> None:
        self.held = held
        self.fails = ""
        self.reads: list[MemoryRead] = []
        self.used: list[tuple[int, int]] = []
        self.stops = 0
        self.advanced = 0
        self.closed = False
        self.peers = 0

    def expose(self, address: int, size: int) -> Exposure:
        return Exposure(library=self.name, description=b"here", address=address, size=size)

    def use(self, address: int, size: int) -> None:
        self.used.append((address, size))

    def connect(self, exposure: Exposure) -> MemoryPeer:
        if exposure.description != b"here":
            raise TransferError("no such process")
        self.peers += 1
        return MemoryPeer(self, exposure)

    def advance(self) -> None:
        self.advanced += 1
        for read in self.reads:
            if not self.held:
                read.go()

    def stop_reads(self) -> None:
        self.stops += 1
        for read in self.reads:
            read.over = read.over or "stopped"

    def close(self) -> None:
        self.stop_reads()
        self.closed = True


class MemoryPeer:
    def __init__(self, library: MemoryLibrary, exposure: Exposure) -> None:
        self._library = library
        self._exposure = exposure

    def read(self, offset: int, spans: Sequence[tuple[int, int]]) -> MemoryRead:
        if self._library.fails == "at once":
            raise TransferError("it broke at once")
        read = MemoryRead(self._exposure.address + offset, spans, self._library)
        self._library.reads.append(read)
        return read

    def close(self) -> None:
        self._library.peers -= 1


class MemoryRead:
    def __init__(self, source: int, spans: Sequence[tuple[int, int]], library: MemoryLibrary) -> None:
        self._left = deque(spans)
        self._source = source
        self._library = library
        self.over = ""

    def go(self) -> None:
        """Copy one span, unless it has been stopped."""
        if self._left and not self.over:
            address, size = self._left.popleft()
            ctypes.memmove(address, self._source, size)
            self._source += size

    def done(self) -> bool:
        if not self.over and self._library.fails == "later":
            self.over = "it broke later"
        if self.over:
            raise TransferError(self.over)
        return not self._left
