"""The memory of a paged KV cache: private, shared with other processes, or on a device."""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fourlane.engine.kv_transfer.pages import Pages, SequencePages
from fourlane.errors import MemoryShortage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.engine.kv_transfer.contract import KvGeometry

__all__ = ["KvStorage", "Landing", "allocate_kv"]

_TORCH_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW: the size is final, so no mapping of it can fault.
_F_ADD_SEALS, _SEALS = 1033, 0x1 | 0x2 | 0x4


@dataclass(frozen=True, slots=True)
class KvStorage:
    """A paged KV cache.

    `tensor` [layers, 2 (K, V), blocks, block_size, kv_heads, head_dim]; `buffer` is the same
    memory as bytes (None on a device); `memfd` a descriptor of it that other processes can map
    (None unless shared). The memory is anonymous: nothing of it outlives the processes. `arena`,
    for a device: host memory of the cache's shape, in which KV lands that a library reads (it must
    know the memory beforehand).
    """

    geometry: KvGeometry
    tensor: torch.Tensor
    buffer: memoryview | None
    memfd: int | None
    arena: torch.Tensor | None = None

    def with_arena(self) -> KvStorage:
        """Return the same cache with memory in which a library can let KV land; on CPU it needs none."""
        if self.buffer is not None:
            return self
        return replace(self, arena=torch.zeros(self.tensor.shape, dtype=self.tensor.dtype))

    @property
    def landing_buffer(self) -> memoryview:
        """Return the memory in which a library lets KV land."""
        if self.buffer is not None:
            return self.buffer
        assert self.arena is not None, "a device's cache needs an arena"
        return _bytes_of(self.arena)

    def landing(self, blocks: Sequence[int]) -> Landing:
        """Return where a receiver can put the KV of pages: themselves, or memory staged for a device."""
        if self.buffer is not None:
            return Landing(SequencePages(Pages(self.buffer, self.geometry), blocks), None)
        if self.arena is not None:
            return Landing(SequencePages(Pages(_bytes_of(self.arena), self.geometry), blocks), self.arena)
        staged = replace(self.geometry, blocks=len(blocks))
        host = torch.empty(_shape(staged), dtype=self.tensor.dtype, pin_memory=self.tensor.is_cuda)
        return Landing(SequencePages(Pages(_bytes_of(host), staged), range(len(blocks))), host)

    def settle(self, landing: Landing, blocks: Sequence[int]) -> None:
        """Bring what has landed to the pages, and wait for it; does nothing where it landed there."""
        if landing.host is None:
            return
        host = landing.host if landing.host is not self.arena else landing.host[:, :, list(blocks)]
        index = torch.tensor(list(blocks), device=self.tensor.device)
        if not self.tensor.is_cuda:
            self.tensor.index_copy_(2, index, host)
            return
        stream = torch.cuda.Stream(self.tensor.device)
        stream.wait_stream(torch.cuda.current_stream(self.tensor.device))
        with torch.cuda.stream(stream):
            self.tensor.index_copy_(2, index, host.to(self.tensor.device, non_blocking=True))
        stream.synchronize()

    def close(self) -> None:
        """Close the descriptor. The memory goes with the last tensor and mapping."""
        if self.memfd is not None:
            os.close(self.memfd)


@dataclass(frozen=True, slots=True)
class Landing:
    """Where a sequence's KV is received: its pages, or host memory of the same shape (or the arena)."""

    pages: SequencePages
    host: torch.Tensor | None


def allocate_kv(geometry: KvGeometry, device: torch.device | str, *, shared: bool) -> KvStorage:
    """Allocate a KV cache filled with zeros.

    Args:
        geometry: its shape.
        device: where.
        shared: let other processes of this host map it; on a device there is nothing to map, so
            this has an effect on CPU only.

    Raises:
        MemoryShortage: there is not enough.
    """
    device = torch.device(device)
    try:
        if device.type == "cpu":
            return _shared(geometry) if shared else _private(geometry)
        tensor = torch.zeros(_shape(geometry), dtype=_TORCH_DTYPE[geometry.dtype], device=device)
    except (OSError, RuntimeError) as error:
        raise MemoryShortage(
            f"KV cache: {geometry.total_bytes} bytes on {device} cannot be allocated: {error}; lower kv_memory"
        ) from error
    return KvStorage(geometry, tensor, None, None)


def _private(geometry: KvGeometry) -> KvStorage:
    """Take anonymous memory: pages are zero, and cost nothing until they are written."""
    memory = mmap.mmap(-1, geometry.total_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(memory, dtype=_TORCH_DTYPE[geometry.dtype]).view(_shape(geometry))
    return KvStorage(geometry, tensor, memoryview(memory), None)


def _shared(geometry: KvGeometry) -> KvStorage:
    memfd = os.memfd_create("fourlane-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memfd, geometry.total_bytes)
        fcntl.fcntl(memfd, _F_ADD_SEALS, _SEALS)
        memory = mmap.mmap(memfd, geometry.total_bytes)
    except OSError:
        os.close(memfd)
        raise
    tensor = torch.frombuffer(memory, dtype=_TORCH_DTYPE[geometry.dtype]).view(_shape(geometry))
    return KvStorage(geometry, tensor, memoryview(memory), memfd)


def _shape(geometry: KvGeometry) -> tuple[int, ...]:
    return (geometry.layers, 2, geometry.blocks, geometry.block_size, geometry.kv_heads, geometry.head_dim)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a CPU tensor's memory; the view keeps the tensor alive."""
    return tensor.view(-1).view(torch.uint8).numpy().data
