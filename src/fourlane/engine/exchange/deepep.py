"""Exchange on GPUs by the kernels of DeepEP, behind the counts round that every exchange begins with.

Which slot each token goes to, how full ranks are and what the ranks agree on come from the counts, as
everywhere; DeepEP brings the rows there and sums them when they come back. It sums in bfloat16 rows, in
an order of its own, which `deepep_buffers` tells of each kernel. Not for what DeepEP needs of buffers.
"""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from fourlane.engine.exchange.contract import Received
from fourlane.engine.exchange.deepep_buffers import Batch, ElasticBuffers, Form, LegacyBuffers
from fourlane.engine.exchange.group_exchange import SteppedExchange
from fourlane.engine.exchange.installed import DEEPEP_ABSENT
from fourlane.engine.exchange.payload import AS_IS
from fourlane.engine.exchange.rows import decoded_counts
from fourlane.engine.exchange.torch_all_to_all import open_backend
from fourlane.errors import EnvironmentMissing, PeerLost, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torch import Tensor

    from fourlane.engine.exchange.contract import Pending
    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.exchange.deepep_buffers import Buffers, Moved
    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.exchange.payload import Payload
    from fourlane.engine.exchange.rows import Sorted
    from fourlane.engine.exchange.torch_all_to_all import Backend
    from fourlane.policy.placement import Placement

__all__ = ["DeepEpExchange", "Interface", "Kernels", "require_deepep"]

