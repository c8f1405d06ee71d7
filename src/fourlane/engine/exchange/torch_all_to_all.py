"""Exchange over torch.distributed: one all-gather of counts, one all-to-all each way.

gloo for CPU tensors, NCCL when every rank of the group has a GPU of its own, gloo over host
memory when ranks share a GPU. The group is an object of its own: no global process group, so
two engines in one process, or a new generation after a peer's death, do not disturb each other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from fourlane.engine.exchange.contract import Agreement, Pending, Received
from fourlane.engine.exchange.counters import ExchangeCounters
from fourlane.engine.exchange.lane import mark_new_sockets, open_sockets
from fourlane.engine.exchange.rows import SlotTables, weighted_sum
from fourlane.errors import PeerLost
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fourlane.policy.placement import Placement

__all__ = ["GroupAddress", "TorchAllToAll"]

_TEXT_BYTES = 256
_EXTRA = 2  # columns after the counts: step, more


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """How the ranks of a group meet.

    `store` is a file path, or "host:port" of a store that rank 0 opens; `address` the local IP
    whose interface carries the exchange. `backend` is "gloo" or "nccl".

    Units:
        join_s, step_s: seconds to wait for peers while joining, and inside a collective.
    """

    store: str
    rank: int
    ranks: int
    address: str
    join_s: float
    step_s: float
    backend: str = "gloo"


class Backend(Protocol):
    """What is used of `ProcessGroupGloo` and `ProcessGroupNCCL`; torch's type stubs leave it out."""

    def allgather(self, output: list[list[Tensor]], tensors: list[Tensor]) -> dist.Work:
        """Gather one tensor of every rank."""
        ...

    def alltoall_base(self, output: Tensor, tensor: Tensor, output_rows: list[int], input_rows: list[int]) -> dist.Work:
        """Exchange rows, as many with each rank as the splits say."""
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


