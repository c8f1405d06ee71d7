"""The receiving side of every transport: one thread, all connections.

The thread sleeps in epoll. It wakes for bytes, for a call from another thread, and for the next
moment at which something could have taken too long; without reservations there is no such moment.
"""

from __future__ import annotations

import logging
import os
import select
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

import msgspec

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import Header, Kind, Opening, Verdict
from fourlane.engine.kv_transfer.inlet import Inlet
from fourlane.engine.kv_transfer.reassembly import Coverage, Reservation, State, check_fit
from fourlane.engine.kv_transfer.session import Session
from fourlane.errors import FourlaneError, ProtocolError, TransferError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from fourlane.engine.kv_transfer.storage import KvStorage
    from fourlane.engine.seal import Secret

__all__ = ["Receiver"]

_log = logging.getLogger(__name__)
_HANDSHAKE_TIMEOUT_S = 10.0
_MOST_STRANGERS = 64
_BEFORE_FIRST_FRAME = 10
_JOIN_TIMEOUT_S = 10.0
_NEXT_CONNECTION_S = 1.0
"""How long a sender of several connections may be without any: the next may be under way when one is cut."""


class Receiver:
    """Base of all receivers: a `KvReceiver` behind listening sockets. See `contract` for its methods.

    Args:
        listeners: bound and listening; closed by `close`.
        endpoint: where senders connect.
        storage: the cache whose pages are filled.
        name: this rank, for messages.
        secret: the deployment's key.
        timeout_s: how long a stream that has begun may stand still. One that has not begun (its
            prompt waits in a queue) gets ten times as long.
    """

    transport: ClassVar[str]
    shares: ClassVar[bool]
    """Senders write to the pages themselves."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        endpoint: str,
        storage: KvStorage,
        *,
        name: str,
        secret: Secret,
        timeout_s: float,
    ) -> None:
        self.endpoint = endpoint
        self.accepts = {self.transport}
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._storage = storage
        self._mine = Opening.of(storage.geometry, name=name, transport=self.transport)
        self._secret = secret
        self._timeout_s = timeout_s
        self._reservations: dict[int, Reservation] = {}
        self._inlets: dict[int, Inlet] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._closing = False
        self._shut_down = False
        self._gate = threading.Lock()
        self._check_at = float("inf")
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._sessions: dict[str, Session] = {}
        for listener in listeners:
            listener.setblocking(False)  # noqa: FBT003 - the standard library's
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=f"kv-receiver {name}", daemon=True)

    def start(self) -> None:
        """Start the thread, once."""
        self._thread.start()

    # called by any thread

    def expect(
        self,
        sequence_id: int,
        blocks: list[int],
        *,
        tokens: int,
        on_complete: Callable[[int], None],
        on_failed: Callable[[str], None],
    ) -> None:
        """Let a stream fill these pages.

        Raises:
            ValueError: the pages or tokens are wrong, or the sequence is expected already.
            TransferError: the receiver is closed.
        """
        check_fit(self._storage.geometry, blocks, tokens)
        reservation = Reservation(
            sequence_id,
            blocks,
            coverage=Coverage(self._storage.geometry.layers, tokens),
            landing=self._storage.landing(blocks),
            on_complete=on_complete,
            on_failed=on_failed,
            now=time.monotonic(),
        )
        if self._reservations.setdefault(sequence_id, reservation) is not reservation:
            raise ValueError(f"sequence {sequence_id} is expected already")
        if self._closing and self._reservations.pop(sequence_id, None) is not None:
            raise TransferError(f"{self._mine.name}: the KV receiver is closed")
        self._call(lambda: self._check_by(reservation))

    def forget(self, sequence_id: int, on_released: Callable[[], None]) -> None:
        """Stop expecting; the pages are free when `on_released` is called, perhaps in this call."""
        reservation = self._reservations.get(sequence_id)
        if reservation is None or self._stop(reservation, "the receiver dropped it", on_released) is not State.STOPPING:
            on_released()

    def prepare(self, sock: socket.socket) -> None:
        """Set up an accepted socket."""

    # what a transport may add; on the thread

    def work(self) -> float | None:
        """Get on with what a library does here; return how soon to be called again, None if it need not be."""
        return None

    def take(self, inlet: Inlet, header: Header, payload: bytes) -> bool:  # noqa: ARG002
        """Take a frame of the transport's own; False if there are none of that kind."""
        return False

    def left(self, inlet: Inlet) -> None:
        """Take note that a connection is closed."""

    def stop_work(self) -> None:
        """End what `work` gets on with; no byte is written to any page any more."""

    # called by any thread

    def close(self) -> None:
        """Stop the thread, close all sockets; what is still expected fails. Waits for a few seconds at most."""
        if self._closing:
            return
        self._closing = True
        self._call(lambda: None)
        self._thread.join(_JOIN_TIMEOUT_S)

    def _call(self, call: Callable[[], None]) -> None:
        """Have the receiver's thread do something."""
        self._calls.append(call)
        with self._gate:
            if not self._shut_down:
                os.eventfd_write(self._wake, 1)

    # ends of reservations

    def _stop(self, reservation: Reservation, reason: str, on_released: Callable[[], None] | None) -> State | None:
        """Take the pages from the sender. Returns None if they had been taken for good before.

        ENDED: nobody can be writing to them now. STOPPING: `on_released` (or, where that is None,
        the reservation's on_failed) follows when the sender has stopped.
        """
        with reservation.writing:
            before, owner = reservation.state, reservation.owner
            if before is State.ENDED:
                return None
            must_wait = reservation.reads > 0 or (self.shares and owner is not None)
            reservation.state = State.STOPPING if must_wait else State.ENDED
            if must_wait:
                reservation.failure = reason
                reservation.on_released += [on_released] if on_released is not None else []
            else:
                reservation.owner = None
        if not must_wait:
            self._reservations.pop(reservation.sequence_id, None)
        if isinstance(owner, Session) and before is not State.STOPPING:
            self._call(lambda: self._tell(owner, reservation.sequence_id, reason))
        return State.STOPPING if must_wait else State.ENDED

    def _tell(self, session: Session, sequence_id: int, reason: str) -> None:
        if not self.shares:
            session.reservations.pop(sequence_id, None)
        if session.inlets:
            inlet = session.inlets[0]
            self._guarded(inlet, lambda: inlet.refuse(sequence_id, reason))

    def _fail(self, reservation: Reservation, reason: str) -> None:
        """End a reservation that cannot be filled; its on_failed follows now or when the sender stopped."""
        if reservation.state is not State.STOPPING and self._stop(reservation, reason, None) is State.ENDED:
            reservation.on_failed(reason)

    def _released(self, reservation: Reservation, reason: str) -> None:
        """Note that the sender does not write any more, for whatever reason."""
        with reservation.writing:
            if reservation.state is State.ENDED:
                return
            if reservation.reads:
                reservation.state, reservation.failure = State.STOPPING, reservation.failure or reason
                return
            reservation.state, reservation.owner = State.ENDED, None
            failure = reservation.failure or reason
            calls = reservation.on_released
        self._reservations.pop(reservation.sequence_id, None)
        for call in calls:
            call()
        if not calls:
            reservation.on_failed(failure)

    # the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            self._shut()

    def _turn(self) -> None:
        nap_s = self.work()
        found = self._epoll.poll(self._patience() if nap_s is None else 0)
        if nap_s and not found and not self._calls:
            time.sleep(nap_s)
        for descriptor, events in found:
            if descriptor == self._wake:
                os.eventfd_read(self._wake)
            elif descriptor in self._listeners:
                self._accept(self._listeners[descriptor])
            elif descriptor in self._inlets:
                self._serve(self._inlets[descriptor], events)
        while self._calls:
            self._calls.popleft()()
        if time.monotonic() >= self._check_at:
            self._check_times()

    def _patience(self) -> float | None:
        if self._check_at == float("inf"):
            return None
        return max(0.0, self._check_at - time.monotonic()) + 0.001

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except OSError:
            return
        strangers = sum(not inlet.ready for inlet in self._inlets.values())
        if strangers >= _MOST_STRANGERS:
            _log.warning("%s: too many KV connections without a handshake; dropped one", self._mine.name)
            sock.close()
            return
        sock.setblocking(False)  # noqa: FBT003 - the standard library's
        self.prepare(sock)
        now = time.monotonic()
        peer = ":".join(map(str, address[:2])) if isinstance(address, tuple) else "a process of this host"
        inlet = Inlet(sock, self, peer=peer, now=now)
        self._inlets[sock.fileno()] = inlet
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._check_at = min(self._check_at, now + _HANDSHAKE_TIMEOUT_S)
        self._guarded(inlet, inlet.write)

    def _serve(self, inlet: Inlet, events: int) -> None:
        if events & ~select.EPOLLOUT:
            self._guarded(inlet, inlet.read)
        else:
            self._guarded(inlet, inlet.write)

    def _guarded(self, inlet: Inlet, action: Callable[[], None]) -> None:
        """Do something with a connection, send what it has to say, and end it if that fails."""
        try:
            action()
            if inlet.wants_to_write:
                inlet.write()
            if inlet.watches_room != inlet.wants_to_write:
                inlet.watches_room = inlet.wants_to_write
                wanted = select.EPOLLIN | (select.EPOLLOUT if inlet.watches_room else 0)
                self._epoll.modify(inlet.sock.fileno(), wanted)
        except OSError as error:
            self._hang_up(inlet, f"lost the connection to {inlet.name}: {error}")
        except FourlaneError as error:
            _log.warning("%s: closed the KV connection of %s: %s", self._mine.name, inlet.name, error)
            with suppress(OSError):
                inlet.write()
            for other in [*inlet.session.inlets, inlet]:
                self._hang_up(other, f"{inlet.name} broke the protocol: {error}")
            self._end_session(inlet.session)

    def _hang_up(self, inlet: Inlet, reason: str) -> None:
        descriptor = inlet.sock.fileno()
        if self._inlets.pop(descriptor, None) is None:
            return
        self._epoll.unregister(descriptor)
        inlet.sock.close()
        self.left(inlet)
        session, unfinished = inlet.session, inlet.landing()
        if inlet in session.inlets:
            session.inlets.remove(inlet)
        if unfinished is not None:
            reservation, header = unfinished
            reservation.coverage.unclaim(header.layer, header.first_token, header.tokens)
        if session.inlets:
            _log.info("%s: %s; %d connections of it are left", self._mine.name, reason, len(session.inlets))
            return
        session.lost_at, session.loss = time.monotonic(), reason
        if session in self._sessions.values():
            self._check_at = min(self._check_at, session.lost_at + _NEXT_CONNECTION_S)
        else:
            self._end_session(session)

    def _end_session(self, session: Session) -> None:
        self._sessions = {key: kept for key, kept in self._sessions.items() if kept is not session}
        for reservation in list(session.reservations.values()):
            self._released(reservation, f"{session.loss} ({reservation.coverage})")
        session.reservations.clear()

    def _check_by(self, reservation: Reservation) -> None:
        self._check_at = min(self._check_at, reservation.active_at + self._allowance(reservation))

    def _allowance(self, reservation: Reservation) -> float:
        begun = reservation.state is State.FLOWING
        return self._timeout_s if begun else self._timeout_s * _BEFORE_FIRST_FRAME

    def _check_times(self) -> None:
        """End what has taken too long, and find the next moment to look."""
        now = time.monotonic()
        moments = []
        for inlet in list(self._inlets.values()):
            if not inlet.ready:
                moments.append(inlet.opened_at + _HANDSHAKE_TIMEOUT_S)
                if now >= moments[-1]:
                    self._hang_up(inlet, "no handshake")
        for session in list(self._sessions.values()):
            if session.lost_at is not None:
                moments.append(session.lost_at + _NEXT_CONNECTION_S)
                if now >= moments[-1]:
                    self._end_session(session)
        for reservation in list(self._reservations.values()):
            if reservation.state not in (State.WAITING, State.FLOWING):
                continue
            moments.append(reservation.active_at + self._allowance(reservation))
            if now >= moments[-1]:
                self._fail(reservation, self._overdue(reservation))
        self._check_at = min((moment for moment in moments if moment > now), default=float("inf"))

    def _overdue(self, reservation: Reservation) -> str:
        waited = f"{self._allowance(reservation):g} s"
        owner = reservation.owner
        if isinstance(owner, Session):
            return f"nothing came from {owner.name} for {waited} ({reservation.coverage})"
        return f"no sender began within {waited}"

    def _shut(self) -> None:
        for inlet in list(self._inlets.values()):
            self._hang_up(inlet, f"{self._mine.name} closed its KV receiver")
        self.stop_work()
        for reservation in list(self._reservations.values()):
            self._released(reservation, f"{self._mine.name} closed its KV receiver")
        self._epoll.close()
        for listener in self._listeners.values():
            listener.close()
        with self._gate:
            self._shut_down = True
            os.close(self._wake)

    # what inlets ask (see `inlet.Desk`); on the thread

    def welcome(self, inlet: Inlet, opening: bytes) -> tuple[bytes, list[int], str]:
        """Judge an opening: the verdict, descriptors that go with it, and why it was refused."""
        nonce = bytes(frames.NONCE_BYTES)
        refusal = ""
        try:
            found, nonce = frames.read_opening(self._secret, opening, inlet.nonce)
            inlet.name = f"{found.name} ({inlet.name})"
            refusal = self._join(inlet, found)
        except ProtocolError as error:
            refusal = str(error)
        verdict = Verdict(accepted=not refusal, reason=refusal, blocks=self._storage.geometry.blocks)
        memfd = self._storage.memfd
        descriptors = [memfd] if self.shares and memfd is not None and not refusal else []
        return frames.make_verdict(self._secret, verdict, nonce), descriptors, refusal

    def _join(self, inlet: Inlet, found: Opening) -> str:
        """Note who has connected, over what; return why it may not."""
        inlet.transport = found.transport
        mine = msgspec.structs.replace(self._mine, transport=found.transport)
        if unlike := (mine if found.transport in self.accepts else self._mine).unlike(found):
            return f"{self._mine.name} and {found.name} have unlike KV caches: {unlike}"
        session = (
            self._sessions.setdefault(found.session, Session(inlet.name)) if found.session else Session(inlet.name)
        )
        session.inlets.append(inlet)
        session.lost_at = None
        inlet.session = session
        return ""

    def admit(self, inlet: Inlet, header: Header) -> tuple[Reservation, list[memoryview]] | None:
        """Judge a DATA header: where its payload goes, None to drain it.

        Raises:
            ProtocolError: the connection cannot go on.
        """
        geometry = self._storage.geometry
        size = header.tokens * geometry.token_bytes * 2
        carried = inlet.transport == self.transport and not self.shares
        if not carried or not 0 < header.payload_bytes == size <= geometry.total_bytes // geometry.layers:
            raise self._broken(inlet, header, f"payload of {header.payload_bytes} bytes for {header.tokens} tokens")
        if header.again and self._has_again(inlet, header):
            inlet.reply(Kind.CHECKED, header.sequence_id)
            return None
        if not header.again and self._overtaken(inlet, header):
            return None
        claimed = self._claim(inlet, header)
        if header.again and claimed is not None:
            claimed[0].resent.add((header.layer, header.first_token, header.tokens))
        return claimed

    def _overtaken(self, inlet: Inlet, header: Header) -> bool:
        """Tell whether a chunk was sent again over another connection, and this is the first copy, read after it."""
        reservation = inlet.session.reservations.get(header.sequence_id)
        return reservation is not None and (header.layer, header.first_token, header.tokens) in reservation.resent

    def _has_again(self, inlet: Inlet, header: Header) -> bool:
        """Tell whether a chunk that is sent again is there already; if it is under way elsewhere, end that."""
        reservation = inlet.session.reservations.get(header.sequence_id)
        if reservation is None:
            return False
        place = (header.layer, header.first_token, header.tokens)
        if reservation.coverage.has(*place):
            return True
        for other in list(inlet.session.inlets):
            begun = other.landing()
            if begun is not None and begun[0] is reservation and begun[1][2:5] == place:
                self._hang_up(other, f"{other.name} gave up this connection")
        return False

    def landed(self, inlet: Inlet, reservation: Reservation, header: Header, parts: list[memoryview]) -> bool:
        """Check what has landed; False if it is corrupt."""
        found = frames.checksum(parts)
        if found != header.checksum:
            where = f"tokens {header.first_token} to {header.first_token + header.tokens} of layer {header.layer}"
            self._give_up(
                inlet, reservation, f"{where} from {inlet.name} arrived corrupt: expected CRC-32C "
                f"{header.checksum:08x}, got {found:08x}"
            )  # fmt: skip
            return False
        reservation.coverage.land(header.layer, header.first_token, header.tokens)
        reservation.active_at = time.monotonic()
        inlet.reply(Kind.CHECKED, header.sequence_id)
        return True

    def signal(self, inlet: Inlet, header: Header, payload: bytes) -> None:
        """Take a frame without KV.

        Raises:
            ProtocolError: the connection cannot go on.
        """
        if header.kind == Kind.OPEN:
            self._open(inlet, header)
        elif header.kind == Kind.LANDED and self.shares:
            claimed = self._claim(inlet, header)
            if claimed is not None:
                self.landed(inlet, claimed[0], header, claimed[1])
        elif header.kind == Kind.FINISH:
            self._finish(inlet, header)
        elif header.kind in (Kind.ABORT, Kind.STOPPED):
            self._sender_stopped(inlet, header, payload.decode(errors="replace"))
        elif not self.take(inlet, header, payload):
            raise ProtocolError(f"unexpected frame of kind {header.kind}")

    def _sender_stopped(self, inlet: Inlet, header: Header, text: str) -> None:
        inlet.session.refused.pop(header.sequence_id, None)
        reservation = inlet.session.reservations.pop(header.sequence_id, None)
        if reservation is None and header.kind == Kind.ABORT:
            reservation = self._reservations.get(header.sequence_id)
            if reservation is not None and reservation.owner is not None:
                return
        if reservation is not None:
            self._released(reservation, f"{inlet.name} gave up: {text or 'no reason given'} ({reservation.coverage})")

    def _bound(self, inlet: Inlet, header: Header) -> Reservation | None:
        """Return the reservation a frame is for, bound to this sender; None (and NACK) if there is none."""
        reservation = self._reservations.get(header.sequence_id)
        if reservation is None:
            inlet.refuse(header.sequence_id, f"sequence {header.sequence_id} is not expected here")
            return None
        try:
            with reservation.writing:
                reservation.bind(inlet.session)
        except TransferError as error:
            inlet.refuse(header.sequence_id, f"sequence {header.sequence_id}: {error}")
            return None
        inlet.session.reservations[header.sequence_id] = reservation
        inlet.session.acknowledged.pop(header.sequence_id, None)
        return reservation

    def _open(self, inlet: Inlet, header: Header) -> None:
        reservation = self._bound(inlet, header)
        if reservation is None:
            return
        reservation.active_at = time.monotonic()
        self._check_by(reservation)
        if self.shares:
            blocks = reservation.blocks
            inlet.reply(Kind.GRANT, header.sequence_id, struct.pack(f"!{len(blocks)}I", *blocks))

    def _claim(self, inlet: Inlet, header: Header) -> tuple[Reservation, list[memoryview]] | None:
        reservation = self._bound(inlet, header)
        if reservation is None:
            return None
        try:
            return reservation, reservation.claim(header)
        except ProtocolError as error:
            raise self._broken(inlet, header, str(error)) from error
        except TransferError as error:
            self._give_up(inlet, reservation, f"{error} from {inlet.name}")
            return None

    def _broken(self, inlet: Inlet, header: Header, what: str) -> ProtocolError:
        """Refuse a frame after which nothing on its connection can be trusted."""
        inlet.refuse(header.sequence_id, what)
        return ProtocolError(f"sequence {header.sequence_id}: {what}")

    def _give_up(self, inlet: Inlet, reservation: Reservation, reason: str) -> None:
        inlet.refuse(reservation.sequence_id, reason)
        self._fail(reservation, reason)

    def _finish(self, inlet: Inlet, header: Header) -> None:
        if header.sequence_id in inlet.session.acknowledged and header.sequence_id not in self._reservations:
            inlet.reply(Kind.ACK, header.sequence_id)
            return
        reservation = self._bound(inlet, header)
        if reservation is None:
            return
        if reservation.reads:
            reservation.finish = header
            return
        coverage = reservation.coverage
        if header.tokens != coverage.tokens or not coverage.complete:
            self._give_up(
                inlet, reservation, f"{inlet.name} finished with {header.tokens} tokens and {coverage}; "
                f"expected {coverage.tokens} tokens"
            )  # fmt: skip
            return
        with reservation.writing:
            if reservation.state is not State.FLOWING:
                return
            self._storage.settle(reservation.landing, reservation.blocks)
            reservation.state, reservation.owner = State.ENDED, None
        self._reservations.pop(header.sequence_id, None)
        inlet.session.reservations.pop(header.sequence_id, None)
        inlet.session.remember(header.sequence_id)
        inlet.reply(Kind.ACK, header.sequence_id)
        reservation.on_complete(header.first_token)
