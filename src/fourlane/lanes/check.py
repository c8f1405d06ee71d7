"""Prove that a lane plan makes sense on a cluster: every proof has a name, what it finds a place and a mend.

Errors stop rendering; warnings and notes do not. A note is no fault: it tells what an operator should
know. Faults of form (`fourlane.lanes.rules`) are refused as a file is read; a plan made otherwise that has
some is given them as findings of the check "form", and no further proof is tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.lanes.checks import buffer, congestion, maps, networks, pauses, queues
from fourlane.lanes.checks.case import Case, Severity
from fourlane.lanes.rules import plan_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.lanes.checks.case import Found
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

__all__ = ["CHECKS", "Finding", "Severity", "check_plan", "errors_of"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, where, and what mends it."""

    check: str
    severity: Severity
    place: str
    found: str
    mend: str

    def __str__(self) -> str:
        """Write it as one line."""
        return f"{self.severity}: {self.check}: {self.place}: {self.found}; {self.mend}"


FORM = "form"
_PROOFS: dict[str, Callable[[Case], Iterator[Found]]] = {
    "networks": networks.networks_exist,
    "second-network": networks.two_networks_are_two,
    "fabric": networks.dscp_applies,
    "carriers": networks.carriers_run_on_the_fabric,
    "ports": queues.ports_fit,
    "limits": queues.numbers_are_within_limits,
    "dscp-mapped": maps.every_dscp_is_mapped,
    "dscp-once": maps.no_dscp_is_claimed_twice,
    "dscp-priority": maps.priority_is_that_of_the_dscp,
    "queue-closure": maps.queues_close,
    "pfc-closure": maps.pauses_close,
    "pfc-group": maps.no_lossless_class_in_the_lossy_group,
    "pfc-possible": pauses.pauses_are_possible,
    "watchdog": pauses.a_watchdog_guards_pauses,
    "watchdog-timers": pauses.watchdog_timers_are_within_limits,
    "watchdog-drop": pauses.dropped_expert_traffic_is_waited_for,
    "weights": queues.weights_sum_to_100,
    "strict-cap": queues.strict_classes_are_capped,
    "strict-sum": queues.caps_leave_room,
    "cap-weight": queues.caps_reach_the_share,
    "kv-shared": queues.kv_beside_expert_traffic_is_held_back,
    "headroom": buffer.headroom_is_known,
    "buffer": buffer.the_budget_fits,
    "lossless-cost": buffer.lossless_classes_cost_headroom,
    "shared-headroom": pauses.shared_headroom_is_possible,
    "ecn-thresholds": buffer.ecn_thresholds_are_within_reach,
    "ecn-percent": buffer.pmax_is_a_whole_percent,
    "ecn-off": congestion.ecn_is_off_only_with_another_brake,
    "ecn-bits": congestion.unmarked_classes_carry_no_ecn_bits,
    "ecn-capable": congestion.marked_classes_can_be_marked,
    "ecn-nic": congestion.congestion_control_is_for_all_alike,
    "adaptive-routing": congestion.adaptive_routing_is_possible,
    "flag-after-data": congestion.flags_do_not_overtake_data,
    "trimming": congestion.trimming_is_possible,
}
CHECKS: dict[str, str] = {
    FORM: "Every value is one: ranges, spellings, no queue or priority given twice.",
    **{name: (proof.__doc__ or "").strip() for name, proof in _PROOFS.items()},
}
"""What each check proves, in the order they run."""


def check_plan(plan: LanePlan, cluster: Cluster) -> list[Finding]:
    """Run every check on a plan, on a cluster whose file was read without faults.

    Returns:
        What was found, in the order of `CHECKS`; empty if all is proven and nothing need be told.
    """
    faults = [Finding(FORM, "error", fault.place, fault.message, "correct it") for fault in plan_faults(plan)]
    if faults:
        return faults
    case = Case(plan, cluster)
    return [Finding(name, *found) for name, proof in _PROOFS.items() for found in proof(case)]


def errors_of(findings: list[Finding]) -> list[Finding]:
    """Return the findings that stop rendering."""
    return [finding for finding in findings if finding.severity == "error"]
