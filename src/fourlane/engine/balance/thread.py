"""The thread beside a rank's step loop that moves experts' weights, and on the group's leader decides.

The loop hands it windows of loads and the end of each migration, and reads `state`; neither waits for
the other. A migration is one layer, under way on all ranks at once. What a rank lacks, finds damaged
or cannot do makes it give the migration up; whether all have it, or somebody gave it up, the ranks
tell each other with the counts of their steps (`balancer`), so nothing here ever has to agree.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fourlane.engine.balance.frames import Order, Piece
from fourlane.engine.balance.layer_move import LayerMove
from fourlane.engine.balance.mesh import BulkMesh, Paused
from fourlane.engine.wakeup import Inbox
from fourlane.errors import BalanceInputError, ProtocolError
from fourlane.policy.migration import layer_moves

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    import numpy as np

    from fourlane.engine.balance.frames import Head
    from fourlane.engine.balance.leader import Leader
    from fourlane.engine.model.moe import MovableExperts
    from fourlane.policy.placement import Placement

__all__ = ["BalanceThread", "MigrationState"]

_log = logging.getLogger(__name__)
LEADER = 0
_REST = 9.0
"""How long the thread rests after work, in parts of the processor time that it took: steps come first."""
_LONGEST_REST_S = 0.05


@dataclass(frozen=True, slots=True)
class MigrationState:
    """How far the latest migration is on this rank; the loop reads it.

    move: what it received, and its new experts; placement: with the layer's new row.
    reason: why it was given up.
    """

    number: int
    layer: int
    stage: Literal["moving", "staged", "given up"]
    move: LayerMove | None = None
    placement: Placement | None = None
    reason: str = ""


class BalanceThread:
    """See the module.

    Args:
        sockets: to the ranks of the group, by rank; None in the place of this one.
        rank: this one's.
        placement: where experts live, and its version.
        experts_of: gives the experts that serve in a layer.
        leader: on rank 0 what decides, elsewhere None.
        bulk_rate: bit/s that may leave this rank; None without a limit.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket | None],
        rank: int,
        *,
        placement: tuple[Placement, int],
        experts_of: Callable[[int], MovableExperts],
        leader: Leader | None,
        bulk_rate: int | None,
    ) -> None:
        self.state: MigrationState | None = None
        self._rank = rank
        self._placement, self._version = placement
        self._experts_of = experts_of
        self._leader = leader
        if leader is not None:
            leader.rest = self._rest
        self._rested_at = 0.0
        self._bulk_rate = bulk_rate
        self._inbox = Inbox()
        self._mesh = BulkMesh(sockets, self)
        self._mesh.watch(self._inbox.fileno())
        self._window_lock = threading.Lock()
        self._window: tuple[np.ndarray, np.ndarray, int] | None = None
        """What the leader has not counted yet."""
        self._order: Order | None = None
        """One that begins from a placement this rank does not have yet."""
        self._move: LayerMove | None = None
        self._over = 0
        """Migrations up to this number have ended, or were given up here."""
        self._lost: dict[int, str] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="fl-balance", daemon=True)

    # from the loop

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def bytes_sent(self) -> int:
        """Return the bytes sent so far."""
        return self._mesh.bytes_sent

    def add_window(self, load_LE: np.ndarray, batch_LE: np.ndarray, steps: int) -> None:
        """Hand over the tokens each expert got from the whole group in so many steps, and in the last of them.

        Windows that come while an earlier one waits are counted together with it: a leader that is slower than they
        come would otherwise fall behind them for ever, and do nothing else.
        """
        with self._window_lock:
            waiting = self._window
            if waiting is not None:
                load_LE, steps = waiting[0] + load_LE, waiting[2] + steps
            self._window = (load_LE, batch_LE, steps)
        if waiting is None:
            self._inbox.put(self._count)

    def committed(self, number: int, placement: Placement) -> None:
        """Tell that all ranks serve with what a migration brought."""
        self._inbox.put(lambda: self._end(number, placement))

    def dropped(self, number: int) -> None:
        """Tell that all ranks forget a migration."""
        self._inbox.put(lambda: self._end(number, None))

    def stop(self, *, patience_s: float = 0.0) -> bool:
        """Have the thread end soon, and wait so long for it; what is under way is lost. Tell whether it has ended."""
        self._inbox.put(self._end_soon)
        if self._thread.is_alive():
            self._thread.join(patience_s)
        return not self._thread.is_alive()

    # the thread

    def _run(self) -> None:
        """Wait for frames and for the loop, until told to stop."""
        self._rested_at = time.thread_time()
        try:
            while not self._stopping:
                try:
                    self._mesh.turn(None)
                    self._inbox.run()
                    self._rest()
                except Exception as error:  # noqa: BLE001 - a migration that fails is dropped, the service goes on
                    _log.exception("rank %d: moving experts failed", self._rank)
                    self._give_up(f"{type(error).__name__}: {error}")
        finally:
            self._mesh.close()
            self._inbox.close()

    def _rest(self) -> None:
        """Rest in proportion to the processor time that was taken since the last rest: steps come first."""
        now = time.thread_time()
        time.sleep(min(_REST * (now - self._rested_at), _LONGEST_REST_S))
        self._rested_at = now

    def _end_soon(self) -> None:
        self._stopping = True

    def _count(self) -> None:
        assert self._leader is not None, "only the leader counts"
        with self._window_lock:
            window, self._window = self._window, None
        assert window is not None, "each call is for a window that waits"
        load_LE, batch_LE, steps = window
        self._leader.add_window(load_LE, batch_LE, steps, self._placement)
        self._order_next()

    def _end(self, number: int, placement: Placement | None) -> None:
        self._forget(number)
        if self.state is not None and self.state.number <= number:
            self.state = None  # with it go the experts that were served before
        if placement is not None:
            self._placement, self._version = placement, self._version + 1
        if self._leader is not None:
            self._leader.ended(number, committed=placement is not None)
            self._order_next()
        self._begin_if_current()

    def _order_next(self) -> None:
        """Have all ranks begin the next migration, if the leader wants one and none is under way."""
        assert self._leader is not None
        wanted = self._leader.next_layer(self._placement)
        if wanted is None:
            return
        number, layer, slots = wanted
        order = Order(number=number, version=self._version, layer=layer, slots=slots)
        for rank in self._mesh.peers():
            self._mesh.send(rank, number, [(order, memoryview(b""))])
        self._order = order
        self._begin_if_current()

    def _begin_if_current(self) -> None:
        order = self._order
        if order is None or order.version > self._version:
            return
        self._order = None
        if order.number > self._over:
            self._begin(order)

    def _begin(self, order: Order) -> None:
        self.state = MigrationState(order.number, order.layer, "moving")
        if order.version != self._version:
            self._give_up(f"rank {LEADER} ordered a change of placement {order.version}, here is {self._version}")
            return
        try:
            placement = self._placement.with_layer(order.layer, order.slots)
        except (BalanceInputError, IndexError) as error:
            self._give_up(f"rank {LEADER} ordered what is no placement: {error}")
            return
        if self._lost:
            self._give_up("; ".join(f"no connection to rank {rank}: {why}" for rank, why in self._lost.items()))
            return
        rows = (each.slot_of_LP[order.layer] for each in (self._placement, placement))
        moves = layer_moves(*rows, ranks=placement.ranks)
        move = self._move = LayerMove(order.number, moves, self._rank, self._experts_of(order.layer))
        self.state = MigrationState(order.number, order.layer, "moving", move, placement)
        self._mesh.pace(move.targets, self._bulk_rate)
        for target in move.targets:
            self._mesh.send(target, order.number, move.frames_for(target))
        self._mesh.resume()
        self._stage_if_complete()

    def _stage_if_complete(self) -> None:
        state = self.state
        if self._move is None or not self._move.complete or state is None:
            return
        self.state = MigrationState(state.number, state.layer, "staged", self._move, state.placement)

    def _give_up(self, reason: str) -> None:
        """Refuse the migration that is under way, if one is; the loop tells the others."""
        state = self.state
        if state is None or state.number <= self._over:
            return
        progress = f"; {self._move.progress()}" if self._move is not None else ""
        self.state = MigrationState(state.number, state.layer, "given up", reason=f"{reason}{progress}")
        self._forget(state.number)

    def _forget(self, number: int) -> None:
        self._over = max(self._over, number)
        self._mesh.unqueue(number)
        if self._move is not None and self._move.number <= number:
            self._move = None
        self._mesh.resume()

    # what becomes of frames

    def room_for(self, rank: int, head: Head, size: int) -> memoryview | None:
        """Return where a piece of the migration under way goes; those of earlier ones go nowhere.

        Raises:
            Paused: it belongs to a migration that this rank has not begun.
            ProtocolError: it is not the next one of what the rank is to send.
        """
        if isinstance(head, Order) or head.number <= self._over:
            return None
        if self._move is None or self._move.number != head.number:
            raise Paused
        return self._move.room_for(rank, head, size)

    def took(self, rank: int, head: Head, size: int, *, intact: bool) -> None:
        """Take an order, or note that a piece is in its place."""
        if isinstance(head, Order):
            if rank != LEADER:
                raise ProtocolError("only the leader, rank 0, gives orders")
            self._order = head
            self._begin_if_current()
        elif self._move is not None and head.number == self._move.number:
            self._take_piece(rank, head, size, intact=intact)

    def _take_piece(self, rank: int, piece: Piece, size: int, *, intact: bool) -> None:
        assert self._move is not None
        if not intact:
            self._give_up(f"weights of expert {piece.expert} from rank {rank} were damaged on the way")
            return
        self._move.took(piece, size)
        self._stage_if_complete()

    def lost(self, rank: int, why: str) -> None:
        """Note that a peer is gone; what it was to send will not come."""
        self._lost[rank] = why
        _log.info("rank %d: lost the bulk connection to rank %d: %s", self._rank, rank, why)
        self._give_up(f"lost the connection to rank {rank}: {why}")
