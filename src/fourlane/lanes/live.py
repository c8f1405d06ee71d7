"""What a lane plan means to a running service: the mark of each class, and what does not fit its addresses.

Not for whether the plan is sound on a cluster (`fourlane.lanes.check`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.interfaces import interface_of
from fourlane.lanes.marking import LaneMark, default_marks
from fourlane.lanes.plan import load_plan
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.deployment import Deployment

__all__ = ["deployment_plan", "lane_cautions", "plan_marks"]


def deployment_plan(deployment: Deployment) -> LanePlan | None:
    """Read the lane plan that a deployment names; None if it names none.

    Raises:
        SpecError: the file is not there, or wrong; all its faults.
    """
    return load_plan(deployment.lanes) if deployment.lanes is not None else None


def plan_marks(plan: LanePlan | None) -> dict[TrafficClass, LaneMark]:
    """Return the mark of every class: the plan's, or without one the defaults."""
    if plan is None:
        return default_marks()
    return {kind: LaneMark(kind, lane.dscp, lane.priority, lane.tos) for kind, lane in plan.classes.items()}


def lane_cautions(deployment: Deployment, plan: LanePlan | None) -> list[str]:
    """Return where a plan's networks and a deployment's addresses on this host do not go together."""
    if plan is None or deployment.kv_transfer.transport == "shared_memory":
        return []
    kv, expert = plan.classes[TrafficClass.KV], plan.classes[TrafficClass.EXPERT]
    if kv.network != "dcn" or expert.network != "hpn":
        return []
    kv_address, expert_address = deployment.kv_transfer.address, deployment.exchange.address
    interface, other = interface_of(kv_address), interface_of(expert_address)
    if interface is None or interface != other or interface == "lo":
        return []
    same = f"both are {kv_address}" if kv_address == expert_address else f"{kv_address} and {expert_address}"
    caution = (
        f"kv_transfer.address: lane plan {plan.name} puts kv on the dcn and expert on the hpn, but here both use "
        f"interface {interface} (kv_transfer.address and exchange.address: {same}), so KV travels beside expert "
        "traffic; set kv_transfer.address to this host's address on the dcn, exchange.address to that on the hpn"
    )
    return [caution]
