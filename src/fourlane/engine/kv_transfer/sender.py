"""The sending side of every transport: a thread a receiver, and one connection or several.

The computing thread only appends to a queue. The thread takes frames from it in order, over all
streams, and hands them to the transport's `Outlet`; in between it reads the receiver's answers.
With several connections chunks go over whichever has room; one that is lost leaves its unchecked
chunks to the others.
"""

from __future__ import annotations

import logging
import os
import select
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import Header, Kind
from fourlane.engine.kv_transfer.stream import Item, Stream
from fourlane.engine.kv_transfer.wire import Wire
from fourlane.errors import FourlaneError, ProtocolError, TransferError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fourlane.engine.kv_transfer.contract import Delivery, KvGeometry
    from fourlane.engine.kv_transfer.outlet import Outlet
    from fourlane.engine.messages import KvAddress

__all__ = ["Link", "Sender"]

_log = logging.getLogger(__name__)
_JOIN_TIMEOUT_S = 10.0
_CHECK_S = 1.0
_SILENT_SHARE = 1 / 3
"""Of the timeout: how long a connection that owes answers may be silent while there are others."""
_RECONNECT_S = 5.0


class Link:
    """The connections to one receiver, and the thread that serves them."""

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
        self._stuck = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = select.poll()
        self._poller.register(self._wake, select.POLLIN)
        self._wires: list[Wire] = []
        self._arrived: deque[tuple[int, socket.socket | Exception]] = deque()
        self._connecting: set[int] = set()
        self._lost_at: dict[int, float] = {}
        self._reasons: dict[int, str] = {}
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

    # connections

    def _run(self) -> None:
        reason = "the sender's thread failed"
        try:
            if self._outlet.paths == 1:
                self._add(0, self._outlet.connect(0))
            else:
                for path in range(self._outlet.paths):
                    self._connect_beside(path)
            self._serve()
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
        for sock in [wire.sock for wire in self._wires] + [found for _, found in self._arrived]:
            if not isinstance(sock, Exception):
                sock.close()
        if streams and not self._closing:
            _log.warning("%s", reason)
        for stream in streams:
            stream.fail(reason)
        self._queue.clear()

    def _connect_beside(self, path: int) -> None:
        """Connect one of several paths on a thread of its own: one that is dead must not hold the others up."""
        self._connecting.add(path)

        def connect() -> None:
            found: socket.socket | Exception
            try:
                found = self._outlet.connect(path)
            except (OSError, FourlaneError) as error:
                found = error
            with self._gate:
                if not self._dead:
                    self._arrived.append((path, found))
                    os.eventfd_write(self._wake, 1)
                    return
            if not isinstance(found, Exception):
                found.close()

        threading.Thread(target=connect, name=f"kv-connect {path} to {self._owner}", daemon=True).start()

    def _welcome(self) -> None:
        """Take connections that have been made, and note those that could not be.

        Raises:
            TransferError: there is none, and none to wait for.
        """
        while self._arrived:
            path, found = self._arrived.popleft()
            self._connecting.discard(path)
            if isinstance(found, Exception):
                self._note_loss(path, str(found))
            else:
                self._add(path, found)
        if not self._wires and not self._connecting:
            raise TransferError("; ".join(dict.fromkeys(self._reasons.values())))

    def _add(self, path: int, sock: socket.socket) -> None:
        self._wires.append(Wire(sock, path))
        if path in self._lost_at:
            _log.info("KV to %s: connection %d of %d is back", self._owner, path + 1, self._outlet.paths)
            del self._lost_at[path]

    def _note_loss(self, path: int, reason: str) -> None:
        self._lost_at[path], self._reasons[path] = time.monotonic(), reason
        if self._outlet.paths > 1 and not self._closing:
            left = f"{len(self._wires)} of {self._outlet.paths} are left"
            _log.warning("KV to %s: connection %d lost: %s; %s", self._owner, path + 1, reason, left)

    def _lose(self, wire: Wire, reason: str) -> None:
        """Drop a connection; what it did not bring over goes over the others."""
        self._wires.remove(wire)
        self._poller.unregister(wire.sock)
        wire.sock.close()
        self._note_loss(wire.path, reason)
        for stream in self._streams.values():
            if stream.finished_over is not None and stream.finished_over[0] is wire:
                self._queue.appendleft(stream.finished_over[1])
                stream.finished_over = None
        self._queue.extendleft(reversed(wire.unfinished()))

    def _try_again(self, now: float) -> None:
        """Connect lost paths anew, while there is something to send."""
        for path, lost_at in self._lost_at.items():
            if path not in self._connecting and now - lost_at > _RECONNECT_S:
                self._lost_at[path] = now
                self._connect_beside(path)

    # the thread

    def _serve(self) -> None:
        while not self._closing:
            self._welcome()
            for descriptor, events in self._wait():
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                    self._rung = False
                elif events & ~select.POLLOUT:
                    self._read(next(wire for wire in self._wires if wire.sock.fileno() == descriptor))
            for wire in list(self._wires):
                self._write(wire)
            self._check_times()

    def _wait(self) -> list[tuple[int, int]]:
        """Sleep until there is something to do; a transport that must be advanced is, between naps."""
        for wire in self._wires:
            self._poller.register(wire.sock, select.POLLIN | (select.POLLOUT if wire.full else 0))
        patience, nap = self._patience_ms(), self._outlet.nap_s()
        if nap is None:
            return self._poller.poll(patience)
        self._outlet.advance()
        found = self._poller.poll(0)
        if not found and patience != 0:
            time.sleep(nap)
        return found

    def _patience_ms(self) -> float | None:
        if any(not wire.full and (wire.busy or (self._queue and not self._stuck)) for wire in self._wires):
            return 0
        return min(_CHECK_S, self._timeout_s / 4) * 1000 if self._streams or self._stuck else None

    def _write(self, wire: Wire) -> None:
        """Write until a frame is out, nothing is left, or the socket is full."""
        if not wire.busy and not self._next(wire):
            return
        try:
            if wire.write():
                self._sent(wire)
        except OSError as error:
            self._lose(wire, str(error))

    def _read(self, wire: Wire) -> None:
        try:
            for header, payload in wire.read():
                self._answer(wire, header, payload)
        except OSError as error:
            self._lose(wire, str(error))

    def _next(self, wire: Wire) -> bool:
        """Take the next frame that is still wanted out of the queue."""
        self._stuck = False
        while self._queue:
            item = self._queue.popleft()
            stream = item.stream
            if stream is not None and not self._wanted(item, stream):
                continue
            if stream is not None and self._must_wait(item, stream):
                continue
            if item.chunk is not None and not self._outlet.has_room():
                self._queue.appendleft(item)
                self._stuck = True
                return False
            began = time.monotonic()
            wire.begin(item, self._prepare(item, began), began)
            return True
        return False

    def _wanted(self, item: Item, stream: Stream) -> bool:
        return not stream.ended or (item.header is not None and item.header.kind == Kind.ABORT)

    def _must_wait(self, item: Item, stream: Stream) -> bool:
        """Put aside what has no pages yet, and a FINISH that could overtake chunks on other connections."""
        is_finish = item.header is not None and item.header.kind == Kind.FINISH
        if stream.pages is None and self._outlet.needs_grant and (item.header is None or is_finish):
            stream.parked.append(item)
            return True
        if is_finish and self._outlet.paths > 1 and stream.chunks_under_way:
            stream.held = item
            stream.waits_for, stream.waits_since = "its chunks to be confirmed", time.monotonic()
            return True
        return False

    def _prepare(self, item: Item, now: float) -> list[memoryview]:
        if item.chunk is None:
            assert item.header is not None
            return [memoryview(frames.pack(item.header) + item.text)]
        stream = item.stream
        assert stream is not None
        if item.again:
            views = self._outlet.put(stream.sequence_id, item.chunk, stream.pages)
            again = frames.unpack(bytes(views[0]))._replace(again=1)
            return [memoryview(frames.pack(again)), *views[1:]]
        stream.layers_begun.add(item.chunk.layer)
        stream.chunk_begins(now)
        return self._outlet.put(stream.sequence_id, item.chunk, stream.pages)

    def _sent(self, wire: Wire) -> None:
        """Account for a frame that is out."""
        item = wire.sent()
        if item is None or item.stream is None:
            return
        now, stream = time.monotonic(), item.stream
        if item.chunk is not None:
            if not item.counted:
                size = 2 * item.chunk.k_THd.nbytes
                stream.sent_bytes += size
                self._count_bytes(size)
        elif item.header is not None and item.header.kind == Kind.FINISH:
            stream.waits_for, stream.waits_since = "an acknowledgement", wire.began
            stream.finished_over = (wire, item)
        elif item.header is not None and item.header.kind == Kind.ABORT:
            self._drop(stream)
        elif self._outlet.needs_grant:
            stream.waits_for, stream.waits_since = "its pages", now

    def _drop(self, stream: Stream) -> None:
        """Forget a stream that has ended, and what it has on its way."""
        self._streams.pop(stream.sequence_id, None)
        for wire in self._wires:
            wire.unchecked.pop(stream.sequence_id, None)

    def _answer(self, wire: Wire, header: Header, payload: bytes) -> None:
        stream = self._streams.get(header.sequence_id)
        if header.kind in (Kind.CHECKED, Kind.UNREAD):
            self._outlet.answered(header.sequence_id)
            self._stuck = False
        if header.kind == Kind.NACK:
            if stream is not None:
                self._drop(stream)
                stream.fail(f"{self._owner} refused: {payload.decode(errors='replace')}")
            # After this line nothing of the sequence is written: whatever is queued has ended.
            self._queue.append(Item(None, Header(Kind.STOPPED, header.sequence_id)))
        elif stream is None or header.kind == Kind.UNREAD:
            return
        elif header.kind == Kind.GRANT:
            stream.pages = self._outlet.grant(list(struct.unpack(f"!{len(payload) // 4}I", payload)))
            stream.waits_for = None
            self._queue.extendleft(reversed(stream.parked))
            stream.parked.clear()
        elif header.kind == Kind.CHECKED:
            self._checked(wire, stream)
        elif header.kind == Kind.ACK:
            stream.acknowledged(time.monotonic())
            self._drop(stream)
            stream.deliver()
        else:
            raise ProtocolError(f"unexpected answer of kind {header.kind}")

    def _checked(self, wire: Wire, stream: Stream) -> None:
        wire.checked(stream.sequence_id)
        now = time.monotonic()
        stream.chunk_checked(now)
        if stream.held is None:
            return
        stream.waits_since = now
        if not stream.chunks_under_way:
            self._queue.appendleft(stream.held)
            stream.held = stream.waits_for = None

    def _check_times(self) -> None:
        now = time.monotonic()
        for wire in list(self._wires):
            self._check_wire(wire, now)
        if self._streams and self._lost_at and self._outlet.paths > 1:
            self._try_again(now)
        for stream in list(self._streams.values()):
            if stream.waits_for is not None and now - stream.waits_since > self._timeout_s:
                what = f"KV to {self._owner}: no answer for {self._timeout_s:g} s while waiting for {stream.waits_for}"
                stream.fail(what)
                text = what.encode()
                abort = Header(Kind.ABORT, stream.sequence_id, payload_bytes=len(text))
                self._queue.append(Item(stream, abort, text))
                stream.waits_for = None

    def _check_wire(self, wire: Wire, now: float) -> None:
        silent_s = now - wire.moved_at
        if len(self._wires) > 1 and (wire.full or wire.unchecked) and silent_s > self._timeout_s * _SILENT_SHARE:
            self._lose(wire, f"nothing moved for {silent_s:.1f} s")
        elif (wire.full or self._stuck) and silent_s > self._timeout_s:
            raise TransferError(f"the receiver took nothing for {self._timeout_s:g} s")


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
