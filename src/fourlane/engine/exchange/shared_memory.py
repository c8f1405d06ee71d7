"""Exchange between processes of one host, through memory that they share.

A token's row is written once, by its sender, to its final place among the receiver's rows; outputs are
read where the rank that computed them put them, and summed as they are read. The native core
(`cpp/include/fourlane/shared_exchange.hpp`) says why that needs no further message, and what waits for
what. Not for activations on a GPU, nor between hosts.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import torch

from fourlane.engine.exchange.contract import Pending, Received
from fourlane.engine.exchange.group_exchange import ANNOUNCED, SteppedExchange
from fourlane.engine.exchange.meeting import names_of
from fourlane.engine.exchange.payload import AS_IS, Payload
from fourlane.engine.exchange.rows import decoded_counts, weighted_sum
from fourlane.engine.exchange.shared_meeting import GATHER_BYTES, meet
from fourlane.engine.exchange.slots import first_rows
from fourlane.errors import EngineError, PeerLost, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.exchange.rows import Sorted
    from fourlane.engine.exchange.slots import Routes, SlotTables
    from fourlane.engine.seal import Secret
    from fourlane.policy.placement import Placement

__all__ = ["SharedMemoryExchange"]

_LIVE = 2
"""Dispatches that may be under way at once: as many buffers as there are."""


class _Kind(IntEnum):
    """What is given to all."""

    COUNTS = 1
    TEXT = 2


class _End(IntEnum):
    """How a wait ended: `fourlane::SharedEnd`."""

    TIMED_OUT = 1
    INTERRUPTED = 2
    LEFT = 3
    GONE = 4
    UNEXPECTED = 5


@dataclass(frozen=True, slots=True)
class _Pending:
    """A result computed by `finish` when first asked for."""

    finish: Callable[[], object]

    def wait(self) -> object:
        """Block until the result is there."""
        return self.finish()


@dataclass(slots=True)
class _Dispatch:
    """A dispatch from its beginning until two later ones have begun."""

    number: int
    operation: int
    layer: int
    where: str
    tables: SlotTables
    pairs: Sorted
    weights_TK: Tensor
    decode_E: Tensor | None
    row_X: np.ndarray | None = None
    """What all told in the counts round, [ranks, experts + ANNOUNCED]; None until collected."""
    sent: Sorted | None = None
    """This rank's rows in order of slots; None until they have been written."""
    quota_P: np.ndarray | None = None
    first_P: np.ndarray | None = None
    tokens_G: np.ndarray | None = None
    combining: bool = False
    """Outputs have been given and those of the others not been read yet."""


