"""The receiving side of transports whose library reads: offered chunks are fetched straight into pages.

The same listening socket serves senders that have no such library and send over TCP, where the
deployment leaves the choice to the hosts. Reads end in their order, a connection; while any is
under way the thread looks at the library between short naps, else it sleeps as with TCP.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import Kind
from fourlane.engine.kv_transfer.library import Exposure
from fourlane.engine.kv_transfer.offers import nap_after
from fourlane.engine.kv_transfer.reassembly import State
from fourlane.engine.kv_transfer.tcp import TcpReceiver, endpoint_of
from fourlane.errors import ProtocolError, TransferError
from fourlane.lanes.connections import LaneEnd
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from fourlane.engine.kv_transfer.frames import Header
    from fourlane.engine.kv_transfer.inlet import Inlet
    from fourlane.engine.kv_transfer.library import Library, Peer, Read
    from fourlane.engine.kv_transfer.reassembly import Reservation
    from fourlane.engine.kv_transfer.storage import KvStorage
    from fourlane.engine.seal import Secret

__all__ = ["Reader", "library_receiver"]

_log = logging.getLogger(__name__)
_GRACE_S = 2.0
"""How long reads from a sender that is gone, or of a receiver that closes, may take to find out."""


@dataclass(slots=True)
class _Fetch:
    """A chunk that is being read."""

    reservation: Reservation
    header: Header
    parts: list[memoryview]
    read: Read
    due_at: float


class Reader(TcpReceiver):
    """A receiver that fetches what senders offer. Closes the library.

    Args:
        also_tcp: accept senders that send over TCP as well.
        library: not used by any other thread from now on.
        The rest: see `Receiver`.
    """

    library: Library
    """Set before `start`."""

    def equip(self, library: Library, *, also_tcp: bool) -> None:
        """Say with what to read; before `start`."""
        self.library = library
        self._storage = self._storage.with_arena()
        buffer = self._storage.landing_buffer
        library.use(_address_of(buffer), buffer.nbytes)
        self.accepts = {library.name, "tcp"} if also_tcp else {library.name}
        if not also_tcp:
            self._mine = msgspec.structs.replace(self._mine, transport=library.name)
        self._peers: dict[Inlet, tuple[Peer, Exposure]] = {}
        self._unreachable: dict[Inlet, str] = {}
        self._fetches: dict[Inlet, deque[_Fetch]] = {}
        self._moved_at = 0.0

    def take(self, inlet: Inlet, header: Header, payload: bytes) -> bool:
        """Take note of a sender's memory, or fetch a chunk from it."""
        if inlet.transport != self.library.name:
            return False
        if header.kind == Kind.MEMORY:
            self._meet(inlet, payload)
        elif header.kind == Kind.OFFERED:
            self._fetch(inlet, header, payload)
        else:
            return False
        return True

    def _meet(self, inlet: Inlet, payload: bytes) -> None:
        try:
            exposure = msgspec.msgpack.decode(payload, type=Exposure)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"malformed description of memory: {error}") from error
        if exposure.library != self.library.name or inlet in self._peers or inlet in self._unreachable:
            raise ProtocolError(f"memory of {exposure.library}: expected {self.library.name}, once")
        try:
            self._peers[inlet] = (self.library.connect(exposure), exposure)
        except TransferError as error:
            _log.warning("%s: nothing can be read from %s: %s", self._mine.name, inlet.name, error)
            self._unreachable[inlet] = str(error)

    def _fetch(self, inlet: Inlet, header: Header, payload: bytes) -> None:
        if inlet in self._unreachable:
            self._decline(inlet, header, self._unreachable[inlet])
            return
        peer, exposure = self._peers.get(inlet, (None, None))
        if peer is None or exposure is None or len(payload) != frames.OFFSET.size:
            raise self._broken(inlet, header, "a chunk was offered without saying where it is")
        (offset,) = frames.OFFSET.unpack(payload)
        size = header.tokens * self._storage.geometry.token_bytes * 2
        if offset + size > exposure.size:
            raise self._broken(inlet, header, f"{size} bytes at {offset}: the sender's memory has {exposure.size}")
        claimed = self._claim(inlet, header)
        if claimed is None or not self._begin_read(claimed[0]):
            inlet.reply(Kind.UNREAD, header.sequence_id)
            return
        reservation, parts = claimed
        now = time.monotonic()
        reservation.active_at = now
        try:
            spans = reservation.landing.pages.spans(header.layer, header.first_token, header.tokens)
            read = peer.read(offset, spans)
        except TransferError as error:
            self._ended(inlet, _Fetch(reservation, header, parts, _NOTHING, now), str(error))
            return
        if not self._fetches:
            self._moved_at = now
        fetch = _Fetch(reservation, header, parts, read, now + self._timeout_s)
        self._fetches.setdefault(inlet, deque()).append(fetch)

    def _decline(self, inlet: Inlet, header: Header, why: str) -> None:
        """Fail the sequence of a chunk that cannot be read, and answer the offer."""
        claimed = self._claim(inlet, header)
        if claimed is not None:
            coverage = claimed[0].coverage
            self._give_up(inlet, claimed[0], f"nothing can be read from {inlet.name}: {why} ({coverage})")
        inlet.reply(Kind.UNREAD, header.sequence_id)

    def _begin_read(self, reservation: Reservation) -> bool:
        """Count a read into a sequence's pages; False if they are not its sender's any more."""
        with reservation.writing:
            if reservation.state is not State.FLOWING:
                return False
            reservation.reads += 1
        return True

    def work(self) -> float | None:
        """Look at the oldest read of each sender."""
        if not self._fetches:
            return None
        if self.library.needs_advancing:
            self.library.advance()
        for inlet, fetches in list(self._fetches.items()):
            while fetches and self._settle(inlet, fetches[0]):
                self._moved_at = time.monotonic()
            if not fetches:
                self._fetches.pop(inlet, None)
                self._part(inlet)
        return nap_after(time.monotonic() - self._moved_at) if self._fetches else None

    def _settle(self, inlet: Inlet, fetch: _Fetch) -> bool:
        """Deal with a read that has ended; False if it goes on."""
        failure = ""
        try:
            if not fetch.read.done():
                if time.monotonic() >= fetch.due_at:
                    self._overdue_read(inlet, fetch)
                return False
        except TransferError as error:
            failure = str(error)
        self._fetches[inlet].popleft()
        self._ended(inlet, fetch, failure)
        return True

    def _ended(self, inlet: Inlet, fetch: _Fetch, failure: str) -> None:
        """Check what was read, and do what waited for it."""
        reservation = fetch.reservation
        with reservation.writing:
            reservation.reads -= 1
            wanted = reservation.state is State.FLOWING and reservation.owner is inlet.session
        if inlet.sock.fileno() >= 0:
            self._guarded(inlet, lambda: self._judge(inlet, fetch, failure, wanted=wanted))
        if reservation.reads:
            return
        if reservation.state is State.STOPPING:
            self._released(reservation, failure)
        elif reservation.state is State.FLOWING and reservation.finish is not None and inlet.sock.fileno() >= 0:
            finish = reservation.finish
            self._guarded(inlet, lambda: self._finish(inlet, finish))

    def _judge(self, inlet: Inlet, fetch: _Fetch, failure: str, *, wanted: bool) -> None:
        """Check what was read, if its sequence still wants it, and answer the offer."""
        header, reservation = fetch.header, fetch.reservation
        if wanted and not failure and self.landed(inlet, reservation, header, fetch.parts):
            return
        if wanted and failure:
            where = f"tokens {header.first_token} to {header.first_token + header.tokens} of layer {header.layer}"
            why = f"{where} could not be read from {inlet.name}: {failure} ({reservation.coverage})"
            self._give_up(inlet, reservation, why)
        inlet.reply(Kind.UNREAD, header.sequence_id)

    def _overdue_read(self, inlet: Inlet, fetch: _Fetch) -> None:
        """End a read that takes too long: without that its pages could never be used again."""
        fetch.due_at = time.monotonic() + self._timeout_s
        _log.warning("%s: a read from %s does not end; stopping all reads", self._mine.name, inlet.name)
        try:
            self.library.stop_reads()
        except TransferError as error:
            _log.error("%s: %s: closing the connections that need it", self._mine.name, error)
            for other in list(self._peers):
                self._hang_up(other, f"{self._mine.name} lost its transfer library")

    def left(self, inlet: Inlet) -> None:
        """Let the reads from a sender that is gone find out soon, and forget it when they have."""
        self._unreachable.pop(inlet, None)
        fetches = self._fetches.get(inlet)
        if fetches is None:
            self._part(inlet)
            return
        for fetch in fetches:
            fetch.due_at = min(fetch.due_at, time.monotonic() + _GRACE_S)

    def _part(self, inlet: Inlet) -> None:
        if inlet.sock.fileno() < 0 and inlet in self._peers:
            self._peers.pop(inlet)[0].close()

    def stop_work(self) -> None:
        """Let reads end, then close the library, which ends the rest."""
        until = time.monotonic() + min(_GRACE_S, self._timeout_s)
        while self._fetches and time.monotonic() < until:
            time.sleep(self.work() or 0)
        self.library.close()
        for inlet, fetches in list(self._fetches.items()):
            for fetch in fetches:
                self._ended(inlet, fetch, "the receiver was closed")
        self._fetches.clear()
        self._peers.clear()


