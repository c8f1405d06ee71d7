"""What a transport's sending side is: an outlet a receiver, which a link (`sender`) drives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

    from fourlane.engine.kv_transfer.pages import SequencePages
    from fourlane.engine.kv_transfer.stream import Chunk

__all__ = ["DirectOutlet", "Outlet"]


class Outlet(Protocol):
    """The way to one receiver. For the link's thread only, except `interrupt`, and `connect` of several paths."""

    needs_grant: bool
    """The receiver must have granted its pages before anything can be put."""
    paths: int
    """How many connections there shall be."""

    def connect(self, path: int) -> socket.socket:
        """Connect, shake hands and return the socket, which does not block.

        Raises:
            OSError, FourlaneError: it cannot be done; the reason.
        """
        ...

    def grant(self, blocks: list[int]) -> SequencePages:
        """Return the receiver's pages with these numbers, which are granted to a sequence.

        Raises:
            ProtocolError: there are no such pages.
        """
        ...

    def has_room(self) -> bool:
        """Tell whether a chunk can be put now; if not, it can when others have been answered."""
        ...

    def put(self, sequence_id: int, chunk: Chunk, pages: SequencePages | None) -> list[memoryview]:
        """Bring a chunk on its way; return what remains to be written to the socket: a header first.

        Args:
            sequence_id: whose it is.
            chunk: K and V.
            pages: from `grant`; None without `needs_grant`.
        """
        ...

    def answered(self, sequence_id: int) -> None:
        """Take note that the receiver has done with the oldest chunk of a sequence that was not answered yet."""
        ...

    def nap_s(self) -> float | None:
        """Return how soon `advance` must be called again; None: it need not be."""
        ...

    def advance(self) -> None:
        """Get on with what the receiver reads here."""
        ...

    def interrupt(self) -> None:
        """Make a `connect` under way in another thread fail."""
        ...

    def close(self) -> None:
        """Close the connection; from now on nothing is written to anybody's pages."""
        ...


class DirectOutlet:
    """An outlet whose chunks have left when they are put: nothing to keep, nothing to advance."""

    paths = 1

    def has_room(self) -> bool:
        """Return True."""
        return True

    def answered(self, sequence_id: int) -> None:
        """Do nothing."""

    def nap_s(self) -> float | None:
        """Return None."""
        return None

    def advance(self) -> None:
        """Do nothing."""
