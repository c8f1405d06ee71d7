"""The sending side of both built-in transports: one thread and one connection a receiver.

The computing thread only appends to a queue. The thread takes frames from it in order, over all
streams, and hands them to the transport's `Outlet`; in between it reads the receiver's answers.
"""

from __future__ import annotations

import logging
import os
import select
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import HEADER_BYTES, Header, Kind
from fourlane.engine.kv_transfer.stream import Item, Stream
from fourlane.errors import FourlaneError, ProtocolError, TransferError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fourlane.engine.kv_transfer.contract import Delivery, KvGeometry
    from fourlane.engine.kv_transfer.pages import SequencePages
    from fourlane.engine.kv_transfer.stream import Chunk
    from fourlane.engine.messages import KvAddress

__all__ = ["Link", "Outlet", "Sender"]

_log = logging.getLogger(__name__)
_MOST_VIEWS = 512
_MOST_ANSWER = 1 << 24
_JOIN_TIMEOUT_S = 10.0
_CHECK_S = 1.0


class Outlet(Protocol):
    """One connection of a transport. For the link's thread only, except `interrupt`."""

    needs_grant: bool
    """The receiver must have granted its pages before anything can be put."""

    def connect(self) -> socket.socket:
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

    def put(self, sequence_id: int, chunk: Chunk, pages: SequencePages | None) -> list[memoryview]:
        """Bring a chunk on its way; return what remains to be written to the socket.

        Args:
            sequence_id: whose it is.
            chunk: K and V.
            pages: from `grant`; None without `needs_grant`.
        """
        ...

    def interrupt(self) -> None:
        """Make a `connect` under way in another thread fail."""
        ...

    def close(self) -> None:
        """Close the connection; from now on nothing is written to anybody's pages."""
        ...


class Link:
    """A connection to one receiver, and the thread that serves it."""

    def __init__(self, owner: str, outlet: Outlet, *, timeout_s: float, count_bytes: Callable[[int], None]) -> None:
        self._owner = owner
        self._outlet = outlet
        self._timeout_s = timeout_s
        self._count_bytes = count_bytes
        self._gate = threading.Lock()
        self._queue: deque[Item] = deque()
        self._streams: dict[int, Stream] = {}
        self._dead = False
        self._closing = False
        self._rung = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._out: list[memoryview] = []
        self._sending: Item | None = None
        self._began = 0.0
        self._moved_at = 0.0
        self._answers = bytearray()
        self._thread = threading.Thread(target=self._run, name=f"kv-sender to {owner}", daemon=True)

    # called by any thread

    def start(self) -> None:
        """Start the thread, which connects."""
        self._thread.start()

    def register(self, stream: Stream) -> bool:
        """Take a new stream on; False if the connection is lost."""
        with self._gate:
            if self._dead:
                return False
            self._streams[stream.sequence_id] = stream
        self.submit(Item(stream, Header(Kind.OPEN, stream.sequence_id)))
        return True

    def submit(self, item: Item) -> None:
        """Queue something to send."""
        self._queue.append(item)
        if not self._rung:
            self._ring()

    def close(self) -> None:
        """Stop the thread; open streams fail."""
        self._closing = True
        self._outlet.interrupt()
        self._ring()
        self._thread.join(_JOIN_TIMEOUT_S)

    def _ring(self) -> None:
        with self._gate:
            if not self._dead:
                self._rung = True
                os.eventfd_write(self._wake, 1)

    # the thread

    def _run(self) -> None:
        reason = "the sender's thread failed"
        try:
            self._serve(self._outlet.connect())
        except (OSError, FourlaneError) as error:
            reason = str(error)
        finally:
            self._end(f"KV to {self._owner}: {'the sender was closed' if self._closing else reason}")

    def _end(self, reason: str) -> None:
        """Close first, so that nothing is written to anybody's pages any more, then tell the streams."""
        self._outlet.close()
        with self._gate:
            self._dead = True
            os.close(self._wake)
            streams = list(self._streams.values())
            self._streams.clear()
        if streams and not self._closing:
            _log.warning("%s", reason)
        for stream in streams:
            stream.fail(reason)
        self._queue.clear()

    def _serve(self, sock: socket.socket) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        self._moved_at = time.monotonic()
        full = False
        while not self._closing:
            poller.register(sock, select.POLLIN | (select.POLLOUT if full else 0))
            for descriptor, events in poller.poll(self._patience_ms(full=full)):
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                    self._rung = False
                elif events & ~select.POLLOUT:
                    self._read(sock)
            full = self._write(sock)
            self._check_times(full=full)

    def _patience_ms(self, *, full: bool) -> float | None:
        if not full and (self._out or self._queue):
            return 0
        return min(_CHECK_S, self._timeout_s / 4) * 1000 if full or self._streams else None

    def _write(self, sock: socket.socket) -> bool:
        """Write until a frame is out, nothing is left, or the socket is full (True)."""
        if not self._out and not self._next():
            return False
        try:
            while self._out:
                self._advance(sock.sendmsg(self._out[:_MOST_VIEWS]))
        except BlockingIOError:
            return True
        self._sent()
        return False

    def _next(self) -> bool:
        """Take the next frame that is still wanted out of the queue."""
        while self._queue:
            item = self._queue.popleft()
            stream = item.stream
            if stream is not None and not self._wanted(item, stream):
                continue
            if stream is not None and stream.pages is None and self._outlet.needs_grant and self._must_wait(item):
                stream.parked.append(item)
                continue
            self._began, self._sending = time.monotonic(), item
            self._out = self._prepare(item)
            return True
        return False

    def _wanted(self, item: Item, stream: Stream) -> bool:
        return not stream.ended or (item.header is not None and item.header.kind == Kind.ABORT)

    def _must_wait(self, item: Item) -> bool:
        return item.header is None or item.header.kind == Kind.FINISH

    def _prepare(self, item: Item) -> list[memoryview]:
        if item.chunk is None:
            assert item.header is not None
            return [memoryview(frames.pack(item.header) + item.text)]
        stream = item.stream
        assert stream is not None
        stream.layers_begun.add(item.chunk.layer)
        stream.chunk_begins(self._began)
        return self._outlet.put(stream.sequence_id, item.chunk, stream.pages)

    def _advance(self, count: int) -> None:
        self._moved_at = time.monotonic()
        done = 0
        while count and count >= len(self._out[done]):
            count -= len(self._out[done])
            done += 1
            if done == len(self._out):
                break
        del self._out[:done]
        if count:
            self._out[0] = self._out[0][count:]

    def _sent(self) -> None:
        """Account for a frame that is out."""
        item, self._sending = self._sending, None
        if item is None or item.stream is None:
            return
        now, stream = time.monotonic(), item.stream
        if item.chunk is not None:
            size = 2 * item.chunk.k_THd.nbytes
            stream.sent_bytes += size
            self._count_bytes(size)
        elif item.header is not None and item.header.kind == Kind.FINISH:
            stream.waits_for, stream.waits_since = "an acknowledgement", self._began
        elif item.header is not None and item.header.kind == Kind.ABORT:
            self._streams.pop(stream.sequence_id, None)
        elif self._outlet.needs_grant:
            stream.waits_for, stream.waits_since = "its pages", now

    def _read(self, sock: socket.socket) -> None:
        chunk = sock.recv(1 << 16)
        if not chunk:
            raise ConnectionError("the receiver hung up")
        self._moved_at = time.monotonic()
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
            self._answer(header, payload)

    def _answer(self, header: Header, payload: bytes) -> None:
        stream = self._streams.get(header.sequence_id)
        if header.kind == Kind.NACK:
            if stream is not None:
                del self._streams[header.sequence_id]
                stream.fail(f"{self._owner} refused: {payload.decode(errors='replace')}")
            # After this line nothing of the sequence is written: whatever is queued has ended.
            self._queue.append(Item(None, Header(Kind.STOPPED, header.sequence_id)))
        elif stream is None:
            return
        elif header.kind == Kind.GRANT:
            stream.pages = self._outlet.grant(list(struct.unpack(f"!{len(payload) // 4}I", payload)))
            stream.waits_for = None
            self._queue.extendleft(reversed(stream.parked))
            stream.parked.clear()
        elif header.kind == Kind.CHECKED:
            stream.chunk_checked(time.monotonic())
        elif header.kind == Kind.ACK:
            stream.acknowledged(time.monotonic())
            del self._streams[header.sequence_id]
            stream.deliver()
        else:
            raise ProtocolError(f"unexpected answer of kind {header.kind}")

    def _check_times(self, *, full: bool) -> None:
        now = time.monotonic()
        if full and now - self._moved_at > self._timeout_s:
            raise TransferError(f"the receiver took nothing for {self._timeout_s:g} s")
        for stream in list(self._streams.values()):
            if stream.waits_for is not None and now - stream.waits_since > self._timeout_s:
                what = f"KV to {self._owner}: no answer for {self._timeout_s:g} s while waiting for {stream.waits_for}"
                stream.fail(what)
                text = what.encode()
                abort = Header(Kind.ABORT, stream.sequence_id, payload_bytes=len(text))
                self._queue.append(Item(stream, abort, text))
                stream.waits_for = None


