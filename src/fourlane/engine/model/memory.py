"""What a rank will need in memory, worked out before a weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fourlane.engine.model.checkpoint import dense_tensors, expert_tensors
from fourlane.errors import MemoryShortage
from fourlane.units import Size

if TYPE_CHECKING:
    from fourlane.engine.model.config import ModelConfig
    from fourlane.policy.placement import Placement

__all__ = ["MemoryBudget", "available_memory", "memory_budget"]

_SAMPLED_ROWS = 256


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """A rank's memory by use, and what there is.

    Units:
        bytes. `available` is what the device has free now.
    """

    dense: int
    experts: int
    experts_note: str
    kv: int
    work: int
    available: int
    place: str

    @property
    def needed(self) -> int:
        """Return the sum of all uses."""
        return self.dense + self.experts + self.kv + self.work

    def lines(self) -> list[str]:
        """Return the table, one use a line."""
        rows = [
            ("dense weights", self.dense, ""),
            ("experts", self.experts, self.experts_note),
            ("KV cache", self.kv, ""),
            ("work space", self.work, ""),
            ("needed", self.needed, ""),
            ("available", self.available, self.place),
        ]
        return [f"{name:<14}{_mebibytes(size):>14}  {note}".rstrip() for name, size, note in rows]

    def check(self, who: str) -> None:
        """Refuse to go on if it does not fit.

        Raises:
            MemoryShortage: with the table.
        """
        if self.needed > self.available:
            table = "\n".join(self.lines())
            raise MemoryShortage(
                f"{who}: the model does not fit in memory; make kv_memory or chunk_tokens smaller, share the experts "
                f"over more ranks (expert_parallel), or hold the weights as bfloat16\n{table}"
            )


def memory_budget(  # noqa: PLR0913 - all but what is loaded are keywords, each a choice of its own
    config: ModelConfig,
    placement: Placement,
    rank: int,
    *,
    weights: torch.dtype,
    device: torch.device,
    kv_memory: int,
    chunk_tokens: int,
    spare_layers: int = 0,
) -> MemoryBudget:
    """Work out what a rank will hold.

    Args:
        placement: says which experts are this rank's.
        weights: the type weights are held in.
        kv_memory: bytes set aside for KV pages.
        chunk_tokens: most tokens of a step.
        spare_layers: layers of which all experts are held twice at times, while they move.
    """
    held = sum(int((placement.experts_of(rank, index) >= 0).sum()) for index in range(placement.layers))
    one = sum(math.prod(shape) for _, shape in expert_tensors(config, 0, 0))
    dense = sum(math.prod(shape) for _, shape in dense_tensors(config))
    if config.tie_embeddings and device.type == "cpu":
        dense += config.vocab_size * config.hidden_size  # the output head is packed in an order of its own
    available, place = available_memory(device)
    spare = spare_layers * placement.slots_per_rank
    note = f"{held} of {placement.layers * config.experts} (rank {rank} of {placement.ranks})"
    return MemoryBudget(
        dense=dense * weights.itemsize,
        experts=(held + spare) * one * weights.itemsize,
        experts_note=f"{note}, and {spare} while experts move" if spare else note,
        kv=kv_memory,
        work=_work_space(config, chunk_tokens),
        available=available,
        place=place,
    )


def available_memory(device: torch.device) -> tuple[int, str]:
    """Return the bytes free on a device, and where the figure is from."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], f"free on {device}"
    host = _meminfo_available()
    group = _control_group_available()
    if group is not None and group < host:
        return group, "left to this control group"
    return host, "MemAvailable of this host"


def _work_space(config: ModelConfig, chunk_tokens: int) -> int:
    """Return the activations of the widest moments of a layer, of the logits and of sampling, in float32."""
    heads = (config.heads + 2 * config.kv_heads) * config.head_dim
    routed = config.top_k * (2 * config.hidden_size + 3 * config.expert_dim)
    dense = 3 * config.dense_dim if len(config.moe_layers) < config.layers else 0
    shared = config.hidden_size + 3 * config.shared_expert_dim if config.shared_expert_dim else 0
    token = 6 * config.hidden_size + 4 * heads + max(routed + shared, dense)
    return 4 * (chunk_tokens * token + 3 * _SAMPLED_ROWS * config.vocab_size)


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise MemoryShortage("/proc/meminfo: no MemAvailable line; this kernel does not say how much memory is free")


def _control_group_available() -> int | None:
    """Return what a container's limit leaves; None without a limit. Cached file pages can be given back."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((root / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (root / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def _mebibytes(size: int) -> str:
    return f"{size / Size.parse('1MiB'):,.1f} MiB"
