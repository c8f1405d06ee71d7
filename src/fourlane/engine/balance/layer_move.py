"""One layer on its way from one order of experts to another, as one rank sees it: what is kept, sent, received.

The layer's new experts grow beside the old ones, which go on serving and are only read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.engine.balance.frames import MOST_PAYLOAD, Piece
from fourlane.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from fourlane.engine.balance.frames import Frame
    from fourlane.engine.model.moe import MovableExperts
    from fourlane.policy.migration import LayerMoves, Transfer

__all__ = ["LayerMove"]


class _Arriving:
    """An expert that is being received, piece after piece."""

    def __init__(self, transfer: Transfer, parts: list[np.ndarray]) -> None:
        self.transfer = transfer
        self.parts = parts
        self.part = 0
        self.offset = 0

    @property
    def complete(self) -> bool:
        return self.part == len(self.parts)

    def room_for(self, piece: Piece, size: int) -> memoryview:
        expected = (self.part, self.offset)
        if self.complete or (piece.part, piece.offset) != expected or size > self.parts[self.part].nbytes - self.offset:
            raise ProtocolError(
                f"expert {piece.expert}: expected bytes of array {self.part} from {self.offset} on, "
                f"got {size} of array {piece.part} from {piece.offset} on"
            )
        return self.parts[self.part].data[self.offset : self.offset + size]

    def took(self, size: int) -> None:
        self.offset += size
        if self.offset == self.parts[self.part].nbytes:
            self.part, self.offset = self.part + 1, 0


class LayerMove:
    """A rank's share of one migration.

    Args:
        number: of the migration.
        moves: what all ranks do.
        rank: this one.
        old: the experts it serves with, in the order that `moves` begins from.
    """

    def __init__(self, number: int, moves: LayerMoves, rank: int, old: MovableExperts) -> None:
        self.number = number
        self.experts = old.empty_like()
        self.bytes_received = 0
        self.experts_received = 0
        self._old = old
        self._sent = moves.sent_by(rank)
        self._arriving = {
            transfer.expert: _Arriving(transfer, self.experts.slot_bytes(transfer.slot))
            for transfer in moves.received_by(rank)
        }
        for copy in moves.kept_G[rank]:
            self.experts.copy_slot(copy.slot, old, copy.source_slot)

    @property
    def complete(self) -> bool:
        """Tell whether all experts are there."""
        return self.experts_received == len(self._arriving)

    @property
    def targets(self) -> list[int]:
        """Return the ranks that this one sends to."""
        return sorted({transfer.target for transfer in self._sent})

    def frames_for(self, target: int) -> Iterator[Frame]:
        """Yield what a rank is to get, expert after expert."""
        for transfer in self._sent:
            if transfer.target == target:
                for part, weights in enumerate(self._old.slot_bytes(transfer.source_slot)):
                    for offset in range(0, weights.nbytes, MOST_PAYLOAD):
                        piece = Piece(number=self.number, expert=transfer.expert, part=part, offset=offset)
                        yield piece, weights.data[offset : offset + MOST_PAYLOAD]

    def room_for(self, source: int, piece: Piece, size: int) -> memoryview:
        """Return where a piece goes.

        Raises:
            ProtocolError: this piece is not the next one of an expert that this rank is to send us.
        """
        arriving = self._arriving.get(piece.expert)
        if arriving is None or arriving.transfer.source != source:
            raise ProtocolError(f"expert {piece.expert} was not to come from rank {source}")
        return arriving.room_for(piece, size)

    def took(self, piece: Piece, size: int) -> None:
        """Note that a piece lies where `room_for` said."""
        arriving = self._arriving[piece.expert]
        arriving.took(size)
        self.bytes_received += size
        if arriving.complete:
            self.experts.settle_slot(arriving.transfer.slot, arriving.parts)
            self.experts_received += 1

    def progress(self) -> str:
        """Say how far it has come, and for whom it waits."""
        waiting = sorted({each.transfer.source for each in self._arriving.values() if not each.complete})
        got = f"{self.experts_received} of {len(self._arriving)} experts, {self.bytes_received} bytes, had come"
        return f"{got}; waiting for rank {', '.join(map(str, waiting))}" if waiting else got
