"""A rank's connections on the bulk lane: frames go out and come in, one thread, nothing blocks.

Pieces go straight from one rank's memory to the other's. Not for what frames mean (`thread`).
"""

from __future__ import annotations

import selectors
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fourlane._native import crc32c
from fourlane.engine.balance.frames import CRC, MOST_PAYLOAD, PREFIX, pack, read_head, read_prefix
from fourlane.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fourlane.engine.balance.frames import Frame, Head, Prefix

__all__ = ["BulkMesh", "FrameTaker", "Paused"]

_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; Python does not name it
_UNPACED = 2**64 - 1
_FRAMES_A_TURN = 16


class Paused(Exception):
    """Raised by a `FrameTaker` that cannot take a frame yet; it is offered again after `BulkMesh.resume`."""


class FrameTaker(Protocol):
    """What becomes of frames."""

    def room_for(self, rank: int, head: Head, size: int) -> memoryview | None:
        """Return where a frame's payload goes; None to let it go nowhere.

        Raises:
            Paused: it cannot be taken yet.
        """
        ...

    def took(self, rank: int, head: Head, size: int, *, intact: bool) -> None:
        """Note that a frame has come whole, with so much payload; `intact`: it is what was sent."""
        ...

    def lost(self, rank: int, why: str) -> None:
        """Note that there is no connection to a rank any more."""
        ...


@dataclass(slots=True)
class _Peer:
    rank: int
    sock: socket.socket
    queue: deque[tuple[int, Iterator[Frame]]] = field(default_factory=deque)
    """What is to leave, by the number of the migration it belongs to."""
    leaving: list[memoryview] = field(default_factory=list)
    """What is left of the frame that is on its way out."""
    arrived: bytearray = field(default_factory=bytearray)
    prefix: Prefix | None = None
    head: Head | None = None
    room: memoryview | None = None
    filled: int = 0
    paused: bool = False


