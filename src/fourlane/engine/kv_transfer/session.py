"""One sender as the receiver sees it, over however many connections it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.inlet import Inlet
    from fourlane.engine.kv_transfer.reassembly import Reservation

__all__ = ["Session"]

_MOST_REMEMBERED = 1024


class Session:
    """A sender. For the receiver's thread only, but `name`.

    `reservations` is what it is filling; `refused` the sequences that were answered by NACK, so that
    each is answered once; `acknowledged` those that arrived whole, lately: their ACK may have gone
    down with a connection. `lost_at`, `loss`: when its last connection went, and how, while another
    one may still come.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.inlets: list[Inlet] = []
        self.reservations: dict[int, Reservation] = {}
        self.refused: dict[int, None] = {}
        self.acknowledged: dict[int, None] = {}
        self.lost_at: float | None = None
        self.loss = ""

    def remember(self, sequence_id: int) -> None:
        """Note that a sequence arrived whole."""
        self.acknowledged[sequence_id] = None
        if len(self.acknowledged) > _MOST_REMEMBERED:
            del self.acknowledged[next(iter(self.acknowledged))]
