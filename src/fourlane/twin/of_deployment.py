"""The twin of a deployment: the same pools, limits and pages, on the machine that a hardware profile was measured on.

Not for clusters that nothing runs on yet: those are written as twin files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.spec.twin import Assumptions, Experts, Slo, Twin, TwinPool, Workload

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.spec.deployment import Deployment, Pool

__all__ = ["twin_of"]

_CLUSTER = "lab"
"""Stands for the host: a twin has a cluster, and traffic inside a host does not use it."""


def twin_of(
    deployment: Deployment, profile: str | Path, *, workload: Workload, slo: Slo | None = None, seed: int = 0
) -> Twin:
    """Return the twin of a deployment.

    Args:
        deployment: with prefill and decode pools.
        profile: a hardware profile, measured by a deployment of the same model and ranks.
        workload: requests it gets.
        slo: what they must meet.
        seed: of what is drawn.

    Raises:
        SpecError: it has no prefill and decode pools, or holds replicas of experts.
    """
    prefill, decode = deployment.prefill, deployment.decode
    if prefill is None or decode is None:
        raise SpecError("expected a deployment with [prefill] and [decode]: the twin simulates both phases apart")
    if deployment.balance is not None and deployment.balance.redundant_experts:
        raise SpecError(
            "balance.redundant_experts: expected 0, or no [balance]: a profile's experts are those that were measured, "
            f"got {deployment.balance.redundant_experts}"
        )
    return Twin(
        name=deployment.model.name or deployment.model.path.rstrip("/").rpartition("/")[2],
        model=deployment.model.path,
        cluster=_CLUSTER,
        hardware=str(profile),
        prefill=_pool(prefill, deployment),
        decode=_pool(decode, deployment),
        experts=Experts(forced=True),
        workload=workload,
        slo=slo or Slo(),
        assumptions=Assumptions(kv="fp32" if decode.device == "cpu" else "bf16"),
        block_size=deployment.kv_cache.block_size,
        seed=seed,
    )


def _pool(pool: Pool, deployment: Deployment) -> TwinPool:
    unit = pool.expert_parallel or pool.ranks
    return TwinPool(
        units=pool.ranks // unit,
        ranks=unit,
        chunk_tokens=pool.chunk_tokens,
        max_running=pool.max_running,
        kv_memory=pool.kv_memory,
        prefix_cache=pool.prefix_cache,
        overlap="always" if deployment.overlap.mode == "always" else "never",
    )
