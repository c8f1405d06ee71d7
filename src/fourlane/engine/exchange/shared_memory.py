"""Exchange between processes of one host, through memory that they share.

A token's row is written once, by its sender, to its final place among the receiver's rows; outputs are
read where the rank that computed them put them, and summed as they are read. The native core
(`cpp/include/fourlane/shared_exchange.hpp`) says why that needs no further message, and what waits for
what. Not for activations on a GPU, nor between hosts.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import torch

from fourlane.engine.exchange.contract import Pending, Received
from fourlane.engine.exchange.group_exchange import ANNOUNCED, SteppedExchange
from fourlane.engine.exchange.payload import AS_IS, Payload
from fourlane.engine.exchange.rows import decoded_counts, weighted_sum
from fourlane.engine.exchange.shared_meeting import GATHER_BYTES, meet
from fourlane.engine.exchange.slots import Landing
from fourlane.errors import EngineError, PeerLost, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch.distributed as dist
    from torch import Tensor

    from fourlane._native import SharedExchange
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


@dataclass(frozen=True, slots=True)
class _Way:
    """Where this rank's rows of a dispatch went.

    sent: its pairs in order of slots; quota_P, first_P: how many of them went to each slot, and where in the
    buffer of the slot's rank the first is.
    foreign: of its rows, and of those it got, how many went to or came from other ranks.
    fullest: rows of the rank that got most.
    """

    sent: Sorted
    quota_P: np.ndarray
    first_P: np.ndarray
    slots_per_rank: int
    foreign: tuple[int, int]
    fullest: int


@dataclass(eq=False, slots=True)
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
    row_GX: np.ndarray | None = None
    """What all told in the counts round, [ranks, experts + ANNOUNCED]; None until collected."""
    way: _Way | None = None
    """None until the rows have been written."""
    combining: bool = False
    """Outputs have been given, and those of the others not been read yet."""


class SharedMemoryExchange(SteppedExchange):
    """The exchange through shared memory.

    `Received.x_RD` lies in shared memory: see the contract for how long it is valid.
    """

    spins = True

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
        meeting = meet(address, secret)
        self._room = meeting.room
        self._store: dist.Store | None = meeting.store
        self._core: SharedExchange | None = meeting.exchange
        # One tensor for each buffer's whole address range; they keep the memory mapped.
        self._received, self._parts = (
            [torch.from_numpy(view(number)) for number in range(_LIVE)]
            for view in (meeting.segment.received, meeting.segment.parts)
        )
        self._came: tuple[tuple[torch.Size, torch.dtype], list[Tensor]] | None = None
        """What plain all-to-alls return, for blocks like the last ones."""
        self._exchanged = 0
        self._begun = 0
        self._live: deque[_Dispatch] = deque(maxlen=_LIVE)
        self._process = os.getpid()
        self._end = ""
        """Why nothing can be exchanged any more."""

    def close(self) -> None:
        """Leave the group; operations under way on other ranks fail there, and one under way here.

        The memory goes with the last of the rows received that somebody still holds.
        """
        core, self._core = self._core, None
        if core is None:
            return
        core.leave()
        self._end = self._end or f"rank {self.rank} has left the group"
        self._received.clear()
        self._parts.clear()
        self._came = None
        self._live.clear()

    def all_to_all(self, blocks_GB: Tensor) -> Tensor:
        """Give each rank its block and return everybody's for this one, by rank; for equal blocks without a layout.

        Args:
            blocks_GB: [ranks, ...] of any dtype, as large on every rank.

        Returns:
            The same shape, in shared memory: valid until the next call.

        Raises:
            PeerLost: a peer died or hangs, or gave blocks of another size.
        """
        core = self._open("all-to-all")
        if blocks_GB.dtype != torch.uint8 or blocks_GB.dim() != 2 or not blocks_GB.is_contiguous():
            width = blocks_GB.numel() // self.ranks
            blocks = blocks_GB.reshape(self.ranks, width).contiguous().view(torch.uint8).numpy()
        else:
            blocks = blocks_GB.numpy()
        if blocks.size > self._room:
            raise self._no_room("all-to-all", blocks.size)
        self._wait(lambda patience_s: core.all_to_all(blocks, patience_s), "all-to-all")
        self.counters.bytes_sent += (self.ranks - 1) * blocks.shape[1]
        like = (blocks_GB.shape, blocks_GB.dtype)
        if self._came is None or self._came[0] != like:
            views = [part[: blocks.size].view(blocks_GB.dtype).view(blocks_GB.shape) for part in self._parts]
            self._came = like, views
        self._exchanged += 1
        return self._came[1][(self._exchanged - 1) % _LIVE]

    def _gather(self, mine: Tensor, where: str) -> np.ndarray:
        array = mine.contiguous().view(torch.uint8).numpy()
        starts = range(0, max(1, array.size), GATHER_BYTES)
        parts = [self._give_all(array[start : start + GATHER_BYTES], where) for start in starts]
        return np.concatenate(parts, axis=1).view(mine.numpy().dtype)

    def _give_all(self, mine: np.ndarray, where: str) -> np.ndarray:
        core = self._open(where)
        for one in self._live:  # operations are collected in their order
            self._collect(one)
        operation = core.give(_Kind.TEXT, mine)
        everybody = np.empty(self.ranks * mine.size, dtype=np.uint8)
        self._wait(lambda patience_s: core.collect(operation, _Kind.TEXT, everybody, patience_s), where)
        return everybody.reshape(self.ranks, mine.size)

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
        core = self._open(where)
        self._check_live(where)
        self._tables = tables = self._tables.of(placement)
        pairs = tables.layer(layer).sort(topk_TK)
        decode_E = decoded_counts(topk_TK, decode_rows, pairs.count_E)
        told_X = np.concatenate((pairs.count_E.numpy(), self._announced.numpy()))
        operation = core.give(_Kind.COUNTS, told_X.view(np.uint8))
        one = _Dispatch(self._begun, operation, layer, where, tables, pairs, weights_TK, decode_E)
        self._begun += 1
        self._live.append(one)
        return _Pending(lambda: self._finish_dispatch(one, x_TD))  # type: ignore[return-value]

    def _check_live(self, where: str) -> None:
        """See that the buffers of the dispatch before the last are free."""
        if len(self._live) < _LIVE:
            return
        oldest = self._live[0]
        missing = "it was not waited for" if oldest.way is None else "its combine was not waited for"
        free = oldest.way is not None and not oldest.combining
        assert free, f"{where}: at most {_LIVE} dispatches may be under way, and that of {oldest.where} is: {missing}"

    def _collect(self, one: _Dispatch) -> np.ndarray:
        """Return what all told with a dispatch, [ranks, experts + ANNOUNCED], once it is there."""
        if one.row_GX is None:
            core = self._open(one.where)
            row_GX = np.empty((self.ranks, one.pairs.count_E.shape[0] + ANNOUNCED), dtype=np.int64)
            flat = row_GX.reshape(-1).view(np.uint8)
            where = f"{one.where}, counts"
            self._wait(lambda patience_s: core.collect(one.operation, _Kind.COUNTS, flat, patience_s), where)
            one.row_GX = row_GX
        return one.row_GX

    def _finish_dispatch(self, one: _Dispatch, x_TD: Tensor) -> Received:
        core = self._open(one.where)
        assert one in self._live, f"{one.where}: waited for after two later dispatches had begun"
        if one is not self._live[0]:  # counts are collected in their order
            self._collect(self._live[0])
        count_GE = self._read_counts(self._collect(one))
        routes = one.tables.routes(one.layer, count_GE, split=self._split, nodes=self._nodes)
        self._count(one.layer, routes, count_GE[self.rank], one.decode_E)
        landing = Landing.of(routes.quota_GP, self.rank)
        one.way = self._way(one, routes, landing)
        packed_TB = self._payload.pack(x_TD)
        row_bytes = packed_TB.shape[1]
        self._send(core, one.number, one.way, packed_TB.numpy())
        where = f"{one.where}, dispatch"
        self._wait(lambda patience_s: core.await_rows(one.number, landing.rows_G, patience_s), where)
        rows = landing.offset_S1[-1]
        rows_RB = self._received[one.number % _LIVE][: rows * row_bytes].view(rows, row_bytes)
        x_RD = self._payload.unpack(rows_RB, x_TD.shape[1], x_TD.dtype)
        return Received(x_RD=x_RD, offset_S1=landing.offset_S1, count_GE=count_GE, handle=one)

    def _way(self, one: _Dispatch, routes: Routes, landing: Landing) -> _Way:
        sent = one.tables.layer(one.layer).by_slot(one.pairs, routes.quota_P)
        own = int(landing.rows_G[self.rank])  # what it sends to itself it gets from itself
        foreign = sent.order_R.shape[0] - own, landing.offset_S1[-1] - own
        slots = routes.quota_P.size // self.ranks
        return _Way(sent, routes.quota_P, landing.first_P, slots, foreign, int(routes.tokens_G.max()))

    def _send(self, core: SharedExchange, number: int, way: _Way, packed_TB: np.ndarray) -> None:
        """Write this rank's rows to where they are computed."""
        row_bytes = packed_TB.shape[1]
        self._check_room(way, row_bytes)
        core.send_rows(number, packed_TB, way.sent.rows_R.numpy(), way.quota_P, way.first_P, way.slots_per_rank)
        self.counters.bytes_sent += way.foreign[0] * row_bytes

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Let the others read outputs; theirs are read and summed when it is waited for. See the contract."""
        handle = received.handle
        assert isinstance(handle, _Dispatch)
        one: _Dispatch = handle
        where = f"{self._place}, combine"
        core = self._open(where)
        assert one in self._live, f"{one.where}: combined after two later dispatches had begun"
        way = one.way
        assert way is not None, "rows are received before they are combined"
        row_bytes = y_RD.shape[1] * y_RD.element_size()
        self._check_room(way, row_bytes)
        core.give_outputs(one.number, y_RD.contiguous().view(-1).view(torch.uint8).numpy())
        self.counters.bytes_sent += way.foreign[1] * row_bytes
        one.combining = True
        dim, dtype = y_RD.shape[1], y_RD.dtype

        def finish() -> Tensor:
            self._await_outputs(one.number, way, where)
            result = self._sum(one, way, dim, dtype)
            one.combining = False
            return result

        return _Pending(finish)  # type: ignore[return-value]

    def _await_outputs(self, number: int, way: _Way, where: str) -> None:
        core = self._open(where)
        slots = way.slots_per_rank
        self._wait(lambda patience_s: core.await_outputs(number, way.quota_P, way.first_P, slots, patience_s), where)

    def _sum(self, one: _Dispatch, way: _Way, dim: int, dtype: torch.dtype) -> Tensor:
        """Return each token's outputs, summed in the order of K, from where they lie."""
        core = self._open(one.where)
        order_R, tokens = way.sent.order_R, one.weights_TK.shape[0]
        if dtype == torch.float32:
            sum_TD = np.empty((tokens, dim), dtype=np.float32)
            weights_TK = one.weights_TK.to(torch.float32).contiguous().numpy()
            where = (order_R.numpy(), way.quota_P, way.first_P, way.slots_per_rank)
            core.sum_outputs(one.number, *where, weights_TK, sum_TD)
            return torch.from_numpy(sum_TD)
        y_RD = torch.empty((order_R.shape[0], dim), dtype=dtype)
        bytes_RB = y_RD.view(torch.uint8).numpy()
        core.copy_outputs(one.number, way.quota_P, way.first_P, way.slots_per_rank, bytes_RB)
        return weighted_sum(y_RD, order_R, one.weights_TK)

    def _check_room(self, way: _Way, row_bytes: int) -> None:
        """See that the fullest rank has room for its rows; all ranks find the same."""
        if way.fullest * row_bytes > self._room:
            raise self._no_room(self._place, way.fullest * row_bytes)

    def _no_room(self, where: str, most: int) -> EngineError:
        return EngineError(
            f"{where}: a rank would get {most} bytes, and a buffer of shared memory has room for {self._room} here; "
            "lower chunk_tokens or max_running, or raise the ranks' limits of address space and file size"
        )

    def _open(self, where: str) -> SharedExchange:
        """Return the core, if this rank is still in the group and nobody was lost."""
        if os.getpid() != self._process:
            raise EngineError(f"{where}: a forked child is no rank of the group; only process {self._process} is")
        if self._core is None or self._end:
            raise PeerLost(f"{where}: {self._end}")
        return self._core

    def _wait(self, call: Callable[[float], tuple[int, list[int]] | None], where: str) -> None:
        """Wait for something, through signals, and say who held it up if it does not come.

        Args:
            call: waits for at most so many seconds.
            where: for the error.
        """
        began = time.perf_counter()
        ended = call(self._address.step_s)
        while ended is not None and ended[0] == _End.INTERRUPTED:  # Python's handlers have run by now
            ended = call(max(0.0, began + self._address.step_s - time.perf_counter()))
        self.counters.wait_s += time.perf_counter() - began
        if ended is not None:
            self._end = str(self._lost(where, _describe(_End(ended[0]), ended[1])))
            raise PeerLost(self._end)  # not from a variable: its frame would hold it, and it the memory


def _describe(end: _End, peers: list[int]) -> str:
    if end == _End.LEFT:
        return "this rank has left the group"
    what = {
        _End.TIMED_OUT: "nothing came",
        _End.GONE: "it closed the connection or died",
        _End.UNEXPECTED: "it gave something else than expected: the ranks are out of step or of unlike versions",
    }[end]
    return "; ".join(f"rank {peer}: {what}" for peer in peers)
