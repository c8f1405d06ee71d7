"""What a rank's memory holds: weights, a reserve, and what is left for KV cache.

Not for how many sequences that is enough for (`fourlane.twin.operating_point`, `fourlane.twin.serving`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.spec.architecture import BYTES
from fourlane.spec.efficiencies import efficiencies
from fourlane.spec.hardware import load_gpu
from fourlane.twin.kernel_times import weights_type

if TYPE_CHECKING:
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.twin import Assumptions, TwinPool

__all__ = ["MemoryUse", "memory_use", "weight_bytes"]

_WIDE = BYTES["bf16"]


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What a rank's memory is used for.

    Units:
        bytes; `kv_blocks` in blocks. `free` is what neither is needed nor given to the KV cache.
    """

    weights: int
    kv: int
    reserve: int
    kv_blocks: int
    free: int


def weight_bytes(architecture: Architecture, weights: str, *, held_experts: int, mtp: bool = False) -> int:
    """Return what the weights of a rank take; embedding, output and router in BF16.

    Args:
        architecture: of the model.
        weights: type of the others.
        held_experts: physical slots a layer.
        mtp: whether a layer that drafts tokens is held, too.
    """
    vocabularies = (1 if architecture.tied_embeddings else 2) * architecture.vocabulary * architecture.hidden
    routers = architecture.moe_layers * architecture.hidden * architecture.experts
    linear = architecture.shared_parameters - vocabularies - routers
    linear += architecture.moe_layers * held_experts * architecture.expert_parameters
    if mtp:
        linear += architecture.attention.parameters(architecture.hidden)
        linear += (held_experts + architecture.shared_experts) * architecture.expert_parameters
        routers += architecture.hidden * (architecture.experts + 2 * architecture.hidden)
    return _WIDE * (vocabularies + routers) + BYTES[weights] * linear


def memory_use(
    architecture: Architecture,
    gpu: str,
    pool: TwinPool,
    assumptions: Assumptions,
    *,
    block_size: int,
    place: str = "pool",
) -> MemoryUse:
    """Return what a rank of a pool uses its memory for.

    Args:
        architecture: of the model.
        gpu: a GPU of the catalog.
        pool: whose rank it is.
        assumptions: in which types weights and KV cache are held.
        block_size: tokens of a block of the KV cache.
        place: what messages call the pool.

    Raises:
        SpecError: it does not fit; the message says by how many GB.
    """
    there = int(load_gpu(gpu).memory)
    slots = math.ceil((architecture.experts + pool.redundant_experts) / pool.ranks)
    drafts = assumptions.mtp_tokens > 0
    weights = weight_bytes(architecture, weights_type(architecture, gpu, assumptions), held_experts=slots, mtp=drafts)
    reserve = int(efficiencies(gpu).reserve)
    layers = architecture.layers + int(drafts)
    block = block_size * architecture.kv_bytes_per_token(assumptions.kv) * layers // architecture.layers
    left = there - weights - reserve
    kv = left if pool.kv_memory is None else int(pool.kv_memory)
    if min(left, kv) < block or kv > left:
        needed = weights + reserve + max(block, kv if pool.kv_memory is not None else 0)
        raise SpecError(
            f"{place}: {architecture.name} does not fit: a rank needs {needed / 1e9:.1f} GB "
            f"({weights / 1e9:.1f} GB weights with {slots} experts a layer, {reserve / 1e9:.1f} GB reserve, "
            f"{(needed - weights - reserve) / 1e9:.2f} GB KV cache), {gpu} has {there / 1e9:.1f} GB: "
            f"{max(0, needed - there) / 1e9:.1f} GB too little; share the experts over more ranks, hold fewer "
            "redundant ones, or make kv_memory smaller"
        )
    return MemoryUse(weights, kv, reserve, kv // block, there - weights - reserve - kv)
