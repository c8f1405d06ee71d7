"""The sending side of transports whose library reads: chunks are offered, and the receiver fetches them.

A chunk is copied into a slot of the ring that the library exposes (what it exposes must be known
to it beforehand, and a step's tensors are new every time), then a frame says where it is. The slot
is free again when the receiver has said that it does not read it any more; until then the library
is advanced here, whatever became of the stream.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import Header, Kind
from fourlane.engine.kv_transfer.ring import Ring
from fourlane.engine.kv_transfer.stream import PIECE_BYTES
from fourlane.engine.kv_transfer.tcp import TcpOutlet

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from fourlane.engine.kv_transfer.contract import KvGeometry
    from fourlane.engine.kv_transfer.library import Library, LibraryStart
    from fourlane.engine.kv_transfer.pages import SequencePages
    from fourlane.engine.kv_transfer.stream import Chunk
    from fourlane.engine.messages import KvAddress
    from fourlane.engine.seal import Secret
    from fourlane.lanes.connections import LaneEnd

__all__ = ["OfferOutlet", "nap_after"]

_SLOTS = 8
_SHORTEST_NAP_S, _LONGEST_NAP_S = 20e-6, 1e-3
_NAP_SHARE = 1 / 8


def nap_after(idle_s: float) -> float:
    """Return how long to sleep between two looks at a library in which nothing has moved for so long."""
    return min(_LONGEST_NAP_S, max(_SHORTEST_NAP_S, idle_s * _NAP_SHARE))


class OfferOutlet(TcpOutlet):
    """A connection over which chunks are offered, and the library that exposes them. See `outlet.Outlet`.

    Args:
        target, geometry, name, secret, timeout_s, lane: see `TcpOutlet`.
        address: of the interface that KV shall use here.
        library: how to start it; done on the link's thread.
    """

    def __init__(  # noqa: PLR0913 - what identifies us, and how we connect
        self,
        target: KvAddress,
        *,
        geometry: KvGeometry,
        address: str,
        name: str,
        secret: Secret,
        timeout_s: float,
        library: LibraryStart,
        lane: LaneEnd | None = None,
    ) -> None:
        self.transport = library.name
        addresses: Sequence[str] = [address]
        super().__init__(
            target,
            geometry=geometry,
            addresses=addresses,
            name=name,
            secret=secret,
            timeout_s=timeout_s,
            lane=lane,
        )
        self.paths = 1
        self._start = library.start
        self._library: Library | None = None
        self._ring = Ring(slots=_SLOTS, slot_bytes=max(PIECE_BYTES, 2 * geometry.token_bytes))
        self._moved_at = 0.0

    def connect(self, path: int) -> socket.socket:
        """Start the library, connect, shake hands, say how to read; return the socket."""
        library = self._library = self._start()
        exposure = library.expose(self._ring.address, self._ring.size)
        sock = super().connect(path)
        memory = msgspec.msgpack.encode(exposure)
        sock.settimeout(self._timeout_s)
        sock.sendall(frames.pack(Header(Kind.MEMORY, 0, payload_bytes=len(memory))) + memory)
        sock.setblocking(False)  # noqa: FBT003 - the standard library's
        return sock

    def has_room(self) -> bool:
        """Tell whether a slot is free."""
        return self._ring.has_room

    def put(self, sequence_id: int, chunk: Chunk, pages: SequencePages | None) -> list[memoryview]:  # noqa: ARG002
        """Copy K and V into a slot; return the frame that says where they are."""
        k, v = (self._staging.host_bytes(tensor, chunk.ready) for tensor in (chunk.k_THd, chunk.v_THd))
        if self._ring.idle:
            self._moved_at = time.monotonic()
        offset = self._ring.take(sequence_id)
        self._ring.bytes[offset : offset + k.nbytes] = k
        self._ring.bytes[offset + k.nbytes : offset + k.nbytes + v.nbytes] = v
        header = Header(
            Kind.OFFERED,
            sequence_id,
            layer=chunk.layer,
            first_token=chunk.first_token,
            tokens=chunk.k_THd.shape[0],
            payload_bytes=frames.OFFSET.size,
            checksum=frames.checksum([k.data, v.data]),
        )
        return [memoryview(frames.pack(header)), memoryview(frames.OFFSET.pack(offset))]

    def answered(self, sequence_id: int) -> None:
        """Free the slot of the sequence's oldest chunk: it is not read any more."""
        self._moved_at = time.monotonic()
        self._ring.give_back(sequence_id)

    def nap_s(self) -> float | None:
        """Return how soon the library must be advanced: while chunks are offered, if it must be at all."""
        if self._ring.idle or self._library is None or not self._library.needs_advancing:
            return None
        return nap_after(time.monotonic() - self._moved_at)

    def advance(self) -> None:
        """Advance the library."""
        assert self._library is not None
        self._library.advance()

    def close(self) -> None:
        """Close the library and the connection."""
        if self._library is not None:
            self._library.close()
        super().close()
