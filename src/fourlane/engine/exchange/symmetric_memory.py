"""Exchange between the GPUs of one NVLink domain through PyTorch's symmetric memory.

Every rank reads its rows from the others' memory, over NVLink, once a barrier on the GPUs has said that
they are there. Counts, layout and sums are those of every carrier (`all_to_all`), so outputs have the
same bits. Not for GPUs that cannot read each other, and not for CPUs, which symmetric memory refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from fourlane.engine.exchange.all_to_all import AllToAllExchange, CarrierError
from fourlane.engine.exchange.meeting import first_sentence, open_store
from fourlane.engine.exchange.payload import AS_IS
from fourlane.errors import EnvironmentMissing, PeerLost

if TYPE_CHECKING:
    from torch import Tensor

    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.exchange.group_exchange import Meanwhile
    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.exchange.payload import Payload
    from fourlane.lanes.marking import Mark
    from fourlane.policy.placement import Placement

__all__ = ["Symmetric", "SymmetricMemoryExchange", "require_symmetric_memory"]

_FEWEST_BYTES = 1 << 20  # a buffer has room for
_WORD = 8


class Symmetric(Protocol):
    """What is used of `torch._C._distributed_c10d._SymmetricMemory`; its signatures are recorded in the tests."""

    def set_group_info(self, name: str, rank: int, ranks: int, store: dist.Store, /) -> None:
        """Name a group and say where it meets."""
        ...

    def empty_strided_p2p(
        self,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        group_name: str | None = None,
        alloc_id: int | None = None,
    ) -> Tensor:
        """Allocate memory that other ranks can map."""
        ...

    def rendezvous(self, tensor: Tensor, group_name: str | None = None) -> Any:
        """Map everybody's memory; blocks until all ranks are there."""
        ...


def require_symmetric_memory(device: torch.device, *, own_gpus: bool = True) -> Symmetric:
    """Return PyTorch's symmetric memory, where it can be used.

    Args:
        device: of the activations.
        own_gpus: every rank of the group has a GPU that it shares with no other.

    Raises:
        EnvironmentMissing: this PyTorch has none, there are too few GPUs, or they cannot reach each other.
    """
    place = 'exchange.implementation = "symmetric_memory"'
    if device.type != "cuda" or not own_gpus:
        raise EnvironmentMissing(
            f'{place}: every rank of a group needs a GPU of its own, this one computes on {device}; take "auto"'
        )
    others = [gpu for gpu in range(torch.cuda.device_count()) if gpu != device.index]
    cut_off = [gpu for gpu in others if not torch.cuda.can_device_access_peer(device, gpu)]
    if cut_off:
        raise EnvironmentMissing(
            f'{place}: {device} cannot read the memory of GPU {cut_off[0]}; take "torch_all_to_all"'
        )
    try:
        from torch._C._distributed_c10d import _SymmetricMemory
    except ImportError as error:
        raise EnvironmentMissing(f'{place}: torch {torch.__version__} has none; take "torch_all_to_all"') from error
    return _SymmetricMemory  # type: ignore[return-value]


class SymmetricMemoryExchange(AllToAllExchange):
    """The exchange through symmetric memory."""

    def __init__(
        self,
        address: GroupAddress,
        placement: Placement,
        *,
        symmetric: Symmetric,
        device: torch.device,
        counters: ExchangeCounters | None = None,
        split: bool = True,
        payload: Payload = AS_IS,
    ) -> None:
        """Join the group; blocks until every rank is there.

        Args:
            address: where and with whom.
            placement: where experts live at first.
            symmetric: PyTorch's, as `require_symmetric_memory` gives it.
            device: of the activations and of the memory.
            counters: totals of an earlier generation to go on with.
            split: level ranks over replicas batch by batch, or else spread tokens evenly over them.
            payload: in which form rows are dispatched, the same on all ranks.

        Raises:
            PeerLost: not all ranks came within `address.join_s`.
        """
        super().__init__(
            _SymmetricCarrier(address, symmetric, device),
            address,
            placement,
            device=device,
            counters=counters,
            split=split,
            payload=payload,
        )


@dataclass(frozen=True, slots=True)
class _Region:
    """Memory that all ranks of the group have mapped: two buffers, each of a header and room for rows.

    An operation uses the buffer of its parity. Whoever begins operation n has passed a barrier of n - 1,
    which all ranks reach only after they have read what they wanted of n - 2: its buffer is free again.
    """

    own: Tensor
    handle: Any
    header: int
    room: int

    def place(self, parity: int) -> int:
        """Return where the buffer of a parity begins."""
        return parity * (self.header + self.room)

    def read(self, rank: int, first: int, count: int) -> Tensor:
        """Return bytes of a rank's memory, which are there."""
        return self.handle.get_buffer(rank, (count,), torch.uint8, first)