class SharedMemoryExchange(SteppedExchange):
    """The exchange through shared memory.

    `Received.x_RD` lies in shared memory: see the contract for how long it is valid.
    """

    def __init__(
        self,
        address: GroupAddress,
        placement: Placement,
        *,
        device: torch.device,
        secret: Secret,
        counters: ExchangeCounters | None = None,
        split: bool = True,
        payload: Payload = AS_IS,
    ) -> None:
        """Join the group; blocks until every rank is there.

        Args:
            address: where and with whom.
            placement: where experts live at first.
            device: of the activations; a CPU.
            secret: the deployment's key, by which ranks know each other.
            counters: totals of an earlier generation to go on with.
            split: level ranks over replicas batch by batch, or else spread tokens evenly over them.
            payload: in which form rows travel.

        Raises:
            PeerLost: not all ranks came within `address.join_s`.
            SpecError: activations are not on a CPU, or the ranks not on one host.
            MemoryShortage: this process may not have or map the memory.
        """
        if device.type != "cpu":
            raise SpecError(
                f"exchange.implementation: shared_memory is for activations on a CPU, got a pool on {device.type}; "
                'use "torch_all_to_all"'
            )
        super().__init__(address, placement, marks=[], counters=counters, split=split)
        self._payload = payload
        self._meeting = meeting = meet(address, secret)
        self._core = meeting.exchange
        # One tensor for each buffer's whole address range; they keep the memory mapped.
        self._received, self._parts = (
            [torch.from_numpy(view(number)) for number in range(_LIVE)]
            for view in (meeting.segment.received, meeting.segment.parts)
        )
        self._begun = 0
        self._exchanged = 0
        self._live: deque[_Dispatch] = deque(maxlen=_LIVE)
        self._end: PeerLost | None = None

    def close(self) -> None:
        """Leave the group; operations under way on other ranks fail there, and one under way here."""
        if self._end is None:
            self._end = PeerLost(f"rank {self.rank} has left the group")
        self._core.leave()

    def all_to_all(self, blocks_GB: Tensor) -> Tensor:
        """Give each rank its block and return everybody's for this one, by rank; for equal blocks without a layout.

        Args:
            blocks_GB: [ranks, ...] of any dtype, as large on every rank.

        Returns:
            The same shape, in shared memory: valid until the next call.

        Raises:
            PeerLost: a peer died or hangs, or gave blocks of another size.
        """
        self._check_open("all-to-all")
        blocks = blocks_GB.reshape(self.ranks, blocks_GB.numel() // self.ranks).contiguous().view(torch.uint8)
        if blocks.shape[1] * self.ranks > self._meeting.room:
            raise self._no_room("all-to-all", blocks.numel())
        array = blocks.numpy()
        self._wait(lambda patience_s: self._core.all_to_all(array, patience_s), "all-to-all")
        self.counters.bytes_sent += (self.ranks - 1) * blocks.shape[1]
        came = self._parts[self._exchanged % _LIVE][: blocks.numel()]
        self._exchanged += 1
        return came.view(blocks_GB.dtype).view(blocks_GB.shape)

    def _gather(self, mine: Tensor, where: str) -> np.ndarray:
        array = mine.contiguous().view(torch.uint8).numpy()
        starts = range(0, max(1, array.size), GATHER_BYTES)
        parts = [self._give_all(array[start : start + GATHER_BYTES], where) for start in starts]
        return np.concatenate(parts, axis=1).view(mine.numpy().dtype)

    def _give_all(self, mine: np.ndarray, where: str) -> np.ndarray:
        self._check_open(where)
        for one in self._live:  # operations are collected in their order
            self._collect(one)
        operation = self._core.give(_Kind.TEXT, mine)
        everybody = np.empty((self.ranks, mine.size), dtype=np.uint8)
        flat = everybody.reshape(-1)
        self._wait(lambda patience_s: self._core.collect(operation, _Kind.TEXT, flat, patience_s), where)
        return everybody

    def dispatch(
        self,
        x_TD: Tensor,
        topk_TK: Tensor,
        weights_TK: Tensor,
        placement: Placement,
        *,
        layer: int,
        decode_rows: Tensor | None = None,
    ) -> Pending[Received]:
        """Tell the counts; the rows follow when it is waited for. See the contract."""
        where = f"{self._place}, layer {layer}"
        self._check_open(where)
        self._check_live(where)
        self._tables = tables = self._tables.of(placement)
        pairs = tables.layer(layer).sort(topk_TK)
        decode_E = decoded_counts(topk_TK, decode_rows, pairs.count_E)
        operation = self._core.give(_Kind.COUNTS, self._count_row(pairs.count_E).view(torch.uint8).numpy())
        one = _Dispatch(self._begun, operation, layer, where, tables, pairs, weights_TK, decode_E)
        self._begun += 1
        self._live.append(one)
        return _Pending(lambda: self._finish_dispatch(one, x_TD))  # type: ignore[return-value]

    def _check_live(self, where: str) -> None:
        """See that the buffers of the dispatch before the last are free."""
        if len(self._live) < _LIVE:
            return
        oldest = self._live[0]
        waits_for = "it was not waited for" if oldest.sent is None else "its combine was not waited for"
        assert oldest.sent is not None and not oldest.combining, (  # noqa: PT018 - one fact
            f"{where}: at most {_LIVE} dispatches may be under way, and {oldest.where} is: {waits_for}"
        )

    def _collect(self, one: _Dispatch) -> None:
        """Wait for everybody's counts, if that has not happened."""
        if one.row_X is not None:
            return
        row_X = np.empty((self.ranks, one.pairs.count_E.shape[0] + ANNOUNCED), dtype=np.int64)
        flat = row_X.reshape(-1).view(np.uint8)
        where = f"{one.where}, counts"
        self._wait(lambda patience_s: self._core.collect(one.operation, _Kind.COUNTS, flat, patience_s), where)
        one.row_X = row_X

    def _finish_dispatch(self, one: _Dispatch, x_TD: Tensor) -> Received:
        self._check_open(one.where)
        for earlier in tuple(self._live):
            if earlier.number <= one.number:
                self._collect(earlier)
        assert one.row_X is not None, f"{one.where}: waited for after two later dispatches had begun"
        count_GE = self._read_counts(one.row_X)
        routes = one.tables.routes(one.layer, count_GE, split=self._split, nodes=self._nodes)
        self._count(one.layer, routes, count_GE[self.rank], one.decode_E)
        packed_TB = self._payload.pack(x_TD)
        self._send(one, routes, packed_TB.numpy())
        offset_S1 = [0, *routes.count_GS.sum(axis=0).cumsum().tolist()]
        rows, row_bytes = offset_S1[-1], packed_TB.shape[1]
        rows_G = routes.count_GS.sum(axis=1)
        where = f"{one.where}, dispatch"
        self._wait(lambda patience_s: self._core.await_rows(one.number, rows_G, patience_s), where)
        rows_RB = self._received[one.number % _LIVE][: rows * row_bytes].view(rows, row_bytes)
        x_RD = self._payload.unpack(rows_RB, x_TD.shape[1], x_TD.dtype)
        return Received(x_RD=x_RD, offset_S1=offset_S1, count_GE=count_GE, handle=one)

    def _send(self, one: _Dispatch, routes: Routes, packed_TB: np.ndarray) -> None:
        """Write this rank's rows to where they are computed."""
        one.quota_P, one.first_P = routes.quota_P, first_rows(routes.quota_GP, self.rank)
        one.tokens_G = routes.tokens_G
        one.sent = one.tables.layer(one.layer).by_slot(one.pairs, one.quota_P)
        self._check_room(one, packed_TB.shape[1])
        slots = one.quota_P.size // self.ranks
        self._core.send_rows(one.number, packed_TB, one.sent.rows_R.numpy(), one.quota_P, one.first_P, slots)
        own = int(one.quota_P[self.rank * slots : (self.rank + 1) * slots].sum())
        self.counters.bytes_sent += (int(one.quota_P.sum()) - own) * packed_TB.shape[1]

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Let the others read outputs; theirs are read and summed when it is waited for. See the contract."""
        one = received.handle
        assert isinstance(one, _Dispatch)
        assert one in self._live, f"{one.where}: combined after two later dispatches had begun"
        where = f"{self._place}, combine"
        self._check_open(where)
        row_bytes = y_RD.shape[1] * y_RD.element_size()
        self._check_room(one, row_bytes)
        y = y_RD.contiguous().view(-1).view(torch.uint8).numpy()
        self._core.give_outputs(one.number, y)
        own = int(received.count_GE.shape[0] and received.offset_S1[-1])
        self.counters.bytes_sent += (own - self._own_rows(one)) * row_bytes
        one.combining = True
        shape = (one.weights_TK.shape[0], y_RD.shape[1])
        return _Pending(lambda: self._finish_combine(one, shape, y_RD.dtype, where))  # type: ignore[return-value]

    def _finish_combine(self, one: _Dispatch, shape: tuple[int, int], dtype: torch.dtype, where: str) -> Tensor:
        self._check_open(where)
        assert one.sent is not None and one.quota_P is not None and one.first_P is not None  # noqa: PT018
        quota_P, first_P = one.quota_P, one.first_P
        slots = quota_P.size // self.ranks
        self._wait(lambda patience_s: self._core.await_outputs(one.number, quota_P, first_P, slots, patience_s), where)
        order_R = one.sent.order_R
        if dtype == torch.float32:
            sum_TD = np.empty(shape, dtype=np.float32)
            weights_TK = one.weights_TK.to(torch.float32).contiguous().numpy()
            self._core.sum_outputs(one.number, order_R.numpy(), quota_P, first_P, slots, weights_TK, sum_TD)
            result = torch.from_numpy(sum_TD)
        else:
            y_RD = torch.empty((order_R.shape[0], shape[1]), dtype=dtype)
            self._core.copy_outputs(one.number, quota_P, first_P, slots, y_RD.view(torch.uint8).numpy())
            result = weighted_sum(y_RD, order_R, one.weights_TK)
        one.combining = False
        return result

    def _own_rows(self, one: _Dispatch) -> int:
        """Return how many rows this rank sent to itself."""
        assert one.quota_P is not None
        return int(one.quota_P.reshape(self.ranks, -1)[self.rank].sum())

    def _check_room(self, one: _Dispatch, row_bytes: int) -> None:
        """See that the fullest rank has room for its rows; all ranks find the same."""
        assert one.tokens_G is not None
        most = int(one.tokens_G.max()) * row_bytes
        if most > self._meeting.room:
            raise self._no_room(one.where, most)

    def _no_room(self, where: str, most: int) -> EngineError:
        return EngineError(
            f"{where}: a rank would get {most} bytes, and a buffer of shared memory has room for {self._meeting.room} "
            "here; lower chunk_tokens or max_running, or raise the ranks' limits of address space and file size"
        )

    def _check_open(self, where: str) -> None:
        if self._end is not None:
            raise PeerLost(f"{where}: {self._end}")

    def _wait(self, call: Callable[[float], tuple[int, list[int]] | None], where: str) -> None:
        """Wait for something, through signals, and say who held it up if it does not come.

        Args:
            call: waits for at most so many seconds.
            where: for the error.
        """
        began = time.perf_counter()
        deadline = began + self._address.step_s
        try:
            ended = call(self._address.step_s)
            while ended is not None and ended[0] == _End.INTERRUPTED:  # Python's handlers have run by now
                ended = call(max(0.0, deadline - time.perf_counter()))
        finally:
            self.counters.blocked(time.perf_counter() - began)
        if ended is not None:
            self._end = self._lost(where, _describe(_End(ended[0]), ended[1]))
            raise self._end


def _describe(end: _End, peers: list[int]) -> str:
    if end == _End.LEFT:
        return "this rank has left the group"
    what = {
        _End.TIMED_OUT: "nothing came",
        _End.GONE: "it closed the connection or died",
        _End.UNEXPECTED: "it gave something else than expected: the ranks are out of step or of unlike versions",
    }[end]
    return "; ".join(f"{names_of([peer])}: {what}" for peer in peers)
