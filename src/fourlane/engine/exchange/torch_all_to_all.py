"""Exchange over torch.distributed: one all-gather of counts, one all-to-all each way.

gloo for CPU tensors, NCCL when every rank of the group has a GPU of its own, gloo over host
memory when ranks share a GPU. The group is an object of its own: no global process group, so
two engines in one process, or a new generation after a peer's death, do not disturb each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from fourlane.engine.exchange.all_to_all import CarrierError
from fourlane.engine.exchange.hierarchical import HierarchicalAllToAll
from fourlane.engine.exchange.lane import mark_new_sockets, open_sockets
from fourlane.engine.exchange.meeting import first_sentence, open_store
from fourlane.engine.exchange.payload import AS_IS
from fourlane.errors import PeerLost

if TYPE_CHECKING:
    from torch import Tensor

    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.exchange.group_exchange import Meanwhile
    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.exchange.payload import Payload
    from fourlane.lanes.marking import Mark
    from fourlane.policy.placement import Placement

__all__ = ["Backend", "TorchAllToAll", "open_backend"]


class Backend(Protocol):
    """What is used of `ProcessGroupGloo` and `ProcessGroupNCCL`; torch's type stubs leave it out."""

    def allgather(self, output: list[list[Tensor]], tensors: list[Tensor]) -> dist.Work:
        """Gather one tensor of every rank."""
        ...

    def alltoall_base(self, output: Tensor, tensor: Tensor, output_rows: list[int], input_rows: list[int]) -> dist.Work:
        """Exchange rows, as many with each rank as the splits say."""
        ...


class TorchAllToAll(HierarchicalAllToAll):
    """The exchange over a process group of its own."""

    def __init__(
        self,
        address: GroupAddress,
        placement: Placement,
        *,
        device: torch.device,
        counters: ExchangeCounters | None = None,
        split: bool = True,
        payload: Payload = AS_IS,
    ) -> None:
        """Join the group; blocks until every rank is there.

        Args:
            address: where and with whom.
            placement: where experts live at first.
            device: of the activations.
            counters: totals of an earlier generation to go on with.
            split: level ranks over replicas batch by batch, or else spread tokens evenly over them.
            payload: in which form rows are dispatched, the same on all ranks.

        Raises:
            PeerLost: not all ranks came within `address.join_s`.
        """
        super().__init__(
            _TorchCarrier(address, device),
            address,
            placement,
            device=device,
            counters=counters,
            split=split,
            payload=payload,
        )


class _TorchCarrier:
    """A process group as a `Carrier`."""

    def __init__(self, address: GroupAddress, device: torch.device) -> None:
        self._device = device if address.backend == "nccl" else torch.device("cpu")
        self._ranks = address.ranks
        self._group: Backend | None
        self._group, self.marks = open_backend(address)

    @property
    def device(self) -> torch.device:
        """Return the host, or with NCCL the GPU."""
        return self._device

    def gather(self, mine: Tensor) -> tuple[Tensor, _Work]:
        """Begin an all-gather."""
        gathered = torch.empty((self._ranks, *mine.shape), dtype=mine.dtype, device=mine.device)
        try:
            work = self._backend().allgather([list(gathered.unbind(0))], [mine])
        except RuntimeError as error:
            raise CarrierError(first_sentence(error)) from error
        return gathered, _Work(work)

    def exchange(self, rows: Tensor, sent_G: list[int], received_G: list[int]) -> tuple[Tensor, _Work]:
        """Begin an all-to-all."""
        result = torch.empty((sum(received_G), rows.shape[1]), dtype=rows.dtype, device=rows.device)
        try:
            work = self._backend().alltoall_base(result, rows, received_G, sent_G)
        except RuntimeError as error:
            raise CarrierError(first_sentence(error)) from error
        return result, _Work(work)

    def interrupt(self) -> None:
        """Do nothing: what is under way ends by its timeout."""

    def close(self) -> None:
        """Let go of the process group, which closes its connections."""
        self._group = None

    def _backend(self) -> Backend:
        assert self._group is not None, "nothing begins after close"
        return self._group


@dataclass(frozen=True, slots=True)
class _Work:
    """torch's work, its errors typed."""

    work: dist.Work

    def wait(self, meanwhile: Meanwhile | None = None) -> None:
        """Block until it is through; nothing wakes it before, and for whom is not known."""
        del meanwhile
        try:
            self.work.wait()
        except RuntimeError as error:
            raise CarrierError(first_sentence(error)) from error


def open_backend(address: GroupAddress) -> tuple[Backend, list[Mark]]:
    """Form the group; return its backend and the marks of its connections.

    Raises:
        PeerLost: not all ranks came within `address.join_s`.
    """
    # The options' names begin with an underscore for want of others, and the stubs lack them.
    gloo: Any = dist.ProcessGroupGloo
    step_timeout = timedelta(seconds=address.step_s)
    try:
        store = open_store(address)
        before = open_sockets()  # the store's are not the lane's
        if address.backend == "nccl":
            nccl: Any = dist.ProcessGroupNCCL
            options = nccl.Options()
            options._timeout = step_timeout  # noqa: SLF001
            return nccl(store, address.rank, address.ranks, options), mark_new_sockets(before, address.lane)
        options = gloo._Options()  # noqa: SLF001
        options._devices = [gloo.create_device(hostname=address.address)]  # noqa: SLF001
        options._timeout = step_timeout  # noqa: SLF001
        mark_new_sockets(before, address.lane)  # what listens, before anybody connects to it
        return gloo(store, address.rank, address.ranks, options), mark_new_sockets(before, address.lane)
    except (RuntimeError, dist.DistStoreError) as error:
        raise PeerLost(address.absent(first_sentence(error))) from error