class _SymmetricCarrier:
    """Symmetric memory as a `Carrier`."""

    def __init__(self, address: GroupAddress, symmetric: Symmetric, device: torch.device) -> None:
        self.marks: list[Mark] = []
        self._rank, self._ranks = address.rank, address.ranks
        self._symmetric, self._device = symmetric, device
        self._patience_ms = max(1, round(address.step_s * 1000))
        self._group = address.store  # names a generation, and no other
        self._parity = 0
        try:
            self._store = open_store(address)
            symmetric.set_group_info(self._group, address.rank, address.ranks, self._store)
            self._region: _Region | None = self._map(_FEWEST_BYTES)
        except (RuntimeError, dist.DistStoreError) as error:
            raise PeerLost(address.absent(first_sentence(error))) from error

    @property
    def device(self) -> torch.device:
        """Return the GPU."""
        return self._device

    def gather(self, mine: Tensor) -> tuple[Tensor, _Reached]:
        """Begin to show a vector to all ranks and to read everybody's."""
        flat = mine.contiguous().view(-1).view(torch.uint8)
        try:
            region = self._roomy(flat.numel())  # as long as every rank's
            first = region.place(self._parity) + region.header
            region.own[first : first + flat.numel()] = flat
            region.handle.barrier(0, self._patience_ms)
            gathered = torch.stack([region.read(rank, first, flat.numel()) for rank in range(self._ranks)])
        except RuntimeError as error:
            raise CarrierError(first_sentence(error)) from error
        self._parity ^= 1
        return gathered.view(mine.dtype).view(self._ranks, *mine.shape), _Reached.of(self._device)

    def exchange(self, rows: Tensor, sent_G: list[int], received_G: list[int]) -> tuple[Tensor, _Reached]:
        """Tell where each rank's rows will stand and how much room they need; put them there; read one's own."""
        width = rows.shape[1]
        ends = torch.tensor([0, *sent_G], dtype=torch.int64).cumsum(0) * width
        try:
            end_GX = self._tell_ends(ends)
            region = self._roomy(int(end_GX[:, -1].max()))
            first = region.place(self._parity) + region.header
            region.own[first : first + rows.numel()] = rows.reshape(-1)
            region.handle.barrier(0, self._patience_ms)
            begin_G = (first + end_GX[:, self._rank]).tolist()
            parts = [
                region.read(rank, begin, count * width)
                for rank, (begin, count) in enumerate(zip(begin_G, received_G, strict=True))
            ]
            result = torch.cat(parts).view(sum(received_G), width)
        except RuntimeError as error:
            raise CarrierError(first_sentence(error)) from error
        self._parity ^= 1
        return result, _Reached.of(self._device)

    def interrupt(self) -> None:
        """Do nothing: what is under way ends by its timeout."""

    def close(self) -> None:
        """Let go of the memory."""
        self._region = None

    def _tell_ends(self, ends: Tensor) -> Tensor:
        region = self._roomy(0)
        first, count = region.place(self._parity), ends.numel() * _WORD
        region.own[first : first + count] = ends.view(torch.uint8).to(self._device)
        region.handle.barrier(0, self._patience_ms)
        told = torch.stack([region.read(rank, first, count) for rank in range(self._ranks)])
        return told.cpu().view(torch.int64)

    def _roomy(self, count: int) -> _Region:
        """Return the region, or a larger one that all ranks, knowing the same need, map together."""
        region = self._region
        assert region is not None, "nothing begins after close"
        if count <= region.room:
            return region
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # nobody reads the old one any more when all have come
        self._region = larger = self._map(1 << (count - 1).bit_length())
        return larger

    def _map(self, room: int) -> _Region:
        header = (self._ranks + 1) * _WORD
        total = 2 * (header + room)
        own = self._symmetric.empty_strided_p2p((total,), (1,), torch.uint8, self._device, self._group)
        return _Region(own, self._symmetric.rendezvous(own, self._group), header, room)


@dataclass(frozen=True, slots=True)
class _Reached:
    """A place in the GPU's stream; on a CPU, where things have happened when they return, nothing."""

    event: torch.cuda.Event | None

    @classmethod
    def of(cls, device: torch.device) -> _Reached:
        """Return where the current stream of a device stands."""
        if device.type != "cuda":
            return cls(None)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return cls(event)

    def wait(self, meanwhile: Meanwhile | None = None) -> None:
        """Block until the stream has come there; nothing wakes it before."""
        del meanwhile
        if self.event is None:
            return
        try:
            self.event.synchronize()
        except RuntimeError as error:
            raise CarrierError(first_sentence(error)) from error
