"""Render a lane plan for NVIDIA Cumulus Linux: NVUE commands, one file for each kind of switch.

Written from NVIDIA's documentation; never run on a device, and there is no checker to be had: each file says so
in its first line, and then what of the plan has no command. Units are NVUE's: bytes for buffers and
thresholds, kbit/s for shapers, metres for cables, milliseconds for the watchdog, whole percents.

What is NVUE's way and not the plan's: lossless and lossy traffic have pools of their own, here in the
proportion of their classes' alphas; all lossless classes share one alpha (the largest); headroom is worked out
by the switch from the cable's length.

Source: Cumulus Linux 5.14 User Guide, Quality of Service and Packet Trimming; NVUE reference, Adaptive Routing
(the spelling of 5.15: `state enabled`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fourlane.lanes.ports import switches
from fourlane.lanes.qos_maps import qos_maps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fourlane.lanes.plan import Lane, LanePlan
    from fourlane.lanes.ports import Port, Switch
    from fourlane.spec.cluster import Cluster
    from fourlane.units import Rate

__all__ = ["port_ranges", "render_nvue"]

_HEAD = "# Not run on a device: written from NVIDIA's documentation for Cumulus Linux 5.15 and newer."
_DEFAULT_QUEUE = 0
"""The queue in which Cumulus Linux marks unless told otherwise."""
_LEAST_TRIMMED, _MOST_TRIMMED = 256, 1024
_INFINITE_ALPHA = 7


def render_nvue(plan: LanePlan, cluster: Cluster, *, every_switch: bool = False) -> dict[str, str]:
    """Render a plan for the Cumulus switches of a cluster; `every_switch`: for the others too.

    Returns:
        File names and their texts.
    """
    return {
        f"{switch.name}.nvue": "\n".join([_HEAD, *_lines(plan, switch), ""])
        for switch in switches(cluster)
        if switch.tier.os == "cumulus" or every_switch
    }


def _lines(plan: LanePlan, switch: Switch) -> Iterator[str]:
    yield f"# {switch.name} of {plan.name}: {switch.tier.switch}. After the last line: nv config diff, nv config apply."
    for note in _notes(plan, switch):
        yield f"# Not rendered: {note}"
    yield from _breakouts(switch)
    yield from _mapping(plan, switch)
    yield from _scheduling(plan, switch)
    yield from _marking(plan, switch)
    yield from _buffers(plan, switch)
    yield from _pauses(plan, switch)
    yield from _trimming(plan, switch)
    yield from _adaptive_routing(plan, switch)


def _notes(plan: LanePlan, switch: Switch) -> Iterator[str]:
    """Yield what of the plan NVUE has no command for."""
    lossless = plan.lossless_on(switch.network)
    for kind, lane in lossless.items():
        if lane.reserved:
            yield f"classes.{kind.value}.reserved = {lane.reserved}; the ingress lossless buffer has no reservation."
    if len({lane.alpha for lane in lossless.values()}) > 1:
        yield "alphas of lossless classes one by one; all have the largest."
    if lossless and plan.pfc.headroom is not None:
        yield f"pfc.headroom = {plan.pfc.headroom}; the switch works headroom out from the cable's length."
    if lossless and plan.pfc.shared_headroom:
        yield "pfc.shared_headroom; switch it on by hand (Cumulus Linux 5.17), or every port keeps its own."
    if lossless and plan.pfc.action != "drop":
        yield f'pfc.action = "{plan.pfc.action}"; the watchdog of Cumulus Linux drops.'
    if lossless:
        yield f"pfc.restoration = {plan.pfc.restoration}; pauses count again after one poll without any."
    if any(lane.trim for lane in plan.on(switch.network).values()) and plan.trimming.size != _trimmed(plan):
        yield f"trimming.size = {plan.trimming.size}; NVUE takes {_LEAST_TRIMMED} to {_MOST_TRIMMED}, in fours."


def _breakouts(switch: Switch) -> Iterator[str]:
    for lanes in sorted({port.lanes for port in switch.ports if port.lanes < switch.model.lanes_per_port}):
        fronts = sorted({_front(switch, port) for port in switch.ports if port.lanes == lanes})
        parts = switch.model.lanes_per_port // lanes
        yield f"# Counts on: nv set interface {_whole_ports(fronts)} link breakout {parts}x"


# Ports --------------------------------------------------------------------------------------------


def port_ranges(switch: Switch, ports: Iterable[Port]) -> str:
    """Write ports as NVUE lists them: "swp1-32", "swp1s0-1,swp2s0-1"."""
    whole: list[int] = []
    parts: dict[int, list[int]] = {}
    for port in ports:
        front = _front(switch, port)
        if port.lanes >= switch.model.lanes_per_port:
            whole.append(front)
        else:
            parts.setdefault(front, []).append(port.lane % switch.model.lanes_per_port // port.lanes)
    broken = [f"swp{front}s{_runs(subs)}" for front, subs in sorted(parts.items())]
    return ",".join([*([_whole_ports(whole)] if whole else []), *broken])


def _front(switch: Switch, port: Port) -> int:
    return port.lane // switch.model.lanes_per_port + 1


def _whole_ports(fronts: list[int]) -> str:
    return "swp" + _runs(fronts).replace(",", ",swp")


def _runs(numbers: Iterable[int]) -> str:
    """Write numbers as runs: "1-3,7"."""
    runs: list[list[int]] = []
    for value in sorted(set(numbers)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _bind(switch: Switch, ports: Iterable[Port], what: str) -> str:
    return f"nv set interface {port_ranges(switch, ports)} {what}"


def _by_rate(switch: Switch) -> dict[Rate, list[Port]]:
    found: dict[Rate, list[Port]] = {}
    for port in switch.ports:
        found.setdefault(port.rate, []).append(port)
    return dict(sorted(found.items()))


def _short(rate: Rate) -> str:
    return str(rate).lower().removesuffix("bps")


# What each class gets -----------------------------------------------------------------------------


def _mapping(plan: LanePlan, switch: Switch) -> Iterator[str]:
    maps = qos_maps(plan, switch.network)
    yield "nv set qos mapping default-global trust l3"
    for tc in maps.class_of_tc:
        dscps = maps.dscps_of(tc)
        if dscps:
            listed = ",".join(map(str, dscps))
            yield f"nv set qos mapping default-global dscp {listed} switch-priority {tc}"
    for tc, queue in maps.tc_to_queue.items():
        yield f"nv set qos egress-queue-mapping default-global switch-priority {tc} traffic-class {queue}"


def _by_queue(plan: LanePlan, switch: Switch) -> list[Lane]:
    return sorted(plan.on(switch.network).values(), key=lambda lane: lane.queue)


def _scheduling(plan: LanePlan, switch: Switch) -> Iterator[str]:
    lanes = _by_queue(plan, switch)
    for lane in lanes:
        queue = f"nv set qos egress-scheduler default-global traffic-class {lane.queue}"
        yield f"{queue} mode {lane.scheduler}"
        if lane.weight is not None:
            yield f"{queue} bw-percent {lane.weight}"
    capped = [lane for lane in lanes if lane.cap is not None]
    for rate, ports in _by_rate(switch).items() if capped else ():
        profile = f"fourlane-{_short(rate)}"
        for lane in capped:
            kbps = max(1, int(rate) * (lane.cap or 0) // 100_000)
            yield f"nv set qos egress-shaper {profile} traffic-class {lane.queue} max-rate {kbps}"
        yield _bind(switch, ports, f"qos egress-shaper profile {profile}")


def _marking(plan: LanePlan, switch: Switch) -> Iterator[str]:
    lanes = _by_queue(plan, switch)
    if _DEFAULT_QUEUE not in {lane.queue for lane in lanes}:
        yield f"nv set qos congestion-control default-global traffic-class {_DEFAULT_QUEUE} ecn disable"
    for lane in lanes:
        queue = f"nv set qos congestion-control default-global traffic-class {lane.queue}"
        ecn = lane.marking
        if ecn is None:
            yield f"{queue} ecn disable"
            continue
        yield f"{queue} ecn enable"
        yield f"{queue} red disable"
        yield f"{queue} min-threshold {int(ecn.kmin)}"
        yield f"{queue} max-threshold {int(ecn.kmax)}"
        yield f"{queue} probability {max(1, round(100 * ecn.pmax))}"


def _buffers(plan: LanePlan, switch: Switch) -> Iterator[str]:
    lanes = _by_queue(plan, switch)
    lossless = [lane for lane in lanes if lane.lossless]
    tune = "nv set qos advance-buffer-config default-global"
    if lossless:
        share = _lossless_share(lanes)
        yield f"nv set qos traffic-pool default-lossless memory-percent {share}"
        yield f"nv set qos traffic-pool default-lossy memory-percent {100 - share}"
        yield f"{tune} ingress-lossless-buffer shared-alpha {_alpha(max(lane.alpha for lane in lossless))}"
        yield f"{tune} egress-lossless-buffer shared-alpha alpha_infinity"
    for lane in lanes:
        if not lane.lossless:
            yield f"{tune} egress-lossy-buffer traffic-class {lane.queue} shared-alpha {_alpha(lane.alpha)}"
            yield f"{tune} egress-lossy-buffer traffic-class {lane.queue} reserved {int(lane.reserved)}"


def _lossless_share(lanes: list[Lane]) -> int:
    """Return the lossless pool's percentage: that of lossless classes' alphas among all, never all or nothing."""
    share = sum(lane.alpha for lane in lanes if lane.lossless) / sum(lane.alpha for lane in lanes)
    return min(99, max(1, round(100 * share)))


def _alpha(alpha: float) -> str:
    """Write 2^n as NVUE does: "alpha_1_8", "alpha_4"; the largest is without limit."""
    exponent = round(math.log2(alpha))
    if exponent >= _INFINITE_ALPHA:
        return "alpha_infinity"
    return f"alpha_{2**exponent}" if exponent >= 0 else f"alpha_1_{2**-exponent}"


def _pauses(plan: LanePlan, switch: Switch) -> Iterator[str]:
    priorities = ",".join(map(str, qos_maps(plan, switch.network).lossless))
    if not priorities:
        return
    alike: dict[tuple[Rate, int], list[Port]] = {}
    for port in switch.ports:
        alike.setdefault((port.rate, math.ceil(port.cable.metres)), []).append(port)
    for (rate, metres), ports in sorted(alike.items()):
        profile = f"fourlane-{_short(rate)}-{metres}m"
        yield f"nv set qos pfc {profile} switch-priority {priorities}"
        yield f"nv set qos pfc {profile} tx enable"
        yield f"nv set qos pfc {profile} rx enable"
        yield f"nv set qos pfc {profile} cable-length {metres}"
        yield _bind(switch, ports, f"qos pfc profile {profile}")
    if plan.pfc.watchdog:
        poll = -(-int(plan.pfc.poll) // 10**9)
        polls = max(1, -(-int(plan.pfc.detection) // max(1, int(plan.pfc.poll))))
        yield f"nv set qos pfc-watchdog polling-interval {poll}"
        yield f"nv set qos pfc-watchdog robustness {polls}"
        yield _bind(switch, switch.ports, "qos pfc-watchdog state enable")


def _trimmed(plan: LanePlan) -> int:
    return min(_MOST_TRIMMED, max(_LEAST_TRIMMED, -(-int(plan.trimming.size) // 4) * 4))


def _trimming(plan: LanePlan, switch: Switch) -> Iterator[str]:
    queues = [lane.queue for lane in _by_queue(plan, switch) if lane.trim]
    if not queues:
        return
    to = plan.classes[plan.trimming.to]
    yield f"nv set system forwarding packet-trim remark dscp {to.dscp}"
    yield f"nv set system forwarding packet-trim size {_trimmed(plan)}"
    yield f"nv set system forwarding packet-trim switch-priority {to.priority}"
    for queue in queues:
        yield _bind(switch, switch.ports, f"packet-trim egress-eligibility traffic-class {queue}")
    yield "nv set system forwarding packet-trim state enabled"


def _adaptive_routing(plan: LanePlan, switch: Switch) -> Iterator[str]:
    """Yield adaptive routing on links between switches; which packets take part is their senders' choice."""
    links = [port for port in switch.ports if port.facing != "server"]
    if links and any(lane.routing == "adaptive" for lane in plan.on(switch.network).values()):
        yield "nv set router adaptive-routing state enabled"
        yield _bind(switch, links, "router adaptive-routing state enabled")
