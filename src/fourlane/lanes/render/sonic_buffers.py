"""Render the buffers of a lane plan for SONiC: pools, profiles, and which of them each group and queue has.

Two views of the same memory, as SONiC has it. On the way in, one pool: all that is neither headroom nor
reserved; a lossless class has a priority group of its own with its headroom, reservation and alpha,
lossy classes share group 0, which is not limited further. On the way out, a lossy class's queue is
limited by its alpha and drops or trims beyond; a lossless class's queue is limited by nothing, for what has
been let in must get out. Headroom is written out, so the tables from which the dynamic model would work it
out (LOSSLESS_TRAFFIC_PATTERN, DEFAULT_LOSSLESS_BUFFER_PARAMETER) are left alone.

Source: sonic-buildimage, device/mellanox/x86_64-nvidia_sn5600-r0 and device/arista/x86_64-arista_7060x6_64pe
(which pools there are, and what binds to them); SONiC, doc/qos/dynamically-headroom-calculation.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fourlane.errors import CheckFailed
from fourlane.lanes.buffers import headroom_of, switch_budget
from fourlane.lanes.plan import LOSSY_GROUP

if TYPE_CHECKING:
    from fourlane.lanes.plan import Lane, LanePlan
    from fourlane.lanes.ports import Port, Switch
    from fourlane.spec.traffic import TrafficClass

__all__ = ["EGRESS_LOSSLESS", "EGRESS_LOSSY", "INGRESS", "buffer_tables"]

Entry = dict[str, str | list[str]]

INGRESS = "ingress_lossless_pool"
"""The pool of all that comes in; orchagent and counters know it by this name."""
EGRESS_LOSSLESS = "egress_lossless_pool"
EGRESS_LOSSY = "egress_lossy_pool"
LOSSY_GROUP_PROFILE = "fourlane_lossy_pg"
PORT_IN, PORT_OUT_LOSSLESS, PORT_OUT_LOSSY = "fourlane_port_in", "fourlane_port_out_lossless", "fourlane_port_out_lossy"


def buffer_tables(plan: LanePlan, switch: Switch) -> dict[str, dict[str, Entry]]:
    """Return every table that says something about buffers, cables included.

    Raises:
        CheckFailed: a lossless class needs headroom on a port of which no figure is known.
    """
    ports = {f"Ethernet{port.lane}": port for port in switch.ports}
    lossless = plan.lossless_on(switch.network)
    out = [*([PORT_OUT_LOSSLESS] if lossless else []), PORT_OUT_LOSSY]
    return {
        "BUFFER_POOL": _pools(plan, switch),
        "BUFFER_PROFILE": _profiles(plan, switch),
        "BUFFER_PG": {
            f"{name}|{group}": {"profile": profile}
            for name, port in ports.items()
            for group, profile in sorted(_groups(plan, switch, port).items())
        },
        "BUFFER_QUEUE": {
            f"{name}|{lane.queue}": {"profile": _queue_profile(kind)}
            for name in ports
            for kind, lane in sorted(plan.on(switch.network).items(), key=lambda item: item[1].queue)
        },
        "BUFFER_PORT_INGRESS_PROFILE_LIST": {name: {"profile_list": PORT_IN} for name in ports},
        "BUFFER_PORT_EGRESS_PROFILE_LIST": {name: {"profile_list": ",".join(out)} for name in ports},
        "CABLE_LENGTH": {"FOURLANE": dict.fromkeys(ports, "0m")},
    }


def _pools(plan: LanePlan, switch: Switch) -> dict[str, Entry]:
    budget = switch_budget(plan, switch)
    shared = str(budget.shared)
    pools: dict[str, Entry] = {INGRESS: {"type": "ingress", "mode": "dynamic", "size": shared}}
    if budget.xoff_pool:
        pools[INGRESS]["xoff"] = str(budget.xoff_pool)
    if plan.lossless_on(switch.network):
        pools[EGRESS_LOSSLESS] = {"type": "egress", "mode": "static", "size": str(int(budget.buffer))}
    pools[EGRESS_LOSSY] = {"type": "egress", "mode": "dynamic", "size": shared}
    return pools


def _profiles(plan: LanePlan, switch: Switch) -> dict[str, Entry]:
    most = str(switch.model.alpha_exponents[1])
    everything = str(int(switch.model.buffer))
    profiles: dict[str, Entry] = {
        PORT_IN: {"pool": INGRESS, "size": "0", "dynamic_th": most},
        PORT_OUT_LOSSY: {"pool": EGRESS_LOSSY, "size": "0", "dynamic_th": most},
        LOSSY_GROUP_PROFILE: {"pool": INGRESS, "size": "0", "dynamic_th": most},
    }
    if plan.lossless_on(switch.network):
        profiles[PORT_OUT_LOSSLESS] = {"pool": EGRESS_LOSSLESS, "size": "0", "static_th": everything}
    for kind, lane in plan.on(switch.network).items():
        if lane.lossless:
            for port in switch.ports:
                profiles[_group_profile(kind, port)] = _lossless_group(plan, switch, port, lane)
            profiles[_queue_profile(kind)] = {"pool": EGRESS_LOSSLESS, "size": "0", "static_th": everything}
        else:
            profiles[_queue_profile(kind)] = _lossy_queue(lane)
    return profiles


def _lossless_group(plan: LanePlan, switch: Switch, port: Port, lane: Lane) -> Entry:
    room = headroom_of(plan, switch, port)
    if room is None:
        raise CheckFailed(
            f"{switch.name}: no headroom is published for {port.rate} ports of {switch.tier.switch}, and lossless "
            'classes run there; set pfc.headroom = "..." to your vendor\'s figure, or lossless = false'
        )
    own = room.size - room.xoff if plan.pfc.shared_headroom else room.size
    return {
        "pool": INGRESS,
        "size": str(own + lane.reserved),
        "xon": str(int(room.xon)),
        "xoff": str(int(room.xoff)),
        "dynamic_th": str(_exponent(lane)),
    }


def _lossy_queue(lane: Lane) -> Entry:
    fields: Entry = {"pool": EGRESS_LOSSY, "size": str(int(lane.reserved)), "dynamic_th": str(_exponent(lane))}
    if lane.trim:
        fields["packet_discard_action"] = "trim"
    return fields


def _groups(plan: LanePlan, switch: Switch, port: Port) -> dict[int, str]:
    lanes = plan.on(switch.network)
    groups = {LOSSY_GROUP: LOSSY_GROUP_PROFILE} if any(not lane.lossless for lane in lanes.values()) else {}
    return groups | {lane.group: _group_profile(kind, port) for kind, lane in lanes.items() if lane.lossless}


def _group_profile(kind: TrafficClass, port: Port) -> str:
    rate = str(port.rate).lower().removesuffix("bps")
    return f"fourlane_{kind.value}_pg_{rate}_{port.cable}"


def _queue_profile(kind: TrafficClass) -> str:
    return f"fourlane_{kind.value}_queue"


def _exponent(lane: Lane) -> int:
    return round(math.log2(lane.alpha))