class _Nothing:
    """A read that was never begun."""

    def done(self) -> bool:
        """Return True."""
        return True


_NOTHING = _Nothing()


def library_receiver(  # noqa: PLR0913 - what identifies us, and what we read with
    storage: KvStorage,
    library: Library,
    *,
    listeners: Sequence[socket.socket],
    name: str,
    secret: Secret,
    timeout_s: float,
    also_tcp: bool = False,
    lane: LaneEnd | None = None,
) -> Reader:
    """Start a receiver that reads with a library, and closes it in the end.

    Args:
        storage: the cache whose pages are filled.
        library: with what.
        listeners: from `listen_at`; offers come over TCP to the first.
        name, secret, timeout_s: see `Receiver`.
        also_tcp: let senders without the library send over TCP.
        lane: marks the connections over which offers come; None: by the default.

    Raises:
        TransferError: the library refuses the memory.
    """
    scheme = f"{library.name}+tcp" if also_tcp else library.name
    endpoint = f"{scheme}://{endpoint_of(listeners)}"
    try:
        reader = Reader(listeners, endpoint, storage, name=name, secret=secret, timeout_s=timeout_s)
        reader.equip(library, also_tcp=also_tcp)
        reader.lane = lane or LaneEnd.default(TrafficClass.KV)
    except BaseException:
        with suppress(Exception):
            library.close()
        raise
    reader.start()
    return reader


def _address_of(buffer: memoryview) -> int:
    return np.frombuffer(buffer, dtype=np.uint8).ctypes.data
