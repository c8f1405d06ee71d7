"""Render a lane plan for Arista EOS: configuration text, one file for each kind of switch.

The configuration is first a dictionary by the schema of Arista's own AVD (`eos_structured`), so that pyavd can check
it and the text against its templates, as the tests do where it is installed; it was never run on a device.
Each file says so in its first line, and then what of the plan EOS has no words for. Units are EOS's: bytes
for buffers and thresholds, kbit/s for shapers, seconds for the watchdog, whole percents.

Source: Arista AVD (pyavd) 6.4, eos_cli_config_gen; Arista EOS User Manual, Quality of Service, Priority Flow
Control and Load Balancing.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from fourlane.lanes.ports import switches
from fourlane.lanes.qos_maps import qos_maps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.plan import Ecn, Lane, LanePlan, Pfc
    from fourlane.lanes.ports import Port, Switch
    from fourlane.spec.cluster import Cluster
    from fourlane.units import Duration, Rate

__all__ = ["eos_structured", "render_eos"]

_HEAD = "! Not run on a device: written from Arista's documentation and the schema of Arista AVD."
_MMU = "FOURLANE"
_MOST_THRESHOLD = 8
_HUNDREDTH = 10**10  # of a second, in ps
_RATE_NUMBER = re.compile("[0-9]+")
_ACTIONS = {"drop": "drop", "forward": "notify-only"}
Structured = dict[str, Any]


def render_eos(plan: LanePlan, cluster: Cluster, *, every_switch: bool = False) -> dict[str, str]:
    """Render a plan for the EOS switches of a cluster; `every_switch`: for the others too.

    Returns:
        File names and their texts.
    """
    return {
        f"{switch.name}.eos.cfg": "\n".join([_HEAD, *_head(plan, switch), *_text(eos_structured(plan, switch)), ""])
        for switch in switches(cluster)
        if switch.tier.os == "eos" or every_switch
    }


def eos_structured(plan: LanePlan, switch: Switch) -> Structured:
    """Return the configuration as AVD's `eos_cli_config_gen` takes it."""
    lanes = sorted(plan.on(switch.network).values(), key=lambda lane: lane.queue)
    maps = qos_maps(plan, switch.network)
    dscps = sorted((points, tc) for tc in maps.class_of_tc if (points := maps.dscps_of(tc)))
    qos: Structured = {
        "map": {
            "dscp": [f"{' '.join(map(str, points))} to traffic-class {tc}" for points, tc in dscps],
            "traffic_class": [f"{tc} to uc-tx-queue {queue}" for tc, queue in maps.tc_to_queue.items()],
        }
    }
    if any(lane.marking for lane in lanes):
        qos["random_detect"] = {"ecn": {"allow_non_ect": {"enabled": True}}}
    structured: Structured = {
        "platform": {"trident": {"mmu": {"active_profile": _MMU, "queue_profiles": [_buffers(lanes)]}}},
        "qos_profiles": [_profile(plan, switch, lanes, rate) for rate in _rates(switch)],
        "ethernet_interfaces": [
            {"name": _port_name(switch, port), "service_profile": _profile_name(port.rate)} for port in switch.ports
        ],
        "qos": qos,
    }
    if maps.lossless and plan.pfc.watchdog:
        timer = _timer(plan.pfc)
        structured["priority_flow_control"] = {"watchdog": {**timer, "action": _ACTIONS[plan.pfc.action]}}
    if _links(switch) and any(lane.routing == "adaptive" for lane in lanes):
        structured["ip_hardware"] = {"fib": {"load_balance_distribution": {"dynamic": {"enabled": True}}}}
    return structured


def _profile(plan: LanePlan, switch: Switch, lanes: list[Lane], rate: Rate) -> Structured:
    paused = qos_maps(plan, switch.network).lossless
    pauses: Structured = {"enabled": bool(paused)}
    if paused:
        pauses["priorities"] = [{"priority": priority, "no_drop": True} for priority in paused]
    if paused and plan.pfc.watchdog:
        pauses["watchdog"] = {"enabled": True}
    return {
        "name": _profile_name(rate),
        "trust": "dscp",
        "priority_flow_control": pauses,
        "uc_tx_queues": [_queue(lane, rate) for lane in lanes],
    }


def _queue(lane: Lane, rate: Rate) -> Structured:
    queue: Structured = {"id": lane.queue, "priority": "priority strict" if lane.weight is None else "no priority"}
    if lane.weight is not None:
        queue["bandwidth_percent"] = lane.weight
    if lane.cap is not None:
        queue["shape"] = {"rate": f"{max(1, int(rate) * lane.cap // 100_000)} kbps"}
    if lane.marking is not None:
        queue["random_detect"] = {"ecn": _ecn(lane.marking)}
    return queue


def _ecn(ecn: Ecn) -> Structured:
    percent = max(1, round(100 * ecn.pmax))
    threshold = {"units": "bytes", "min": int(ecn.kmin), "max": int(ecn.kmax), "max_probability": percent, "weight": 0}
    return {"count": True, "threshold": threshold}


def _buffers(lanes: list[Lane]) -> Structured:
    """Return what queues may hold; a lossless queue is left without a limit of its own."""
    queues = []
    for lane in lanes:
        queue: Structured = {"id": lane.queue, "unit": "bytes", "reserved": int(lane.reserved)}
        if not lane.lossless:
            queue["threshold"] = _threshold(lane.alpha)
        queues.append(queue)
    return {"name": _MMU, "unicast_queues": queues}


def _threshold(alpha: float) -> str:
    exponent = round(math.log2(min(alpha, _MOST_THRESHOLD)))
    return str(2**exponent) if exponent >= 0 else f"1/{2**-exponent}"