class TorchAllToAll:
    """Dispatch and combine with `all_to_all` on uneven splits; no per-expert loops."""

    def __init__(
        self,
        address: GroupAddress,
        placement: Placement,
        *,
        device: torch.device,
        counters: ExchangeCounters | None = None,
    ) -> None:
        """Join the group; blocks until every rank is there.

        Args:
            address: where and with whom.
            placement: where experts live at first.
            device: of the activations.
            counters: totals of an earlier generation to go on with.

        Raises:
            PeerLost: not all ranks came within `address.join_s`.
        """
        self.rank = address.rank
        self.ranks = address.ranks
        self.counters = counters or ExchangeCounters(layers=placement.layers, experts=placement.experts)
        self._address = address
        self._tables = SlotTables(placement, rank=address.rank)
        self._device = device
        self._wire = device if address.backend == "nccl" else torch.device("cpu")
        before = open_sockets()
        self._group: Backend | None = _join(address)
        self.marks = mark_new_sockets(before, TrafficClass.EXPERT)
        self._announced = (0, 0)
        self._agreement: Agreement | None = None
        self._place = "joining"

    def begin_step(self, step: int, *, more: bool) -> None:
        """Attach this rank's announcement to the first counts of the coming forward pass."""
        self._announced = (step, int(more))
        self._agreement = None
        self._place = f"step {step}"

    def agreement(self) -> Agreement:
        """Return what the group agreed on in the step that has just run."""
        assert self._agreement is not None, "no exchange ran in this step"
        return self._agreement

    def tell_all(self, text: str) -> list[str]:
        """Give a short text to all ranks and return everybody's, by rank.

        Raises:
            PeerLost: a peer died or hangs.
        """
        mine = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
        encoded = text.encode()
        mine[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        mine = mine.to(self._wire)
        gathered = [torch.empty_like(mine) for _ in range(self.ranks)]
        work = self._start("telling endpoints", lambda group: group.allgather([gathered], [mine]))
        self._wait(work, "telling endpoints")
        return [row.cpu().numpy().tobytes().rstrip(b"\0").decode() for row in gathered]

    def close(self) -> None:
        """Leave the group; collectives under way on other ranks fail there."""
        self._group = None

    def dispatch(
        self, x_TD: Tensor, topk_TK: Tensor, weights_TK: Tensor, placement: Placement, *, layer: int
    ) -> Pending[Received]:
        """Start the counts round; the rows follow when it is waited for. See the contract."""
        self._tables = tables = self._tables.of(placement)
        pairs = tables.sort(layer, topk_TK)
        count_row = torch.zeros(placement.experts + _EXTRA, dtype=torch.int64, device=self._wire)
        count_row[:-_EXTRA] = pairs.count_E
        count_row[-2], count_row[-1] = self._announced
        gathered = torch.empty((self.ranks, count_row.numel()), dtype=torch.int64, device=self._wire)
        rows = list(gathered.unbind(0))
        where = f"{self._place}, layer {layer}"
        counts = self._start(f"{where}, counts", lambda group: group.allgather([rows], [count_row]))

        def finish() -> Received:
            self._wait(counts, f"{where}, counts")
            table = gathered.cpu().numpy()
            self._agree(table[:, -2], table[:, -1])
            count_GE = table[:, :-_EXTRA]
            return self._receive(x_TD.index_select(0, pairs.rows_R), pairs.order_R, weights_TK, count_GE, tables, layer)

        return _Pending(finish)  # type: ignore[return-value]

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Start sending outputs back. See the contract."""
        handle = received.handle
        assert isinstance(handle, _Handle)
        back_RD = y_RD.index_select(0, handle.place_R)
        where = f"{self._place}, combine"
        result_RD, work = self._all_to_all(back_RD, handle.received_G, handle.sent_G, where)

        def finish() -> Tensor:
            self._wait(work, where)
            return weighted_sum(result_RD.to(self._device), handle.order_R, handle.weights_TK)

        return _Pending(finish)  # type: ignore[return-value]

    def _receive(
        self,
        rows_RD: Tensor,
        order_R: Tensor,
        weights_TK: Tensor,
        count_GE: np.ndarray,
        tables: SlotTables,
        layer: int,
    ) -> Received:
        tokens_GG = tables.rows_per_rank(layer, count_GE)
        sent_G = tokens_GG[self.rank].tolist()
        count_GS = tables.rows_per_slot(layer, count_GE, by_source=True)
        received_G = count_GS.sum(axis=1).tolist()
        local = tables.experts_in_slots(layer)
        self.counters.observe(layer, local[local >= 0], count_GE, tokens_GG.sum(axis=0))
        where = f"{self._place}, layer {layer}, dispatch"
        arrived_RD, work = self._all_to_all(rows_RD, sent_G, received_G, where)
        slots = np.tile(np.arange(count_GS.shape[1]), self.ranks)
        order_R_by_slot = np.argsort(np.repeat(slots, count_GS.reshape(-1)), kind="stable")
        place_R = np.empty_like(order_R_by_slot)
        place_R[order_R_by_slot] = np.arange(place_R.shape[0])
        self._wait(work, where)
        return Received(
            x_RD=arrived_RD.to(self._device).index_select(0, torch.from_numpy(order_R_by_slot).to(self._device)),
            offset_S1=[0, *np.cumsum(count_GS.sum(axis=0)).tolist()],
            count_GE=count_GE,
            handle=_Handle(order_R, weights_TK, torch.from_numpy(place_R).to(self._device), sent_G, received_G),
        )

    def _all_to_all(
        self, rows_RD: Tensor, sent_G: list[int], received_G: list[int], where: str
    ) -> tuple[Tensor, dist.Work]:
        rows_RD = rows_RD.to(self._wire).contiguous()
        result_RD = torch.empty((sum(received_G), rows_RD.shape[1]), dtype=rows_RD.dtype, device=self._wire)
        self.counters.bytes_sent += (sum(sent_G) - sent_G[self.rank]) * rows_RD.shape[1] * rows_RD.element_size()
        work = self._start(where, lambda group: group.alltoall_base(result_RD, rows_RD, received_G, sent_G))
        return result_RD, work

    def _agree(self, step_G: np.ndarray, more_G: np.ndarray) -> None:
        if self._agreement is not None:
            return
        if (step_G != step_G[self.rank]).any():
            raise PeerLost(f"{self._place}: ranks of the group are in different steps: {step_G.tolist()}")
        self._agreement = Agreement(step=int(step_G[self.rank]), more=bool(more_G.any()))

    def _start(self, where: str, call: Callable[[Backend], dist.Work]) -> dist.Work:
        if self._group is None:
            raise PeerLost(f"{where}: rank {self.rank} has left the group")
        try:
            return call(self._group)
        except RuntimeError as error:
            raise self._lost(where, error) from error

    def _wait(self, work: dist.Work, where: str) -> None:
        began = time.perf_counter()
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(where, error) from error
        finally:
            self.counters.wait_s += time.perf_counter() - began

    def _lost(self, where: str, error: RuntimeError) -> PeerLost:
        cause = _cause(error)
        return PeerLost(
            f"{where}: rank {self.rank} of {self.ranks} could not exchange within "
            f"{self._address.step_s:g} s: a peer died or hangs ({cause})"
        )


def _join(address: GroupAddress) -> Backend:
    # The options' names begin with an underscore for want of others, and the stubs lack them.
    gloo: Any = dist.ProcessGroupGloo
    step_timeout = timedelta(seconds=address.step_s)
    try:
        store = _open_store(address)
        if address.backend == "nccl":
            nccl: Any = dist.ProcessGroupNCCL
            options = nccl.Options()
            options._timeout = step_timeout  # noqa: SLF001
            return nccl(store, address.rank, address.ranks, options)
        options = gloo._Options()  # noqa: SLF001
        options._devices = [gloo.create_device(hostname=address.address)]  # noqa: SLF001
        options._timeout = step_timeout  # noqa: SLF001
        return gloo(store, address.rank, address.ranks, options)
    except (RuntimeError, dist.DistStoreError) as error:
        raise PeerLost(
            f"rank {address.rank}: the {address.ranks} ranks of the group did not all meet at "
            f"{address.store} within {address.join_s:g} s ({_cause(error)})"
        ) from error


def _cause(error: RuntimeError) -> str:
    """Return the first sentence of a backend's error, without its source path and advice."""
    return str(error).splitlines()[0].split("] ", 1)[-1].split(". This is", 1)[0]


def _open_store(address: GroupAddress) -> dist.Store:
    timeout = timedelta(seconds=address.join_s)
    host, colon, port = address.store.rpartition(":")
    if colon and port.isdigit():
        return dist.TCPStore(
            host, int(port), address.ranks, is_master=address.rank == 0, timeout=timeout, wait_for_workers=False
        )
    store = dist.FileStore(address.store, address.ranks)
    store.set_timeout(timeout)
    return store
