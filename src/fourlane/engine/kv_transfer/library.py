"""The contract of a transfer library (NIXL, Mooncake): one-sided reads from another process's memory.

The decode rank reads; nobody writes to its memory from outside. So whatever dies, stalls or lies
on the prefill side, only reads of our own can still be putting bytes into pages, and we know which.
What is read, and what came of it, goes over a connection of our own (`offers`, `reader`).
Implementations: `nixl`, `mooncake`. How they are configured: `library_env`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Exposure", "Library", "LibraryStart", "Peer", "Read"]


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """How another process reads the memory that a prefill rank exposes.

    `description` is the library's own: NIXL's agent metadata, Mooncake's segment name.

    Units:
        address: where the memory begins in its process; size: bytes.
    """

    library: str
    description: bytes
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class LibraryStart:
    """How a library is started: for each sender's connection anew, and once for a receiver."""

    name: str
    start: Callable[[], Library]


class Read(Protocol):
    """Some bytes on their way into our memory."""

    def done(self) -> bool:
        """Tell whether all bytes are there; True means that no byte is written any more.

        Raises:
            TransferError: it failed, and no byte is written any more.
        """
        ...


class Peer(Protocol):
    """A process whose memory we can read."""

    def read(self, offset: int, spans: Sequence[tuple[int, int]]) -> Read:
        """Begin to read; returns at once.

        Args:
            offset: bytes from the beginning of the exposed memory; what follows is read in one piece.
            spans: (address, bytes) in our memory to fill in turn; within what was given to `Library.use`.

        Raises:
            TransferError: it cannot be begun; nothing is written.
        """
        ...

    def close(self) -> None:
        """Forget the process. Reads under way must have ended."""
        ...


class Library(Protocol):
    """A transfer library in this process. For one thread at a time; `nap_s` and `name` for any."""

    name: str
    """What the deployment file calls the transport."""
    needs_advancing: bool
    """Without `advance` a peer may not get on with what it reads here."""

    def expose(self, address: int, size: int) -> Exposure:
        """Let other processes read memory.

        Raises:
            TransferError: the library refuses.
        """
        ...

    def use(self, address: int, size: int) -> None:
        """Say which memory reads will fill.

        Raises:
            TransferError: the library refuses.
        """
        ...

    def connect(self, exposure: Exposure) -> Peer:
        """Return a process that exposes memory.

        Raises:
            TransferError: the description is not understood, or the process cannot be reached.
        """
        ...

    def advance(self) -> None:
        """Get on with what others read here, and with what is read. Quick."""
        ...

    def stop_reads(self) -> None:
        """End every read under way, of all peers; they fail, and no byte is written any more.

        Raises:
            TransferError: the library could not be started again.
        """
        ...

    def close(self) -> None:
        """End what is under way and free everything; no byte is written any more."""
        ...
