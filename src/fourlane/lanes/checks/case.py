"""What every proof is given, and what it yields."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from fourlane.lanes.buffers import switch_budget
from fourlane.lanes.ports import switches
from fourlane.lanes.qos_maps import qos_maps
from fourlane.spec.hardware import nic_models
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.buffers import Budget
    from fourlane.lanes.plan import Lane, LanePlan
    from fourlane.lanes.ports import Switch
    from fourlane.lanes.qos_maps import QosMaps
    from fourlane.spec.cluster import Cluster, Network, NetworkName
    from fourlane.spec.hardware import NicModel

__all__ = ["Case", "Found", "Severity"]

Severity = Literal["error", "warning", "note"]
_BETWEEN_GPUS = frozenset({TrafficClass.EXPERT, TrafficClass.COLLECTIVE, TrafficClass.KV})


class Found(NamedTuple):
    """What a proof has found at a place of the plan or the cluster, and what mends it."""

    severity: Severity
    place: str
    found: str
    mend: str


@dataclass(frozen=True)
class Case:
    """A plan of good form, on a cluster."""

    plan: LanePlan
    cluster: Cluster

    @cached_property
    def switches(self) -> list[Switch]:
        """Return the kinds of switches."""
        return switches(self.cluster)

    @cached_property
    def budgets(self) -> list[tuple[Switch, Budget]]:
        """Return each kind of switch with what the plan makes of its buffer."""
        return [(switch, switch_budget(self.plan, switch)) for switch in self.switches]

    @cached_property
    def maps(self) -> dict[NetworkName, QosMaps]:
        """Return the maps of each network's switches."""
        return {name: qos_maps(self.plan, name) for name in self.cluster.networks()}

    def nic(self, network: NetworkName) -> NicModel:
        """Return the model of a network's NICs."""
        return nic_models()[self.cluster.networks()[network].nic]

    def lanes(self) -> Iterator[tuple[TrafficClass, Lane, NetworkName, Network]]:
        """Yield every class once for each network it travels on, in a fixed order."""
        for name, network in self.cluster.networks().items():
            for kind, lane in self.plan.on(name).items():
                yield kind, lane, name, network

    def over_rdma(self) -> Iterator[tuple[TrafficClass, Lane, NetworkName]]:
        """Yield the classes that RDMA over Ethernet (RoCE) carries.

        A class of which no carrier is named counts if it runs between GPUs.
        """
        for kind, lane, name, network in self.lanes():
            named = bool(lane.carriers) or kind in _BETWEEN_GPUS
            if network.fabric == "roce" and named and not lane.over_tcp:
                yield kind, lane, name
