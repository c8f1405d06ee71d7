"""Dispatch and combine over any carrier that can gather a row and exchange rows with every rank.

The one place where tokens are sorted, counted, laid out and summed, so that carriers (gloo, NCCL,
own TCP sockets) give the same bits. Not for how bytes travel: that is a `Carrier`'s.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fourlane.engine.exchange.contract import Pending, Received
from fourlane.engine.exchange.group_exchange import SteppedExchange
from fourlane.engine.exchange.payload import AS_IS
from fourlane.engine.exchange.rows import Arrival, decoded_counts, weighted_sum
from fourlane.errors import PeerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.exchange.group_exchange import Meanwhile
    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.exchange.payload import Payload
    from fourlane.engine.exchange.rows import Sorted
    from fourlane.engine.exchange.slots import LayerSlots, Routes
    from fourlane.lanes.marking import Mark
    from fourlane.policy.placement import Placement

__all__ = ["AllToAllExchange", "Carrier", "CarrierError", "Work"]


class CarrierError(Exception):
    """What a carrier found: who or what keeps an operation from going through."""


class Work(Protocol):
    """An operation of a carrier under way."""

    def wait(self, meanwhile: Meanwhile | None = None) -> Sequence[float] | None:
        """Block until it is through; what there is to begin meanwhile may be begun, if the carrier can be woken.

        Returns:
            For how many seconds each rank was waited for, None if that is not known.

        Raises:
            CarrierError: a peer died or hangs.
        """
        ...


class Carrier(Protocol):
    """Brings bytes to all ranks of a group. All ranks begin the same operations in the same order."""

    marks: list[Mark]
    """The marks of the connections it opened."""

    @property
    def device(self) -> torch.device:
        """Return where its tensors lie."""
        ...

    def gather(self, mine: Tensor) -> tuple[Tensor, Work]:
        """Begin to give a vector to all ranks; return everybody's, [ranks, length], filled when waited for."""
        ...

    def exchange(self, rows: Tensor, sent_G: list[int], received_G: list[int]) -> tuple[Tensor, Work]:
        """Begin to give each rank its rows; return the rows from rank 0, then 1, ..., filled when waited for.

        Args:
            rows: uint8 [rows, bytes], contiguous: those for rank 0, then 1, ...
            sent_G: rows for each rank.
            received_G: rows from each rank.
        """
        ...

    def interrupt(self) -> None:
        """Let an operation that another thread waits for fail soon, if it can; may be called at any time."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


@dataclass(frozen=True, slots=True)
class _Pending:
    """A result computed by `finish` when first asked for."""

    finish: Callable[[], object]

    def wait(self) -> object:
        """Block until the result is there."""
        return self.finish()


@dataclass(frozen=True, slots=True)
class _Handle:
    order_R: Tensor
    weights_TK: Tensor
    place_R: Tensor
    """Where each row, as it arrived, stands among the rows in order of slots."""
    sent_G: list[int]
    received_G: list[int]


class AllToAllExchange(SteppedExchange):
    """Dispatch and combine on uneven splits; no per-expert loops.

    Where an expert has replicas, the counts of the batch decide how many of each rank's tokens go to
    which: the first to the lowest slot, and so on. All ranks come to the same split by themselves.

    Args:
        carrier: brings bytes to the ranks of the group, which has formed.
        address: who this rank is among how many.
        placement: where experts live at first.
        device: of the activations.
        counters: totals of an earlier generation to go on with.
        split: level the ranks over the replicas batch by batch; False: spread each expert's tokens evenly.
        payload: in which form rows are dispatched, the same on all ranks; outputs come back as they are.
    """

    def __init__(
        self,
        carrier: Carrier,
        address: GroupAddress,
        placement: Placement,
        *,
        device: torch.device,
        counters: ExchangeCounters | None = None,
        split: bool = True,
        payload: Payload = AS_IS,
    ) -> None:
        super().__init__(address, placement, marks=carrier.marks, counters=counters, split=split, payload=payload)
        self._device = device
        self._carrier: Carrier | None = carrier
        self._wire = carrier.device

    def _gather(self, mine: Tensor, where: str) -> np.ndarray:
        wire = mine.to(self._wire)
        gathered, work = self._start(where, lambda carrier: carrier.gather(wire))
        self._wait(work, where)
        return gathered.cpu().numpy()

    def interrupt(self) -> None:
        """Let an operation that another thread waits for fail soon, if the carrier can."""
        carrier = self._carrier
        if carrier is not None:
            carrier.interrupt()

    def close(self) -> None:
        """Leave the group; operations under way on other ranks fail there."""
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.close()

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
        """Start the counts round; the rows follow when it is waited for. See the contract."""
        self._tables = tables = self._tables.of(placement)
        pairs = tables.layer(layer).sort(topk_TK)
        decode_E = decoded_counts(topk_TK, decode_rows, pairs.count_E)
        count_row = self._count_row(pairs.count_E, self._more_counts(tables.layer(layer), topk_TK)).to(self._wire)
        where = f"{self._place}, layer {layer}"
        gathered, counts = self._start(f"{where}, counts", lambda carrier: carrier.gather(count_row))
        packed_TB = self._payload.pack(x_TD)  # while the counts are on their way

        def finish() -> Received:
            self._wait(counts, f"{where}, counts")
            told_GX = self._read_counts(gathered.cpu().numpy())
            count_GE = np.ascontiguousarray(told_GX[:, : placement.experts])
            top_k, more_GX = topk_TK.shape[1], told_GX[:, placement.experts :]
            routes = tables.routes(layer, count_GE, split=self._split, nodes=self._nodes)
            self._count(layer, routes, count_GE[self.rank], decode_E)
            sent = tables.layer(layer).by_slot(pairs, routes.quota_P)
            rows, arrival = self._send(
                packed_TB, sent, routes, more_GX=more_GX, top_k=top_k, where=f"{where}, dispatch"
            )
            sent_G, received_G = self._flat_rows(routes)
            return Received(
                x_RD=self._payload.unpack(rows, x_TD.shape[1], x_TD.dtype),
                offset_S1=arrival.offset_S1,
                count_GE=count_GE,
                handle=_Handle(sent.order_R, weights_TK, arrival.place_R, sent_G, received_G),
            )

        return _Pending(finish)  # type: ignore[return-value]

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Start sending outputs back. See the contract."""
        handle = received.handle
        assert isinstance(handle, _Handle)
        back_RD = y_RD.index_select(0, handle.place_R)
        where = f"{self._place}, combine"
        result_RB, work = self._exchange(AS_IS.pack(back_RD), handle.received_G, handle.sent_G, where)

        def finish() -> Tensor:
            self._wait(work, where, self.meanwhile)
            result_RD = AS_IS.unpack(result_RB.to(self._device), y_RD.shape[1], y_RD.dtype)
            return weighted_sum(result_RD, handle.order_R, handle.weights_TK)

        return _Pending(finish)  # type: ignore[return-value]

    def all_to_all(self, blocks_GB: Tensor) -> Tensor:
        """Give each rank one block, as long as every other; return those for this rank. Nothing else: no counts.

        Args:
            blocks_GB: uint8 [ranks, bytes].

        Raises:
            PeerLost: a peer died or hangs.
        """
        where, once_G = f"{self._place}, all-to-all", [1] * self.ranks
        came_GB, work = self._exchange(blocks_GB, once_G, once_G, where)
        self._wait(work, where)
        return came_GB

    def _more_counts(self, slots: LayerSlots, topk_TK: Tensor) -> Tensor | None:  # noqa: ARG002 - others have some
        """Return what a rank tells besides its counts, int64, as much on all ranks; None: nothing."""
        return None

    def _send(
        self, packed_TB: Tensor, sent: Sorted, routes: Routes, *, more_GX: np.ndarray, top_k: int, where: str
    ) -> tuple[Tensor, Arrival]:
        """Give packed tokens to the ranks of their experts; return what arrived, in order of slots.

        Args:
            packed_TB: uint8 [tokens, bytes].
            sent: this rank's (token, expert) pairs by slot.
            routes: how many rows go where.
            more_GX: what all ranks told besides their counts.
            top_k: experts of a token.
            where: for errors.
        """
        del more_GX, top_k  # for those that choose between ways
        sent_G, received_G = self._flat_rows(routes)
        arrived_RB, work = self._exchange(packed_TB.index_select(0, sent.rows_R), sent_G, received_G, where)
        arrival = Arrival.of(routes.count_GS, self._device)
        self._wait(work, where, self.meanwhile)
        return arrived_RB.to(self._device).index_select(0, arrival.by_slot_R), arrival

    def _flat_rows(self, routes: Routes) -> tuple[list[int], list[int]]:
        """Return the rows for each rank and from each rank, where they go straight."""
        sent_G = routes.quota_P.reshape(self.ranks, -1).sum(axis=1).tolist()
        return sent_G, routes.count_GS.sum(axis=1).tolist()

    def _exchange(self, rows_RB: Tensor, sent_G: list[int], received_G: list[int], where: str) -> tuple[Tensor, Work]:
        # As bytes: what travels is not added to or rounded, and no library has to know its dtype.
        rows = rows_RB.to(self._wire).contiguous()
        self.counters.bytes_sent += (sum(sent_G) - sent_G[self.rank]) * rows.shape[1]
        self.counters.cross_node_bytes += (sum(sent_G) - sum(sent_G[self._own_node])) * rows.shape[1]
        return self._start(where, lambda carrier: carrier.exchange(rows, sent_G, received_G))

    def _start(self, where: str, call: Callable[[Carrier], tuple[Tensor, Work]]) -> tuple[Tensor, Work]:
        if self._carrier is None:
            raise PeerLost(f"{where}: rank {self.rank} has left the group")
        try:
            return call(self._carrier)
        except CarrierError as error:
            raise self._lost(where, error) from error

    def _wait(self, work: Work, where: str, meanwhile: Meanwhile | None = None) -> None:
        began = time.perf_counter()
        try:
            waited_G = work.wait(meanwhile)
        except CarrierError as error:
            raise self._lost(where, error) from error
        finally:
            self.counters.blocked(time.perf_counter() - began)
        if waited_G is not None:
            self.counters.waited(waited_G)