class BulkMesh:
    """Connections to all peers. For one thread.

    Args:
        sockets: by rank, connected; None in the place of this one.
        taker: what becomes of frames.
    """

    def __init__(self, sockets: Sequence[socket.socket | None], taker: FrameTaker) -> None:
        self.bytes_sent = 0
        self._taker = taker
        self._scratch = memoryview(bytearray(MOST_PAYLOAD))
        self._selector = selectors.DefaultSelector()
        self._peers = {rank: _Peer(rank, sock) for rank, sock in enumerate(sockets) if sock is not None}
        for peer in self._peers.values():
            peer.sock.settimeout(0)
            self._selector.register(peer.sock, selectors.EVENT_READ, peer)

    def watch(self, descriptor: int) -> None:
        """Let `turn` end when a descriptor becomes readable, too."""
        self._selector.register(descriptor, selectors.EVENT_READ)

    def peers(self) -> list[int]:
        """Return the ranks there is a connection to."""
        return list(self._peers)

    def send(self, rank: int, number: int, frames: Iterable[Frame]) -> None:
        """Queue frames of a migration; each is made and read when its turn to leave comes."""
        peer = self._peers.get(rank)
        if peer is not None:
            peer.queue.append((number, iter(frames)))
            self._attend(peer)

    def unqueue(self, number: int) -> None:
        """Forget what is queued of a migration; a frame that has begun to leave goes on."""
        for peer in self._peers.values():
            peer.queue = deque(item for item in peer.queue if item[0] != number)

    def pace(self, ranks: Sequence[int], bits_s: int | None) -> None:
        """Have the kernel send at most so much to these ranks together; None: as fast as it goes."""
        rate = _UNPACED if bits_s is None else max(1, bits_s // 8 // max(1, len(ranks)))
        for rank in ranks:
            if rank in self._peers:
                self._peers[rank].sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("@Q", rate))

    def resume(self) -> None:
        """Offer frames again that were paused."""
        for peer in [peer for peer in self._peers.values() if peer.paused]:
            peer.paused = False
            self._attend(peer)
            self._guard(peer, self._read)

    def turn(self, timeout: float | None) -> None:
        """Move what can be moved; block while nothing can, for at most `timeout` seconds (None: for ever)."""
        for key, events in self._selector.select(timeout):
            peer = key.data
            if peer is None:
                continue
            if events & selectors.EVENT_WRITE:
                self._guard(peer, self._write)
            if events & selectors.EVENT_READ and peer.rank in self._peers:
                self._guard(peer, self._read)

    def close(self) -> None:
        """Close all connections."""
        for peer in self._peers.values():
            peer.sock.close()
        self._peers.clear()
        self._selector.close()

    def _guard(self, peer: _Peer, act: Callable[[_Peer], None]) -> None:
        try:
            act(peer)
        except (OSError, ProtocolError) as error:
            self._drop(peer, getattr(error, "strerror", None) or str(error))

    def _drop(self, peer: _Peer, why: str) -> None:
        if self._peers.pop(peer.rank, None) is not None:
            with suppress(KeyError):
                self._selector.unregister(peer.sock)
            peer.sock.close()
            self._taker.lost(peer.rank, why)

    def _attend(self, peer: _Peer) -> None:
        """Wait for what a peer's connection has to be ready for."""
        events = 0 if peer.paused else selectors.EVENT_READ
        if peer.queue or peer.leaving:
            events |= selectors.EVENT_WRITE
        known = peer.sock in self._selector.get_map()
        if events and known:
            self._selector.modify(peer.sock, events, peer)
        elif events:
            self._selector.register(peer.sock, events, peer)
        elif known:
            self._selector.unregister(peer.sock)

    # out

    def _write(self, peer: _Peer) -> None:
        with suppress(BlockingIOError):
            for _ in range(_FRAMES_A_TURN):
                if not peer.leaving and not self._next_frame(peer):
                    break
                self._send_frame(peer)
        self._attend(peer)

    def _next_frame(self, peer: _Peer) -> bool:
        while peer.queue:
            frame = next(peer.queue[0][1], None)
            if frame is not None:
                head, payload = frame
                peer.leaving = [memoryview(pack(head, payload)), payload]
                return True
            peer.queue.popleft()
        return False

    def _send_frame(self, peer: _Peer) -> None:
        while peer.leaving:
            sent = peer.sock.sendmsg(peer.leaving)
            self.bytes_sent += sent
            while peer.leaving and sent >= len(peer.leaving[0]):
                sent -= len(peer.leaving.pop(0))
            if peer.leaving:
                peer.leaving[0] = peer.leaving[0][sent:]

    # in

    def _read(self, peer: _Peer) -> None:
        try:
            for _ in range(_FRAMES_A_TURN):
                self._read_frame(peer)
        except BlockingIOError:
            return
        except Paused:
            peer.paused = True
            self._attend(peer)

    def _read_frame(self, peer: _Peer) -> None:
        if peer.prefix is None:
            peer.prefix = read_prefix(self._read_exactly(peer, PREFIX.size))
        if peer.head is None:
            peer.head = read_head(peer.prefix, self._read_exactly(peer, peer.prefix.head_bytes + CRC.size))
        head, size = peer.head, peer.prefix.payload_bytes
        if peer.room is None:
            room = self._taker.room_for(peer.rank, head, size)
            peer.room, peer.filled = (self._scratch if room is None else room)[:size], 0
        while peer.filled < size:
            count = peer.sock.recv_into(peer.room[peer.filled :])
            if not count:
                raise ProtocolError("it closed the connection in the midst of a frame")
            peer.filled += count
        intact = crc32c(peer.room, 0) == peer.prefix.payload_crc
        peer.prefix = peer.head = peer.room = None
        self._taker.took(peer.rank, head, size, intact=intact)

    def _read_exactly(self, peer: _Peer, size: int) -> bytes:
        while len(peer.arrived) < size:
            data = peer.sock.recv(size - len(peer.arrived))
            if not data:
                raise ProtocolError("it closed the connection")
            peer.arrived += data
        data, peer.arrived = bytes(peer.arrived), bytearray()
        return data