Interface = Literal["auto", "v1", "v2"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kernels:
    """Which of DeepEP's kernels move rows.

    library: deep_ep, as `require_deepep` gives it.
    interface: "auto": V2 where deep_ep has it, else V1.
    low_latency_tokens: V1 takes its low-latency kernels while no rank has more tokens; 0: never.
    """

    library: ModuleType
    interface: Interface = "auto"
    low_latency_tokens: int = 128


def require_deepep(device: torch.device, *, own_gpus: bool = True) -> ModuleType:
    """Return deep_ep, where it can be used.

    Args:
        device: of the activations.
        own_gpus: every rank of the group has a GPU that it shares with no other.

    Raises:
        EnvironmentMissing: there are too few GPUs, or deep_ep cannot be imported; says what to do.
    """
    if device.type != "cuda":
        raise EnvironmentMissing(
            f'exchange.implementation = "deepep": DeepEP runs on NVIDIA GPUs, this rank computes on {device.type}; '
            'take "auto"'
        )
    if not own_gpus:
        raise EnvironmentMissing(
            'exchange.implementation = "deepep": every rank of a group needs a GPU of its own, and here '
            f'{torch.cuda.device_count()} are shared; start fewer ranks, or take "torch_all_to_all"'
        )
    try:
        return importlib.import_module("deep_ep")
    except ModuleNotFoundError as error:
        if error.name == "deep_ep":
            raise EnvironmentMissing(f'exchange.implementation = "deepep": {DEEPEP_ABSENT}; or take "auto"') from error
        raise EnvironmentMissing(f'exchange.implementation = "deepep": deep_ep lacks {error.name}') from error
    except (ImportError, OSError) as error:
        raise EnvironmentMissing(
            f'exchange.implementation = "deepep": deep_ep cannot be loaded ({error}); build it for this CUDA and torch'
        ) from error


class DeepEpExchange(SteppedExchange):
    """The exchange by DeepEP's kernels. Activations are bfloat16."""

    def __init__(
        self,
        address: GroupAddress,
        placement: Placement,
        *,
        kernels: Kernels,
        device: torch.device,
        counters: ExchangeCounters | None = None,
        split: bool = True,
        payload: Payload = AS_IS,
    ) -> None:
        """Join the group; blocks until every rank is there. Buffers are opened by the first dispatch.

        Args:
            address: where and with whom.
            placement: where experts live at first.
            kernels: which of DeepEP's.
            device: of the activations.
            counters: totals of an earlier generation to go on with.
            split: level ranks over replicas batch by batch, or else spread tokens evenly over them.
            payload: how rows travel to experts.

        Raises:
            PeerLost: not all ranks came within `address.join_s`.
            SpecError: deep_ep does not have the interface asked for.
        """
        self._elastic = _is_elastic(kernels.library, kernels.interface)
        backend, marks = open_backend(address)
        super().__init__(address, placement, marks=marks, counters=counters, split=split, payload=payload)
        self._kernels = kernels
        self._device = device
        self._backend: Backend | None = backend
        self._group = _group_of(backend, address, device)
        self._buffers: Buffers | None = None
        self._form: Form | None = None

    def close(self) -> None:
        """Leave the group. DeepEP's buffers are left to the process: giving them back waits for all ranks."""
        self._backend = self._buffers = None

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
        """Start the counts round; the kernels follow when it is waited for. See the contract."""
        self._tables = tables = self._tables.of(placement)
        pairs = tables.layer(layer).sort(topk_TK)
        decode_E = decoded_counts(topk_TK, decode_rows, pairs.count_E)
        where = f"{self._place}, layer {layer}"
        read_counts = self._begin_gather(self._count_row(pairs.count_E), f"{where}, counts")

        def finish() -> Received:
            count_GE = self._read_counts(read_counts())
            routes = tables.routes(layer, count_GE, split=self._split, nodes=self._nodes)
            self._count(layer, routes, count_GE[self.rank], decode_E)
            sent = tables.layer(layer).by_slot(pairs, routes.quota_P)
            batch = Batch(
                x_TD=x_TD,
                slot_TK=_slots_of(sent, routes.quota_P, topk_TK),
                weights_TK=weights_TK,
                count_GS=routes.count_GS,
                most_tokens=int(count_GE.sum(axis=1).max()) // topk_TK.shape[1],
                rank=self.rank,
            )
            handle = self._run(f"{where}, dispatch", lambda: self._move(batch, placement))
            moved = handle.moved
            self.counters.bytes_sent += moved.sent * self._payload.row_bytes(x_TD.shape[1], x_TD.dtype)
            offset_S1 = np.r_[0, routes.count_GS.sum(axis=0).cumsum()].tolist()
            return Received(x_RD=moved.x_RD, offset_S1=offset_S1, count_GE=count_GE, handle=handle)

        return _Pending(finish)  # type: ignore[return-value]

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Start sending outputs back. See the contract."""
        handle = received.handle
        assert isinstance(handle, _Handle)
        buffers, moved = handle.buffers, handle.moved
        where = f"{self._place}, combine"
        if self._backend is None:
            raise PeerLost(f"{where}: rank {self.rank} has left the group")
        self.counters.bytes_sent += moved.returned * y_RD.shape[1] * y_RD.element_size()
        x_TD = self._run(where, lambda: buffers.combine(y_RD, moved))
        return _Pending(lambda: x_TD)  # type: ignore[return-value]

    def _gather(self, mine: Tensor, where: str) -> np.ndarray:
        return self._begin_gather(mine, where)()

    def _begin_gather(self, mine: Tensor, where: str) -> Callable[[], np.ndarray]:
        if self._backend is None:
            raise PeerLost(f"{where}: rank {self.rank} has left the group")
        wire = mine.to(self._device)
        gathered = torch.empty((self.ranks, *wire.shape), dtype=wire.dtype, device=wire.device)
        work = self._run(where, lambda: self._backend.allgather([list(gathered.unbind(0))], [wire]))

        def finish() -> np.ndarray:
            self._run(where, lambda: self._wait(work, where))
            return gathered.cpu().numpy()

        return finish

    def _wait(self, work: dist.Work, where: str) -> None:
        """Block until a collective is through; NCCL's own wait only orders streams, so its end is looked for."""
        deadline = time.monotonic() + self._address.step_s
        while self._device.type == "cuda" and not work.is_completed():
            if time.monotonic() > deadline:
                raise self._lost(where, "the counts of all ranks did not come")
            os.sched_yield()
        work.wait()

    def _run(self, where: str, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return call()
        except RuntimeError as error:
            raise self._lost(where, str(error).splitlines()[0]) from error
        finally:
            self.counters.wait_s += time.perf_counter() - began

    def _move(self, batch: Batch, placement: Placement) -> _Handle:
        buffers = self._buffers_for(batch, placement)
        return _Handle(buffers, buffers.dispatch(batch))

    def _buffers_for(self, batch: Batch, placement: Placement) -> Buffers:
        form = Form(
            group=self._group,
            ranks=self.ranks,
            slots=placement.slots_per_rank * self.ranks,
            dim=batch.x_TD.shape[1],
            top_k=batch.slot_TK.shape[1],
            payload=self._payload,
            timeout_s=self._address.step_s,
        )
        if self._buffers is None or form != self._form:
            _check_dtype(batch.x_TD)
            self._form = form
            if self._elastic:
                self._buffers = ElasticBuffers(self._kernels.library, form)
            else:
                self._buffers = LegacyBuffers(self._kernels.library, form, self._kernels.low_latency_tokens)
        return self._buffers


@dataclass(frozen=True, slots=True)
class _Handle:
    buffers: Buffers
    moved: Moved


@dataclass(frozen=True, slots=True)
class _Pending:
    """A result computed by `finish` when first asked for."""

    finish: Callable[[], object]

    def wait(self) -> object:
        """Block until the result is there."""
        return self.finish()


def _is_elastic(library: ModuleType, interface: Interface) -> bool:
    has_v2 = hasattr(library, "ElasticBuffer") or hasattr(library, "EPBuffer")
    if interface == "v2" and not has_v2:
        raise SpecError(
            'exchange.deepep = "v2": the installed deep_ep has neither ElasticBuffer nor EPBuffer; '
            'allowed: "v1", "auto"'
        )
    if interface == "v1" and not hasattr(library, "Buffer"):
        raise SpecError('exchange.deepep = "v1": the installed deep_ep has no Buffer; allowed: "v2", "auto"')
    return has_v2 if interface == "auto" else interface == "v2"


def _group_of(backend: Any, address: GroupAddress, device: torch.device) -> dist.ProcessGroup:
    """Return a process group of this backend alone, known to nobody else in the process."""
    kinds = dist.ProcessGroup.BackendType
    make_group: Any = dist.ProcessGroup  # the stubs know of groups with a store only
    group = make_group(address.rank, address.ranks)
    kind = kinds.NCCL if address.backend == "nccl" else kinds.GLOO
    group._set_default_backend(kind)  # noqa: SLF001 - groups that are not the global one have no public way
    group._register_backend(device, kind, backend)  # noqa: SLF001
    return group


def _slots_of(sent: Sorted, quota_P: np.ndarray, topk_TK: Tensor) -> Tensor:
    """Return the physical slot of each (token, k) pair, int64."""
    slot_R = torch.from_numpy(np.repeat(np.arange(len(quota_P)), quota_P)).to(topk_TK.device)
    slot_X = torch.empty(topk_TK.numel(), dtype=torch.int64, device=topk_TK.device)
    slot_X[sent.order_R] = slot_R
    return slot_X.view(topk_TK.shape)


def _check_dtype(x_TD: Tensor) -> None:
    if x_TD.dtype != torch.bfloat16:
        raise SpecError(
            f'exchange.implementation = "deepep": DeepEP moves bfloat16 rows, activations are {x_TD.dtype}; '
            'set model.weights = "bfloat16", or take "torch_all_to_all"'
        )