class Sender:
    """A `KvSender` over links made by a transport. See `contract` for its methods.

    Args:
        geometry: the shape of the caches, `blocks` aside.
        make_outlet: returns a new connection, not yet connected, to a receiver.
        timeout_s: how long a receiver may take nothing, or leave a question unanswered.
    """

    def __init__(self, geometry: KvGeometry, *, make_outlet: Callable[[KvAddress], Outlet], timeout_s: float) -> None:
        self._geometry = geometry
        self._make_outlet = make_outlet
        self._timeout_s = timeout_s
        self._gate = threading.Lock()
        self._links: dict[str, Link] = {}
        self._bytes = 0
        self._counting = threading.Lock()
        self._closed = False

    def open(
        self,
        sequence_id: int,
        target: KvAddress,
        *,
        on_delivered: Callable[[Delivery], None],
        on_failed: Callable[[str], None],
    ) -> Stream:
        """Begin a stream; a connection that is lost or not there yet is made first.

        Raises:
            TransferError: the sender is closed, or there is no transport for the endpoint.
        """
        with self._gate:
            if self._closed:
                raise TransferError("the KV sender is closed")
            link = self._links.get(target.endpoint)
            if link is not None:
                stream = Stream(sequence_id, link, self._geometry, on_delivered=on_delivered, on_failed=on_failed)
                if link.register(stream):
                    return stream
            outlet = self._make_outlet(target)
            link = Link(target.owner, outlet, timeout_s=self._timeout_s, count_bytes=self._count)
            self._links[target.endpoint] = link
            stream = Stream(sequence_id, link, self._geometry, on_delivered=on_delivered, on_failed=on_failed)
            link.register(stream)
            link.start()
            return stream

    def bytes_sent(self) -> int:
        """Return payload bytes sent since the beginning."""
        return self._bytes

    def close(self) -> None:
        """Stop threads and close sockets; open streams fail."""
        with self._gate:
            self._closed = True
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            link.close()

    def _count(self, size: int) -> None:
        with self._counting:
            self._bytes += size
