"""One sender's connection as the receiver sees it: handshake, then frames into pages.

Never blocks: it takes what the socket has, and remembers where it stood. The payload goes from
the socket straight into the pages, cut at their borders, together with the next header in one
system call. What nobody expects goes into scratch memory.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import HEADER_BYTES, Header, Kind
from fourlane.engine.kv_transfer.session import Session
from fourlane.errors import ProtocolError

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.reassembly import Reservation

__all__ = ["Desk", "Inlet"]

_MOST_VIEWS = 512
_SCRATCH_BYTES = 1 << 18
_MOST_REPLIES = 1 << 20
_READS_A_TURN = 16


class Desk(Protocol):
    """What an inlet asks of the receiver it belongs to."""

    def welcome(self, inlet: Inlet, opening: bytes) -> tuple[bytes, list[int], str]:
        """Judge an opening: the verdict, descriptors that go with it, and why it was refused."""
        ...

    def admit(self, inlet: Inlet, header: Header) -> tuple[Reservation, list[memoryview]] | None:
        """Judge a DATA header: where its payload goes, None to drain it.

        Raises:
            ProtocolError: the connection cannot go on.
        """
        ...

    def landed(self, inlet: Inlet, reservation: Reservation, header: Header, parts: list[memoryview]) -> bool:
        """Check what has landed; False if it is corrupt."""
        ...

    def signal(self, inlet: Inlet, header: Header, payload: bytes) -> None:
        """Take a frame without KV.

        Raises:
            ProtocolError: the connection cannot go on.
        """
        ...


class Inlet:
    """A connection. For the receiver's thread only."""

    def __init__(self, sock: socket.socket, desk: Desk, *, peer: str, now: float) -> None:
        self.sock = sock
        self.name = peer
        """What messages call the sender at the other end: its address, and its rank once it has said so."""
        self.opened_at = now
        self.ready = False
        """The handshake is through."""
        self.transport = ""
        """What the sender speaks, once it has said so."""
        self.watches_room = False
        """The receiver waits for room in the socket."""
        self.session = Session(peer)
        """The sender; one that it shares with other connections once it has said so."""
        self._desk = desk
        challenge, self.nonce = frames.make_challenge()
        self._out = bytearray(challenge)
        self._handshake = bytearray()
        self._scratch: memoryview | None = None
        self._header = bytearray(HEADER_BYTES)
        self._targets: list[memoryview] = []
        self._at = 0
        self._payload: list[memoryview] = []
        self._payload_left = 0
        self._frame: Header | None = None
        self._reservation: Reservation | None = None
        self._closing = False

    @property
    def wants_to_write(self) -> bool:
        """Tell whether replies wait for room in the socket."""
        return bool(self._out)

    def reply(self, kind: Kind, sequence_id: int, payload: bytes = b"") -> None:
        """Queue an answer to the sender.

        Raises:
            ConnectionError: it has not read its answers for too long.
        """
        self._out += frames.pack(Header(kind, sequence_id, payload_bytes=len(payload))) + payload
        if len(self._out) > _MOST_REPLIES:
            raise ConnectionError("it does not read its answers")

    def refuse(self, sequence_id: int, reason: str) -> None:
        """Answer NACK, once a sequence."""
        if sequence_id not in self.session.refused:
            self.session.refused[sequence_id] = None
            self.reply(Kind.NACK, sequence_id, reason.encode()[: frames.MOST_TEXT])

    def write(self) -> None:
        """Send what waits, as far as the socket takes it.

        Raises:
            OSError: the connection is gone.
        """
        while self._out:
            try:
                sent = self.sock.send(self._out)
            except BlockingIOError:
                return
            del self._out[:sent]
        if self._closing:
            raise ConnectionError("closed after a refusal")

    def landing(self) -> tuple[Reservation, Header] | None:
        """Return the chunk whose payload is under way into pages, if there is one."""
        return (self._reservation, self._frame) if self._reservation is not None and self._frame is not None else None

    def read(self) -> None:
        """Take what the socket has.

        Raises:
            OSError: the connection is gone.
            FourlaneError: what came breaks the protocol.
        """
        for _ in range(_READS_A_TURN):
            try:
                if self.ready:
                    self._read_frames()
                elif not self._read_handshake():
                    return
            except BlockingIOError:
                return

    def _read_handshake(self) -> bool:
        have = len(self._handshake)
        wanted = frames.OPENING.size
        if have >= wanted:
            wanted += frames.opening_body_bytes(bytes(self._handshake[:wanted]))
        if have < wanted:
            chunk = self.sock.recv(wanted - have)
            if not chunk:
                raise ConnectionError("it hung up during the handshake")
            self._handshake += chunk
            return True
        self._answer_opening()
        return self.ready

    def _answer_opening(self) -> None:
        verdict, descriptors, refusal = self._desk.welcome(self, bytes(self._handshake))
        self._handshake.clear()
        if self._out:
            self.write()
        if descriptors:
            if socket.send_fds(self.sock, [verdict], descriptors) != len(verdict):
                raise ConnectionError("it does not take the verdict")
        else:
            self._out += verdict
        if refusal:
            self._closing = True
            self.write()
            raise ProtocolError(refusal)
        self.ready = True
        self._expect_header()

    def _expect_header(self) -> None:
        self._frame, self._reservation, self._payload_left = None, None, 0
        self._payload = []
        self._targets, self._at = [memoryview(self._header)], 0

    def _read_frames(self) -> None:
        reservation = self._reservation
        if reservation is None:
            count = self.sock.recvmsg_into(self._targets[self._at : self._at + _MOST_VIEWS])[0]
        else:
            with reservation.writing:
                if reservation.owner is not self.session:
                    self._divert()
                count = self.sock.recvmsg_into(self._targets[self._at : self._at + _MOST_VIEWS])[0]
        if count == 0:
            raise ConnectionError("it hung up")
        self._advance(count)

    def _divert(self) -> None:
        """Let the rest of the payload go into scratch: the pages are not ours any more."""
        left = self._payload_left
        self._reservation = None
        self._targets, self._at = [*self._scratch_views(left), self._targets[-1]], 0

    def _scratch_views(self, size: int) -> list[memoryview]:
        if self._scratch is None:
            self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        whole, rest = divmod(size, _SCRATCH_BYTES)
        return [self._scratch] * whole + ([self._scratch[:rest]] if rest else [])

    def _advance(self, count: int) -> None:
        self._payload_left = max(0, self._payload_left - count)
        targets, at = self._targets, self._at
        while count:
            size = len(targets[at])
            if count < size:
                targets[at] = targets[at][count:]
                break
            count -= size
            at += 1
        self._at = at
        if self._frame is not None and not self._payload_left:
            self._end_payload()
        if at == len(targets):
            self._begin_frame(frames.unpack(self._header))

    def _end_payload(self) -> None:
        frame, reservation, payload = self._frame, self._reservation, self._payload
        self._frame, self._reservation = None, None
        self._payload = []
        assert frame is not None
        if frame.kind == Kind.DATA:
            if reservation is not None:
                self._desk.landed(self, reservation, frame, payload)
        else:
            self._desk.signal(self, frame, bytes(payload[0]))

    def _begin_frame(self, header: Header) -> None:
        self._expect_header()
        if header.kind == Kind.DATA:
            self._admit(header)
        elif header.payload_bytes:
            self._take_text(header)
        else:
            self._desk.signal(self, header, b"")

    def _admit(self, header: Header) -> None:
        admitted = self._desk.admit(self, header)
        if admitted is None:
            self._payload = []
            targets = self._scratch_views(header.payload_bytes)
        else:
            self._reservation, self._payload = admitted
            targets = list(self._payload)
        self._frame, self._payload_left = header, header.payload_bytes
        self._targets, self._at = [*targets, memoryview(self._header)], 0

    def _take_text(self, header: Header) -> None:
        most = frames.MOST_MEMORY if header.kind == Kind.MEMORY else frames.MOST_TEXT
        if header.payload_bytes > most:
            raise ProtocolError(f"a text of {header.payload_bytes} bytes; expected at most {most}")
        self._payload = [memoryview(bytearray(header.payload_bytes))]
        self._frame, self._payload_left = header, header.payload_bytes
        self._targets, self._at = [*self._payload, memoryview(self._header)], 0
