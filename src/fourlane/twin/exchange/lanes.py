"""What the network does with expert and KV traffic, as a lane plan and how a simulated network departs from it.

The one definition of a twin's lanes: packets (`fourlane.twin.exchange`), flow level and KV paths all go by it. The
networks are those of `fourlane.twin.fabric.compare`. Not for what a lane plan is (`fourlane.lanes.plan`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fourlane.errors import SpecError
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import LanePlan, load_plan
from fourlane.spec.traffic import TrafficClass
from fourlane.twin.fabric.compare import Variant, in_network
from fourlane.twin.fabric.scenario import Scenario
from fourlane.units import Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.spec.cluster import Cluster, NetworkName
    from fourlane.spec.twin import Lanes
    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.topology import Topology

__all__ = ["LanesCase", "lanes_case"]


class LanesCase(msgspec.Struct, frozen=True, kw_only=True):
    """A lane plan, and what of it is changed for expert traffic.

    `plan`: None for plain lossless lanes, without classes. `routing`: of expert traffic. `queue`: whether it has that
    of its lane to itself, or all classes share it. `ecn`: whether that queue marks, and senders slow down by DCQCN.
    """

    plan: LanePlan | None = None
    routing: Literal["ecmp", "adaptive", "spray"] = "adaptive"
    queue: Literal["own", "shared"] = "own"
    ecn: bool = False

    @property
    def variant(self) -> Variant:
        """Return it as one of the networks that are compared."""
        return Variant(self.routing, self.queue, self.ecn)

    @property
    def kv_network(self) -> NetworkName:
        """Return the network KV cache travels on."""
        return "hpn" if self.plan is None or self.plan.classes[TrafficClass.KV].network != "dcn" else "dcn"

    @property
    def name(self) -> str:
        """Return it in words."""
        return f"{self.variant.name}, KV on the {self.kv_network.upper()}"

    @property
    def plain(self) -> LanesCase:
        """Return what counts of it where nothing but expert traffic is under way: so many cases come to the same."""
        if self.plan is None:
            return msgspec.structs.replace(self, queue="own")
        kv = self.plan.classes[TrafficClass.KV]
        kv = msgspec.structs.replace(kv, scheduler="dwrr", weight=10, cap=None, alpha=0.125, ecn="off", network="both")
        classes = {**self.plan.classes, TrafficClass.KV: msgspec.structs.replace(kv, reserved=Size(0), carriers=())}
        plan = msgspec.structs.replace(self.plan, name="", classes=classes)
        return msgspec.structs.replace(self, plan=plan, queue="own")

    def scenario(self, topology: Topology, flows: Flows | Sequence[Flows], **settings: Any) -> Scenario:
        """Return flows, of which some are of class "expert", in this network."""
        return in_network(Scenario(topology, flows, plan=self.plan, **settings), self.variant)


def lanes_case(lanes: Lanes, cluster: Cluster, plan: LanePlan | None = None) -> LanesCase:
    """Return what a twin's lanes come to on a cluster.

    Args:
        lanes: of the twin.
        cluster: where.
        plan: instead of the one that `lanes` names, or of the cluster's default.

    Raises:
        SpecError: the plan cannot be read or has no expert or KV lane; KV is to go on a network that is not there.
    """
    found = plan or (load_plan(lanes.plan) if lanes.plan is not None else _default(cluster))
    missing = [kind.value for kind in (TrafficClass.EXPERT, TrafficClass.KV) if kind not in found.classes]
    if missing:
        raise SpecError(f"lanes.plan: classes: expected a lane for {' and '.join(missing)}; {found.name} has none")
    found = _with_kv_on(found, lanes.kv, cluster)
    expert = found.classes[TrafficClass.EXPERT]
    return LanesCase(
        plan=found,
        routing=lanes.routing or expert.routing,
        queue=lanes.expert_queue or "own",
        ecn=expert.marking is not None if lanes.ecn is None else lanes.ecn,
    )


@lru_cache(maxsize=16)
def _default(cluster: Cluster) -> LanePlan:
    """Return a cluster's default plan; many twins are on the same one."""
    return default_plan(cluster)


def _with_kv_on(plan: LanePlan, network: NetworkName | None, cluster: Cluster) -> LanePlan:
    """Return a plan whose KV lane is on a network: as the default plan of a cluster with, or without, a DCN has it."""
    if network == "dcn" and cluster.dcn is None:
        raise SpecError(f'lanes.kv: expected "hpn", the only network of {cluster.name}, got "dcn"')
    lane = plan.classes[TrafficClass.KV]
    if network is None or lane.network == network:
        if lane.network == "dcn" and cluster.dcn is None:
            raise SpecError(f"lanes.plan: classes.kv.network: expected hpn, {cluster.name} has no other, got dcn")
        return plan
    alike = _default(cluster if network == "dcn" else msgspec.structs.replace(cluster, dcn=None))
    moved = {name: getattr(alike.classes[TrafficClass.KV], name) for name in _PLACED}
    kv = msgspec.structs.replace(lane, **moved)
    return msgspec.structs.replace(plan, classes={**plan.classes, TrafficClass.KV: kv})


_PLACED = ("network", "weight", "cap", "alpha", "ecn", "carriers")
"""What a KV lane has from the network it is on."""