def _timer(pfc: Pfc) -> dict[str, str]:
    times = {"timeout": pfc.detection, "recovery_time": pfc.restoration, "polling_interval": pfc.poll}
    return {name: _seconds(time) for name, time in times.items()}


def _seconds(time: Duration) -> str:
    """Write seconds in hundredths, rounded up, which is as fine as EOS takes them."""
    hundredths = max(1, -(-int(time) // _HUNDREDTH))
    return f"{hundredths / 100:g}"


def _rates(switch: Switch) -> list[Rate]:
    """Return the port rates in the order AVD gives their profiles: by the number in the name, then by its unit."""
    return sorted(
        {port.rate for port in switch.ports}, key=lambda rate: (int(_RATE_NUMBER.findall(str(rate))[0]), str(rate))
    )


def _profile_name(rate: Rate) -> str:
    return f"FOURLANE-{str(rate).upper().removesuffix('BPS')}"


def _port_name(switch: Switch, port: Port) -> str:
    front, part = divmod(port.lane, switch.model.lanes_per_port)
    return f"Ethernet{front + 1}" + (f"/{part + 1}" if switch.model.lanes_per_port > 1 else "")


def _links(switch: Switch) -> list[Port]:
    return [port for port in switch.ports if port.facing != "server"]


# Text ---------------------------------------------------------------------------------------------


def _head(plan: LanePlan, switch: Switch) -> Iterator[str]:
    yield f"! {switch.name} of {plan.name}: {switch.tier.switch}."
    lanes = plan.on(switch.network)
    lossless = plan.lossless_on(switch.network)
    for kind, lane in lanes.items():
        if lane.lossless:
            alpha = f"classes.{kind.value}.alpha = {lane.alpha:g}"
            yield f"! Not rendered: {alpha}; EOS sets what a group that pauses may hold."
        elif lane.alpha > _MOST_THRESHOLD:
            yield f"! Not rendered: classes.{kind.value}.alpha = {lane.alpha:g}; EOS takes {_MOST_THRESHOLD} at most."
        if lane.trim:
            yield f"! Not rendered: classes.{kind.value}.trim; EOS does not trim."
    if lossless:
        yield "! Not rendered: headroom; EOS works it out by itself. Hold it against `fourlane lanes show`."
    if lossless and _ACTIONS[plan.pfc.action] != plan.pfc.action:
        yield f'! Not rendered: pfc.action = "{plan.pfc.action}"; EOS would keep the pause in force (notify-only).'
    if any(lane.routing == "adaptive" for lane in lanes.values()) and _links(switch):
        yield "! Adaptive routing (dynamic load balancing) is for all traffic of the switch, not for one class."


def _text(structured: Structured) -> Iterator[str]:
    """Write the configuration as AVD's templates would, block by block."""
    (mmu,) = structured["platform"]["trident"]["mmu"]["queue_profiles"]
    yield from ("!", f"platform trident mmu queue profile {mmu['name']}")
    for queue in mmu["unicast_queues"]:
        yield f"    egress unicast queue {queue['id']} reserved {queue['unit']} {queue['reserved']}"
        if "threshold" in queue:
            yield f"    egress unicast queue {queue['id']} threshold {queue['threshold']}"
    for profile in structured["qos_profiles"]:
        yield from _profile_text(profile)
    for port in structured["ethernet_interfaces"]:
        yield from ("!", f"interface {port['name']}", f"   service-profile {port['service_profile']}")
    if "ip_hardware" in structured:
        yield "ip hardware fib load-balance distribution dynamic"
    yield "!"
    qos = structured["qos"]
    if "random_detect" in qos:
        yield "qos random-detect ecn allow non-ect"
    yield from (f"qos map dscp {line}" for line in qos["map"]["dscp"])
    yield from (f"qos map traffic-class {line}" for line in qos["map"]["traffic_class"])
    watchdog = structured.get("priority_flow_control", {}).get("watchdog")
    if watchdog:
        for name in ("timeout", "recovery_time", "polling_interval"):
            yield f"priority-flow-control pause watchdog default {name.replace('_', '-')} {watchdog[name]}"
        yield f"priority-flow-control pause watchdog action {watchdog['action']}"
    yield from ("!", f"platform trident mmu queue profile {_MMU} apply")


def _profile_text(profile: Structured) -> Iterator[str]:
    yield from ("!", f"qos profile {profile['name']}", f"   qos trust {profile['trust']}")
    pauses = profile["priority_flow_control"]
    yield "   priority-flow-control on" if pauses["enabled"] else "   no priority-flow-control"
    for paused in pauses.get("priorities", ()):
        yield f"   priority-flow-control priority {paused['priority']} no-drop"
    if "watchdog" in pauses:
        yield "   priority-flow-control pause watchdog"
    for queue in profile["uc_tx_queues"]:
        yield from ("   !", f"   uc-tx-queue {queue['id']}", f"      {queue['priority']}")
        if "bandwidth_percent" in queue:
            yield f"      bandwidth percent {queue['bandwidth_percent']}"
        if "shape" in queue:
            yield f"      shape rate {queue['shape']['rate']}"
        if "random_detect" in queue:
            ecn = queue["random_detect"]["ecn"]["threshold"]
            yield (
                f"      random-detect ecn minimum-threshold {ecn['min']} {ecn['units']} maximum-threshold {ecn['max']} "
                f"{ecn['units']} max-mark-probability {ecn['max_probability']} weight {ecn['weight']}"
            )
            yield "      random-detect ecn count"
