"""What a rank's step loop has to do with live balancing: announce, commit or drop, hand over loads.

With the counts of every step each rank says up to which migration it has staged all, and which it has
refused. All see the same answers in the same step, so all commit - the placement's new row and the
layer's new experts together - or drop it at the end of that step, and nobody has to ask anybody.
Nothing here waits, except `join`, where the ranks of a group meet.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fourlane.engine.balance.initial import newest_placement
from fourlane.engine.balance.leader import Leader
from fourlane.engine.balance.thread import LEADER, BalanceThread
from fourlane.engine.exchange.tcp_meeting import meet
from fourlane.engine.messages import BalanceStats
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    import socket

    import numpy as np

    from fourlane.engine.balance.layer_move import LayerMove
    from fourlane.engine.balance.thread import MigrationState
    from fourlane.engine.exchange.contract import Agreement
    from fourlane.engine.exchange.group_exchange import SteppedExchange
    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.model.qwen3_moe import CausalLM
    from fourlane.engine.rank_config import RankConfig
    from fourlane.engine.seal import Secret
    from fourlane.lanes.connections import LaneBook
    from fourlane.policy.placement import Placement

__all__ = ["Balancer"]

_log = logging.getLogger(__name__)
_LONGEST_STEP_S = 1.0
"""What counts of the time between two steps for the watchdog: a group that sleeps is not late."""


class Balancer:
    """Keeps the placement of one rank's group, and moves its experts.

    Args:
        config: of the rank, with `balance`.
        model: whose experts move.
        placement: the one the group begins with.
        lanes: the process's lanes.
        secret: by which the ranks know each other.
    """

    def __init__(
        self, config: RankConfig, model: CausalLM, placement: Placement, *, lanes: LaneBook, secret: Secret
    ) -> None:
        assert config.balance is not None
        self.placement = placement
        self.version = 0
        self._config = config
        self._settings = config.balance
        self._model = model
        self._lanes = lanes
        self._secret = secret
        self._thread: BalanceThread | None = None
        self._leader: Leader | None = None
        self._over = 0
        """Migrations up to this number were committed or dropped by all."""
        self._refused = 0
        self._held: MigrationState | None = None
        self._clock_s = 0.0
        self._began: tuple[int, float] = (0, 0.0)
        self._stepped_at = 0.0
        self._steps = 0
        self._counted_LE: np.ndarray | None = None
        self._before_LE: np.ndarray | None = None
        self._totals = _Totals()
        self._bytes_before = 0

    # the group

    def join(self, exchange: SteppedExchange, address: GroupAddress) -> None:
        """Agree with the other ranks on the newest placement, and meet them on the bulk lane.

        Raises:
            PeerLost: a peer died or hangs.
            EngineError: the ranks hold unlike numbers of slots.
        """
        self.leave()
        newest, self.version = newest_placement(exchange, self.placement, self.version)
        sockets: list[socket.socket | None] = []
        if self._settings.rebalance:
            lane = self._lanes.end(TrafficClass.BULK)
            sockets = meet(replace(address, lane=lane), self._secret, tell_all=exchange.tell_all).sockets
        self._adopt(newest)
        if self._settings.rebalance:
            self._start(sockets)

    def leave(self) -> None:
        """End what is under way: the group broke, or the rank stops."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._bytes_before += thread.bytes_sent
            thread.stop()
        self._over = self._refused = self._steps = 0
        self._held = self._counted_LE = None
        self._began = (0, 0.0)

    # a step

    def announcement(self) -> tuple[int, int]:
        """Return up to which migration this rank has staged all, and which it refuses at the latest."""
        now = time.monotonic()
        self._clock_s += min(now - self._stepped_at, _LONGEST_STEP_S)
        self._stepped_at = now
        state = self._thread.state if self._thread is not None else None
        if state is None or state.number <= self._over or state.number <= self._refused:
            return self._over, self._refused
        if state.stage == "given up":
            self._refuse(state, state.reason)
        elif self._late(state):
            progress = f": {state.move.progress()}" if state.move is not None else ""
            self._refuse(state, f"it took longer than {self._settings.migration_timeout_s:g} s{progress}")
        elif state.stage == "staged":
            self._held = state
        return self._held.number if self._held is not None else self._over, self._refused

    def end_step(self, agreement: Agreement, group_load_LE: np.ndarray) -> Placement:
        """Commit or drop what the ranks agreed on; hand loads over when a window is full.

        Returns:
            The placement from the next step on, which the model's experts lie as.

        Args:
            agreement: of the step that has just run.
            group_load_LE: tokens each expert got from the whole group so far, as a total.
        """
        if agreement.refused > self._over:
            self._drop(agreement.refused)
        elif agreement.staged > self._over:
            self._commit(agreement.staged)
        if self._leader is not None:
            self._count(group_load_LE)
        return self.placement

    # what is told

    @property
    def moving(self) -> bool:
        """Tell whether a layer is on its way to or from this rank."""
        state = self._thread.state if self._thread is not None else None
        return state is not None and state.number > self._over

    @property
    def bytes_sent(self) -> int:
        """Return the bytes sent on the bulk lane."""
        return self._bytes_before + (self._thread.bytes_sent if self._thread is not None else 0)

    def stats(self) -> BalanceStats:
        """Return what is known of migrations."""
        leader, totals = self._leader, self._totals
        return BalanceStats(
            placement_version=self.version,
            layers_migrated=totals.layers,
            experts_moved=totals.experts,
            migration_bytes=totals.bytes,
            migration_s=totals.seconds,
            migrations_failed=totals.failed,
            forecast_balance=leader.forecast if leader is not None else None,
            realised_balance=leader.realised if leader is not None else None,
        )

    def _adopt(self, newest: Placement) -> None:
        """Take the group's placement over; what this rank holds otherwise comes from the checkpoint."""
        rank, mine = self._config.group_rank, self.placement
        other = [
            layer
            for layer in range(newest.layers)
            if (newest.experts_of(rank, layer) != mine.experts_of(rank, layer)).any()
        ]
        if other:
            _log.info("%s: the group's placement is newer; reading experts of %d layers", self._config.name, len(other))
        for layer, experts in self._model.read_experts(newest, rank, other):
            self._model.moe_blocks[layer].experts = experts
        self.placement = newest

    def _start(self, sockets: list[socket.socket | None]) -> None:
        rank = self._config.group_rank
        placement = self.placement
        self._leader = None
        if rank == LEADER:
            self._leader = Leader(self._settings, layers=placement.layers, experts=placement.experts)
        self._thread = BalanceThread(
            sockets,
            rank,
            placement=(placement, self.version),
            experts_of=lambda layer: self._model.moe_blocks[layer].experts,
            leader=self._leader,
            bulk_rate=self._settings.bulk_rate,
        )
        self._thread.start()

    def _late(self, state: MigrationState) -> bool:
        number, since_s = self._began
        if number != state.number:
            self._began = (state.number, self._clock_s)
            return False
        return self._clock_s - since_s > self._settings.migration_timeout_s

    def _refuse(self, state: MigrationState, reason: str) -> None:
        self._refused = state.number
        _log.warning(
            "%s: gave up moving experts of layer %d, they stay where they are: %s",
            self._config.name, state.layer, reason,
        )  # fmt: skip

    def _drop(self, number: int) -> None:
        self._over, self._held = number, None
        self._totals.failed += 1
        if self._thread is not None:
            self._thread.dropped(number)

    def _commit(self, number: int) -> None:
        held, self._held = self._held, None
        assert self._thread is not None
        assert held is not None, "this rank announced that it had staged it"
        assert held.move is not None
        assert held.placement is not None
        self._model.moe_blocks[held.layer].experts = held.move.experts
        self.placement = held.placement
        self.version += 1
        self._over = number
        self._totals.add(held.move, self._clock_s - self._began[1])
        self._thread.committed(number, held.placement)

    def _count(self, group_load_LE: np.ndarray) -> None:
        """Hand the leader a window's load when it is full; the first step after a forming only begins to count."""
        assert self._thread is not None
        window = self._settings.window_steps
        if self._counted_LE is None:
            self._counted_LE = self._before_LE = group_load_LE.copy()
            return
        self._steps += 1
        if self._steps % window == 0:
            now_LE = group_load_LE.copy()
            self._thread.add_window(now_LE - self._counted_LE, now_LE - self._before_LE, window)
            self._counted_LE = self._before_LE = now_LE
        elif self._steps % window == window - 1:
            self._before_LE = group_load_LE.copy()


@dataclass(slots=True)
class _Totals:
    """What migrations took on this rank since it began."""

    layers: int = 0
    experts: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failed: int = 0

    def add(self, move: LayerMove, seconds: float) -> None:
        self.layers += 1
        self.experts += move.experts_received
        self.bytes += move.bytes_received
        self.seconds += seconds
