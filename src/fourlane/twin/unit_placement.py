"""Which GPUs of a cluster each unit of a service has.

Units are placed in rank order, prefill before decode, each on whole servers and within one pod where it fits: a unit
that would straddle two pods begins with the next one, as long as all units still find room. Not for which experts go
to which ranks (`fourlane.policy.placement`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.spec.cluster import Cluster
    from fourlane.spec.twin import Twin
    from fourlane.twin.times import Phase

__all__ = ["UnitPlacement", "place_units"]


@dataclass(frozen=True, eq=False)
class UnitPlacement:
    """The GPUs of units, by phase: i64 [units, ranks], the GPU of each rank."""

    gpu_UR: dict[Phase, NDArray[np.int64]]

    @property
    def gpus(self) -> int:
        """Return how many GPUs are taken."""
        return sum(gpus.size for gpus in self.gpu_UR.values())


def place_units(twin: Twin, cluster: Cluster) -> UnitPlacement:
    """Place all units of a twin.

    Raises:
        SpecError: the cluster has too few GPUs.
    """
    wanted = [(phase, pool.ranks) for phase, pool in twin.pools().items() for _ in range(pool.units)]
    sizes = np.array([ranks for _, ranks in wanted])
    first = _placed(sizes, cluster, keep_to_pods=True)
    if first is None:
        first = _placed(sizes, cluster, keep_to_pods=False)
    if first is None:
        gpus = cluster.servers * cluster.gpus_per_server
        raise SpecError(
            f"{twin.name}: expected at most the {gpus} GPUs of {cluster.name}, whole servers to units that have more "
            f"than one, got {twin.gpus} ranks in {len(wanted)} units"
        )
    found: dict[Phase, NDArray[np.int64]] = {}
    for phase, pool in twin.pools().items():
        begins = [begin for begin, (each, _) in zip(first, wanted, strict=True) if each == phase]
        found[phase] = np.array(begins, dtype=np.int64).reshape(-1, 1) + np.arange(pool.ranks)
    return UnitPlacement(found)


def _placed(sizes: NDArray[np.int64], cluster: Cluster, *, keep_to_pods: bool) -> list[int] | None:
    """Return the first GPU of each unit; None if there are too few."""
    server = cluster.gpus_per_server
    pod = -(-cluster.servers // cluster.hpn.pods) * server
    found: list[int] = []
    free = 0
    for size in sizes.tolist():
        begin = free
        if begin % server and begin // server != (begin + size - 1) // server:
            begin += -begin % server
        if keep_to_pods and size <= pod and begin // pod != (begin + size - 1) // pod:
            begin += -begin % pod
        found.append(begin)
        free = begin + size
    return found if free <= cluster.servers * server else None
