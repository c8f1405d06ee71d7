"""Proofs about congestion: when ECN may be off, and what adaptive routing and trimming need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.checks.case import Found
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.checks.case import Case
    from fourlane.lanes.plan import Lane
    from fourlane.spec.cluster import NetworkName

__all__ = [
    "adaptive_routing_is_possible",
    "congestion_control_is_for_all_alike",
    "ecn_is_off_only_with_another_brake",
    "flags_do_not_overtake_data",
    "marked_classes_can_be_marked",
    "trimming_is_possible",
    "unmarked_classes_carry_no_ecn_bits",
]

_FLAG_AFTER_DATA = "deepep-v1"


def ecn_is_off_only_with_another_brake(case: Case) -> Iterator[Found]:
    """ECN is off for RDMA only with pauses under a watchdog (or trimming), adaptive routing, and control elsewhere."""
    for kind, lane, name in case.over_rdma():
        if lane.marking is None:
            missing = list(_missing(case, lane, name))
            if missing:
                found = f"off, but on {name} there is no other brake: {'; '.join(missing)}"
                mend = "give it what is missing, or ecn = {kmin = ..., kmax = ..., pmax = 0.2}"
                yield Found("error", f"classes.{kind.value}.ecn", found, mend)


def _missing(case: Case, lane: Lane, name: NetworkName) -> Iterator[str]:
    control = case.plan.on(name).get(TrafficClass.CONTROL)
    if not lane.trim and not (lane.lossless and case.plan.pfc.watchdog):
        yield "neither lossless with a watchdog nor trimmed"
    if lane.routing != "adaptive":
        yield 'routing is not "adaptive"'
    if control is None:
        yield "control, which carries congestion notifications, does not travel here"
    elif control.queue == lane.queue and control is not lane:
        yield "control shares its queue"


def unmarked_classes_carry_no_ecn_bits(case: Case) -> Iterator[Found]:
    """A class with ECN off has no ECN bits in its ToS byte."""
    for kind, lane in case.plan.classes.items():
        if lane.marking is None and lane.tos & 3:
            found = f"ECN is off, but its ToS byte {lane.tos} (0x{lane.tos:02X}) says ECN-capable: others may mark it"
            yield Found("error", f"classes.{kind.value}.ect", found, "remove ect, or set ect = false")


def marked_classes_can_be_marked(case: Case) -> Iterator[Found]:
    """A class with ECN on declares its packets ECN-capable."""
    for kind, lane in case.plan.classes.items():
        if lane.marking is not None and lane.ect is False and not lane.over_tcp:
            found = "false, but ecn has thresholds: switches drop what they may not mark"
            yield Found("warning", f"classes.{kind.value}.ect", found, 'remove ect, or set ecn = "off"')


def congestion_control_is_for_all_alike(case: Case) -> Iterator[Found]:
    """Where a NIC has one congestion control for all priorities, that ECN is off by switch and ToS byte is told."""
    for kind, lane, name in case.over_rdma():
        nic = case.cluster.networks()[name].nic
        if lane.marking is None and not case.nic(name).ecn_per_priority:
            found = f"{nic} configures congestion control for all priorities alike"
            mend = "none needed: the queue does not mark, and the ToS byte has no ECN bits"
            yield Found("note", f"classes.{kind.value}.ecn on {name}", found, mend)


def adaptive_routing_is_possible(case: Case) -> Iterator[Found]:
    """Adaptive routing has NICs that put packets back in order, and switches that can be told."""
    rdma = {(kind, name) for kind, _, name in case.over_rdma()}
    for kind, lane, name, network in case.lanes():
        if lane.routing != "adaptive":
            continue
        place = f"classes.{kind.value}.routing on {name}"
        if (kind, name) in rdma and not case.nic(name).adaptive_routing:
            found = f"adaptive, but {network.nic} does not put packets back in order: it takes overtaking for loss"
            yield Found("error", place, found, 'set routing = "ecmp"')
        for switch in case.switches:
            if switch.network == name and network.spine and switch.tier.os not in switch.model.adaptive_routing:
                yield Found("warning", place, *_untold(switch.name, switch.tier.os))


def _untold(switch: str, system: str) -> tuple[str, str]:
    if system == "sonic":
        return (
            f"{switch} runs SONiC, of which no release can be told adaptive routing; its configuration stays ECMP",
            f"the sonic target writes {switch}.adaptive-routing.not-upstream.json, for builds that have the ARS tables",
        )
    return f"{switch} runs {system}, which cannot be told adaptive routing here", "configure it by hand"


def flags_do_not_overtake_data(case: Case) -> Iterator[Found]:
    """Adaptive routing carries no library that sends a flag after its data and counts on their order."""
    for kind, lane in case.plan.classes.items():
        if lane.routing == "adaptive" and _FLAG_AFTER_DATA in lane.carriers:
            found = f"adaptive, but {_FLAG_AFTER_DATA} writes a flag after its data: overtaken, it reads stale data"
            mend = 'use deepep-v2, or routing = "ecmp" (and ECN on); its low-latency kernels alone are safe'
            yield Found("warning", f"classes.{kind.value}.routing", found, mend)


def trimming_is_possible(case: Case) -> Iterator[Found]:
    """Every switch of a trimmed class can trim, and what is left travels in another class of that network."""
    trimming = case.plan.trimming
    for kind, lane, name, _ in case.lanes():
        if not lane.trim:
            continue
        place = f"classes.{kind.value}.trim on {name}"
        for switch in case.switches:
            if switch.network == name and not switch.model.trimming:
                found = f"{switch.name} ({switch.tier.switch}) cannot trim packets"
                yield Found("error", place, found, "set trim = false")
        if trimming.to is kind:
            found = f"trimmed packets go on as {trimming.to.value}, whose queue is the full one"
            yield Found("error", "trimming.to", found, 'set trimming.to = "control"')
        elif trimming.to not in case.plan.on(name):
            found = f"trimmed packets go on as {trimming.to.value}, which does not travel on {name}"
            yield Found("error", "trimming.to", found, "name a class of that network")
