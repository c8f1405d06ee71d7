"""A stand-in for PyTorch's symmetric memory between processes of one host: files that all of them map.

It takes calls as the recorded signatures (tests/golden/symmetric_memory) say, and no others.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["SymmetricDouble"]

_PATIENCE_S = 20


class SymmetricDouble:
    """The library, in one process."""

    def __init__(self) -> None:
        self._groups: dict[str, tuple[int, int, dist.Store]] = {}
        self._made: dict[int, int] = {}
        self._count = 0

    def set_group_info(self, name: str, rank: int, ranks: int, store: dist.Store, /) -> None:
        """Name a group."""
        self._groups[name] = rank, ranks, store

    def empty_strided_p2p(
        self,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        group_name: str | None = None,
        alloc_id: int | None = None,
    ) -> torch.Tensor:
        """Map a file of this rank; it begins with a counter."""
        assert device.type == "cpu"
        assert stride == (1,)
        assert alloc_id is None
        rank, _, _ = self._groups[str(group_name)]
        total = 8 + math.prod(size) * dtype.itemsize
        memory = torch.from_file(
            _path(str(group_name), self._count, rank), shared=True, size=-(-total // 8) * 8, dtype=torch.uint8
        )
        tensor = memory[8:total].view(dtype)
        self._made[tensor.data_ptr()] = self._count
        self._count += 1
        return tensor

    def rendezvous(self, tensor: torch.Tensor, group_name: str | None = None) -> _Mapped:
        """Wait for everybody's file and map it."""
        rank, ranks, store = self._groups[str(group_name)]
        count = self._made[tensor.data_ptr()]
        store.set(f"mapped-{count}-{rank}", str(tensor.numel()))
        store.wait([f"mapped-{count}-{other}" for other in range(ranks)])
        sizes = {int(store.get(f"mapped-{count}-{other}")) for other in range(ranks)}
        assert len(sizes) == 1, f"ranks map different sizes: {sizes}"
        size = -(-(8 + tensor.numel()) // 8) * 8
        paths = [_path(str(group_name), count, other) for other in range(ranks)]
        return _Mapped(rank, [torch.from_file(path, shared=True, size=size, dtype=torch.uint8) for path in paths])


class _Mapped:
    """Everybody's memory, as one rank sees it."""

    def __init__(self, rank: int, memory_G: list[torch.Tensor]) -> None:
        self._rank = rank
        self._memory_G = memory_G
        self._passed = memory_G[rank][:8].view(torch.int64)

    def get_buffer(
        self, rank: int, sizes: tuple[int, ...], dtype: torch.dtype, storage_offset: int = 0
    ) -> torch.Tensor:
        """Return a part of a rank's memory."""
        first = 8 + storage_offset * dtype.itemsize
        return self._memory_G[rank][first : first + math.prod(sizes) * dtype.itemsize].view(dtype).view(sizes)

    def barrier(self, channel: int = 0, timeout_ms: int = 0) -> None:
        """Wait until everybody has come here as often."""
        assert channel == 0
        self._passed += 1
        wanted, deadline = int(self._passed), time.monotonic() + (timeout_ms / 1000 or _PATIENCE_S)
        for rank, memory in enumerate(self._memory_G):
            while int(memory[:8].view(torch.int64)) < wanted:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"barrier {wanted} timed out: rank {rank} did not come")
                time.sleep(20e-6)


def _path(group: str, count: int, rank: int) -> str:
    return str(Path(f"{group}-memory-{count}-{rank}"))
