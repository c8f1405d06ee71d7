"""One connection of a link: what is being written to it, what has come from it.

The link (`sender`) decides what goes over which; its thread is the only one here.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import HEADER_BYTES, Header
from fourlane.errors import ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from fourlane.engine.kv_transfer.stream import Item

__all__ = ["Wire"]

_MOST_VIEWS = 512
_MOST_ANSWER = 1 << 24


class Wire:
    """A connected socket, which does not block, and the frame that is leaving through it.

    `unchecked`, by sequence, are the chunks that left through it and of which the receiver has not
    said that it has them; it says so in their order.
    """

    def __init__(self, sock: socket.socket, path: int) -> None:
        self.sock = sock
        self.path = path
        self.full = False
        self.moved_at = time.monotonic()
        self.sending: Item | None = None
        self.began = 0.0
        self.unchecked: dict[int, deque[Item]] = {}
        self._out: list[memoryview] = []
        self._answers = bytearray()

    def sent(self) -> Item | None:
        """Return the frame that has left, once; a chunk is unchecked from now on."""
        item, self.sending = self.sending, None
        if item is not None and item.chunk is not None and item.stream is not None:
            self.unchecked.setdefault(item.stream.sequence_id, deque()).append(item)
        return item

    def checked(self, sequence_id: int) -> None:
        """Note that the receiver has the oldest unchecked chunk of a sequence."""
        items = self.unchecked.get(sequence_id)
        if items:
            items.popleft()
            if not items:
                del self.unchecked[sequence_id]

    @property
    def busy(self) -> bool:
        """Tell whether a frame has not left yet."""
        return bool(self._out)

    def begin(self, item: Item, views: list[memoryview], began: float) -> None:
        """Take the next frame."""
        self.sending, self._out, self.began = item, views, began

    def write(self) -> bool:
        """Write until the frame is out (True) or the socket is full.

        Raises:
            OSError: the connection is gone.
        """
        try:
            while self._out:
                self._advance(self.sock.sendmsg(self._out[:_MOST_VIEWS]))
        except BlockingIOError:
            self.full = True
            return False
        self.full = False
        return True

    def read(self) -> Iterator[tuple[Header, bytes]]:
        """Take what the socket has; yield the answers that are whole.

        Raises:
            OSError: the connection is gone.
            ProtocolError: what came is no answer.
        """
        chunk = self.sock.recv(1 << 16)
        if not chunk:
            raise ConnectionError("the receiver hung up")
        self.moved_at = time.monotonic()
        self._answers += chunk
        while len(self._answers) >= HEADER_BYTES:
            header = frames.unpack(self._answers[:HEADER_BYTES])
            end = HEADER_BYTES + header.payload_bytes
            if end > _MOST_ANSWER:
                raise ProtocolError(f"an answer of {end} bytes")
            if len(self._answers) < end:
                return
            payload = bytes(self._answers[HEADER_BYTES:end])
            del self._answers[:end]
            yield header, payload

    def unfinished(self) -> list[Item]:
        """Return what must be sent again now that the connection is gone, in order."""
        again = [item._replace(again=True, counted=True) for items in self.unchecked.values() for item in items]
        if self.sending is not None:
            again.append(self.sending._replace(again=self.sending.chunk is not None))
        return again

    def _advance(self, count: int) -> None:
        self.moved_at = time.monotonic()
        done = 0
        while count and count >= len(self._out[done]):
            count -= len(self._out[done])
            done += 1
            if done == len(self._out):
                break
        del self._out[:done]
        if count:
            self._out[0] = self._out[0][count:]
