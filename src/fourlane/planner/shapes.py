"""Units that could be: what may vary of either phase, and whether the model fits on their ranks.

Not for how many units there are of each (`fourlane.planner.search`).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.spec.efficiencies import efficiencies
from fourlane.spec.hardware import load_gpu
from fourlane.spec.twin import TwinPool
from fourlane.twin.kernel_times import weights_type
from fourlane.twin.memory import memory_use, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.spec.architecture import Architecture
    from fourlane.spec.cluster import Cluster, NetworkName
    from fourlane.spec.plan import PlanSpec
    from fourlane.twin.times import Phase

__all__ = ["Shapes", "kv_networks"]

_DEGREES = {"prefill": (8, 16, 32, 64), "decode": (8, 16, 32, 64, 128, 256)}
_USUAL_SPARE = 8
"""One redundant expert for so many: 32 of 256, as DeepSeek has them."""
GPU_MEMORY_GB = 1e9


class Shapes:
    """Units of both phases that fit, and what was left out.

    Args:
        spec: what is to be planned.
        architecture, cluster, gpu: what it names.

    Raises:
        SpecError: no unit of a phase fits; the message says by how many GB.
    """

    def __init__(self, spec: PlanSpec, architecture: Architecture, cluster: Cluster, gpu: str) -> None:
        self.spec = spec
        self.budget = min(spec.gpus or cluster.servers * cluster.gpus_per_server, _gpus(cluster))
        self.refused: dict[str, int] = {}
        self.prefill = self._fitting("prefill", architecture, cluster, gpu)
        self.decode = self._fitting("decode", architecture, cluster, gpu)
        self._see_budget(architecture, gpu)

    def _fitting(self, phase: Phase, architecture: Architecture, cluster: Cluster, gpu: str) -> list[TwinPool]:
        found: list[TwinPool] = []
        misfits: list[TwinPool] = []
        degrees = _degrees(self.spec, phase, architecture, cluster, self.budget)
        for pool in _pools(self.spec, phase, architecture, degrees):
            try:
                memory_use(architecture, gpu, pool, self.spec.assumptions, block_size=self.spec.block_size, place=phase)
            except SpecError:
                misfits.append(pool)
                self._leave_out(f"{phase}: does not fit in the memory of {pool.ranks} {gpu}s")
            else:
                found.append(pool)
        if not found:
            raise SpecError(_shortfall(self.spec, phase, architecture, gpu, misfits, self.budget))
        return found

    def _leave_out(self, why: str) -> None:
        self.refused[why] = self.refused.get(why, 0) + 1

    def _see_budget(self, architecture: Architecture, gpu: str) -> None:
        """See that a unit of each phase can be had at once.

        Raises:
            SpecError: they cannot.
        """
        least = {
            name: min(pool.ranks for pool in pools)
            for name, pools in (("prefill", self.prefill), ("decode", self.decode))
        }
        if sum(least.values()) <= self.budget:
            return
        smaller = _shortfall_of(architecture, gpu, self.spec, self.budget // 2 or 1)
        raise SpecError(
            f"gpus: {architecture.name} needs {least['prefill']} GPUs for a prefill unit and {least['decode']} for a "
            f"decode unit, got {self.budget}; on {max(1, self.budget // 2)} {gpu}s each rank has {smaller:.1f} GB too "
            f"little. Use at least {sum(least.values())} GPUs, or a model or type of weights that is smaller"
        )


def _gpus(cluster: Cluster) -> int:
    return cluster.servers * cluster.gpus_per_server


def kv_networks(spec: PlanSpec, cluster: Cluster) -> tuple[NetworkName, ...]:
    """Return the networks that KV cache may travel on."""
    there = tuple(cluster.networks())
    missing = [name for name in spec.search.kv if name not in there]
    if missing:
        raise SpecError(f'search.kv: expected networks of {cluster.name} ({", ".join(there)}), got "{missing[0]}"')
    return spec.search.kv or there


def _degrees(
    spec: PlanSpec, phase: Phase, architecture: Architecture, cluster: Cluster, budget: int
) -> tuple[int, ...]:
    asked = spec.search.prefill_ranks if phase == "prefill" else spec.search.decode_ranks
    if asked:
        return asked
    size = cluster.gpus_per_server
    usual = [ranks for ranks in _DEGREES[phase] if ranks < budget and ranks <= architecture.experts]
    return tuple(ranks for ranks in usual if ranks <= size or ranks % size == 0) or (1,)


def _pools(spec: PlanSpec, phase: Phase, architecture: Architecture, degrees: Iterable[int]) -> Iterable[TwinPool]:
    spare = spec.search.redundant_experts or (0, architecture.experts // _USUAL_SPARE)
    chunks = spec.search.chunk_tokens if phase == "prefill" else spec.search.chunk_tokens[:1]
    running = spec.search.max_running if phase == "decode" else (max(spec.search.max_running),)
    for ranks, redundant, chunk, most, overlap in itertools.product(
        degrees, dict.fromkeys(spare), chunks, running, spec.search.overlap
    ):
        if ranks == 1 and (redundant or overlap == "always"):
            continue
        yield TwinPool(ranks=ranks, redundant_experts=redundant, chunk_tokens=chunk, max_running=most, overlap=overlap)


def _shortfall_of(architecture: Architecture, gpu: str, spec: PlanSpec, ranks: int) -> float:
    """Return by how many GB a rank of so many is too small, without a redundant expert or a request."""
    slots = -(-architecture.experts // ranks)
    kind = weights_type(architecture, gpu, spec.assumptions)
    weights = weight_bytes(architecture, kind, held_experts=slots, mtp=spec.assumptions.mtp_tokens > 0)
    needed = weights + int(efficiencies(gpu).reserve)
    return (needed - int(load_gpu(gpu).memory)) / GPU_MEMORY_GB


def _shortfall(
    spec: PlanSpec, phase: Phase, architecture: Architecture, gpu: str, pools: list[TwinPool], budget: int
) -> str:
    """Say by how much the model does not fit, at best."""
    if not pools:
        return f"search.{phase}_ranks: expected degrees below the {budget} GPUs there are"
    best = min(pools, key=lambda pool: (_shortfall_of(architecture, gpu, spec, pool.ranks), pool.redundant_experts))
    short = max(0.0, _shortfall_of(architecture, gpu, spec, best.ranks))
    return (
        f"gpus: {architecture.name} does not fit on any {phase} unit that {budget} GPUs allow: with its experts shared "
        f"over {best.ranks} {gpu}s each rank has {short:.1f} GB too little for weights and reserve alone; share them "
        "over more GPUs, or take GPUs with more memory or weights of a smaller type"
    )
