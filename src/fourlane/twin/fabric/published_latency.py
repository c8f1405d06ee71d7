"""Published latencies, and what the budget gives for the same network: which assumptions lead there.

What was published is a round figure for a path that is described in a line; cables, NICs and software are not. The
assumptions below are the same for all rows as far as the hardware is: 0.7 us a NIC, 5 m to the leaf, 40 m to the spine.
"""

from __future__ import annotations

import msgspec

from fourlane.spec.load import load_cluster
from fourlane.twin.fabric.latency import latency_budgets
from fourlane.units import Duration, Size

__all__ = ["PUBLISHED", "Comparison", "Published", "against_published"]

_CPU_SIDE = Duration.parse("1100ns")
"""What a measurement by CPUs has on top, both ends together: work request, doorbell, polling, verbs."""
_DEEPSEEK = "DeepSeek, Insights into DeepSeek-V3 (ISCA 2025), table 5: 64 B, measured by the CPU"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A published latency and the network assumed for it: a cluster of the catalog with changes, and software.

    Units:
        same_leaf_us, cross_leaf_us: us, one way; None where not given.
    """

    network: str
    same_leaf_us: float | None
    cross_leaf_us: float
    source: str
    cluster: str
    changes: tuple[str, ...]
    software: Duration
    assumed: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A published latency beside the budget of the network assumed for it."""

    network: str
    path: str
    published_us: float
    budget_us: float
    assumed: str
    source: str

    @property
    def error(self) -> float:
        """Return by which share the budget is off."""
        return self.budget_us / self.published_us - 1


PUBLISHED = (
    Published(
        network="RoCE 400G",
        same_leaf_us=3.6,
        cross_leaf_us=5.6,
        source=_DEEPSEEK,
        cluster="h800-ft",
        changes=(),
        software=_CPU_SIDE,
        assumed="switches of the 600 to 800 ns class (0.7 us), 5 m and 40 m, 1.1 us of CPU",
    ),
    Published(
        network="InfiniBand 400G",
        same_leaf_us=2.8,
        cross_leaf_us=3.7,
        source=_DEEPSEEK,
        cluster="h800-ft",
        changes=("hpn.leaf.latency=150ns", "hpn.spine.latency=150ns"),
        software=_CPU_SIDE,
        assumed="Quantum-2 (0.15 us), 5 m and 40 m, 1.1 us of CPU",
    ),
    Published(
        network="high-performance network of the article",
        same_leaf_us=None,
        cross_leaf_us=4.0,
        source="Baidu Intelligent Cloud, 2025",
        cluster="h800-ft",
        changes=("hpn.leaf.latency=560ns", "hpn.spine.latency=560ns"),
        software=Duration(0),
        assumed="switches of 560 ns (CX864E-N), 5 m and 40 m, the GPU starts and polls: no CPU",
    ),
)


def against_published() -> list[Comparison]:
    """Return every published latency beside what the budget gives."""
    found = []
    for row in PUBLISHED:
        cluster = load_cluster(row.cluster, overrides=row.changes)
        budgets = {budget.name: budget for budget in latency_budgets(cluster, size=Size(64))}
        for path, published in (("same leaf", row.same_leaf_us), ("cross leaf", row.cross_leaf_us)):
            if published is not None:
                found.append(
                    Comparison(
                        network=row.network,
                        path=path,
                        published_us=published,
                        budget_us=(int(budgets[path].total) + int(row.software)) / 1e6,
                        assumed=row.assumed,
                        source=row.source,
                    )
                )
    return found
