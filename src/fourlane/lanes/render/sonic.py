"""Render a lane plan for SONiC: config_db.json tables for each kind of switch.

For a switch `hpn-leaf` three files: `hpn-leaf.config_db.json`, the tables that carry the plan out;
`hpn-leaf.ports.json`, the PORT table they count on (names, lanes and speeds; compare it with the device, do
not load it); and, where a class is routed adaptively, `hpn-leaf.adaptive-routing.not-upstream.json`, in
tables that a SONiC design document describes and upstream SONiC ignores. Buffers are in
`fourlane.lanes.render.sonic_buffers`. What is rendered is proven before it is returned
(`fourlane.lanes.render.sonic_proof`).

Choices that are not the plan's:

- Maps, schedulers and profiles bear names of their own ("FOURLANE", "fourlane_..."), so that loading
  the tables merges with none of the device's; only pools keep SONiC's names, on which orchagent counts.
- CABLE_LENGTH is 0m: with any other length buffermgrd, in the traditional buffer model, replaces every
  lossless priority group's profile by one of its own, and the plan's alpha with it.
- Schedulers' rates are bytes per second. A weighted class with a cap has the least `cir` there is, since
  a `pir` needs one and a guarantee would come on top of the weight.
- ECN marks and never drops (`wred_*_enable` false): packets that cannot be marked pass.

Source: sonic-buildimage, src/sonic-yang-models; sonic-swss, orchagent/qosorch.cpp and cfgmgr/buffermgr.cpp;
SONiC, doc/ARS/Local_ARS_HLD.md (revision 1.2).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fourlane.errors import CheckFailed
from fourlane.lanes.ports import switches
from fourlane.lanes.qos_maps import qos_maps
from fourlane.lanes.render.sonic_buffers import buffer_tables
from fourlane.lanes.render.sonic_proof import prove_config_db
from fourlane.spec.hardware import nic_models

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.lanes.plan import Ecn, Lane, LanePlan
    from fourlane.lanes.ports import Port, Switch
    from fourlane.spec.cluster import Cluster, NetworkName
    from fourlane.spec.traffic import TrafficClass
    from fourlane.units import Duration, Rate

__all__ = ["Tables", "port_name", "render_sonic", "sonic_tables"]

Entry = dict[str, str | list[str]]
Tables = dict[str, dict[str, Entry]]

MAP_NAME = "FOURLANE"
_HASH = ["SRC_IP", "DST_IP", "IP_PROTOCOL", "L4_SRC_PORT", "L4_DST_PORT"]
_COLOURS = ("green", "yellow", "red")


def render_sonic(plan: LanePlan, cluster: Cluster, *, every_switch: bool = False) -> dict[str, str]:
    """Render a plan for the SONiC switches of a cluster.

    Args:
        plan: the plan.
        cluster: where it is carried out.
        every_switch: also for switches of other operating systems.

    Returns:
        File names and their texts.

    Raises:
        CheckFailed: what was rendered does not pass its proof, as when the plan is not sound.
    """
    files: dict[str, str] = {}
    for switch in switches(cluster):
        if switch.tier.os != "sonic" and not every_switch:
            continue
        tables, ports = sonic_tables(plan, switch), port_table(switch)
        findings = prove_config_db({**ports, **tables}, chip=switch.model, plan=plan, network=switch.network)
        if findings:
            raise CheckFailed("\n".join(f"{switch.name}: {finding}" for finding in findings))
        files[f"{switch.name}.config_db.json"] = json_text(tables)
        files[f"{switch.name}.ports.json"] = json_text(ports)
        adaptive = _adaptive_tables(plan, cluster, switch)
        if adaptive:
            files[f"{switch.name}.adaptive-routing.not-upstream.json"] = json_text(adaptive)
    return files


def sonic_tables(plan: LanePlan, switch: Switch) -> Tables:
    """Return the tables of one kind of switch, without those of its ports and of adaptive routing."""
    lanes = plan.on(switch.network)
    tables: Tables = {
        "DEVICE_METADATA": {"localhost": {"buffer_model": "traditional"}},
        **_maps(plan, switch),
        "PORT_QOS_MAP": _port_maps(plan, switch),
        "SCHEDULER": _schedulers(lanes, switch),
        "WRED_PROFILE": {_profile(kind): _marking(lane.marking) for kind, lane in lanes.items() if lane.marking},
        "QUEUE": _queues(lanes, switch),
        **buffer_tables(plan, switch),
        "PFC_WD": _watchdog(plan, switch),
        "SWITCH_HASH": {"GLOBAL": {"ecmp_hash": list(_HASH)}},
        "SWITCH_TRIMMING": _trimming(plan, switch.network),
    }
    return {name: table for name, table in tables.items() if table}


def port_table(switch: Switch) -> Tables:
    """Return the PORT table that the others count on."""
    return {
        "PORT": {
            port_name(port): {
                "lanes": ",".join(str(port.lane + index) for index in range(port.lanes)),
                "speed": str(max(1, int(port.rate) // 10**6)),
                "description": f"to a {port.facing}, {port.cable}",
            }
            for port in switch.ports
        }
    }


def port_name(port: Port) -> str:
    """Return the name SONiC gives a port: "Ethernet" and the first of its lanes."""
    return f"Ethernet{port.lane}"


def json_text(tables: Tables) -> str:
    """Write tables as JSON, one line an entry."""
    parts = []
    for name, table in tables.items():
        entries = ",\n".join(f"    {json.dumps(key)}: {json.dumps(fields)}" for key, fields in table.items())
        parts.append(f"  {json.dumps(name)}: {{\n{entries}\n  }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _maps(plan: LanePlan, switch: Switch) -> Tables:
    maps = qos_maps(plan, switch.network)
    tables: Tables = {
        "DSCP_TO_TC_MAP": _map(maps.dscp_to_tc),
        "TC_TO_QUEUE_MAP": _map(maps.tc_to_queue),
        "TC_TO_PRIORITY_GROUP_MAP": _map(maps.tc_to_group),
    }
    if maps.lossless:
        tables["MAP_PFC_PRIORITY_TO_QUEUE"] = _map(maps.pfc_to_queue)
    if maps.lossless and _own_group_map(switch):
        tables["PFC_PRIORITY_TO_PRIORITY_GROUP_MAP"] = _map(maps.pfc_to_group)
    return tables


def _map(numbers: Mapping[int, int]) -> dict[str, Entry]:
    return {MAP_NAME: {str(key): str(value) for key, value in numbers.items()}}


def _own_group_map(switch: Switch) -> bool:
    """Tell whether SONiC maps PFC priorities to groups on this platform; elsewhere they are the same number."""
    return switch.model.vendor == "NVIDIA"


def _port_maps(plan: LanePlan, switch: Switch) -> dict[str, Entry]:
    maps = qos_maps(plan, switch.network)
    paused = ",".join(map(str, maps.lossless))
    fields: Entry = {"dscp_to_tc_map": MAP_NAME, "tc_to_queue_map": MAP_NAME, "tc_to_pg_map": MAP_NAME}
    if maps.lossless:
        fields["pfc_to_queue_map"] = MAP_NAME
    if maps.lossless and _own_group_map(switch):
        fields["pfc_to_pg_map"] = MAP_NAME
    fields["pfc_enable"] = paused
    fields["pfcwd_sw_enable"] = paused if plan.pfc.watchdog else ""
    return {
        **{port_name(port): dict(fields) for port in switch.ports},
        "global": {"dscp_to_tc_map": MAP_NAME},
    }


def _schedulers(lanes: Mapping[TrafficClass, Lane], switch: Switch) -> dict[str, Entry]:
    rates = sorted({port.rate for port in switch.ports})
    return {_scheduler_name(kind, lane, rate): _scheduler(lane, rate) for kind, lane in lanes.items() for rate in rates}


def _scheduler_name(kind: TrafficClass, lane: Lane, rate: Rate) -> str:
    """Name a scheduler; one with a cap is of one port rate."""
    return _profile(kind) if lane.cap is None else f"{_profile(kind)}_{str(rate).lower().removesuffix('bps')}"


def _scheduler(lane: Lane, rate: Rate) -> Entry:
    fields: Entry = {"type": lane.scheduler.upper()}
    if lane.weight is not None:
        fields["weight"] = str(lane.weight)
    if lane.cap is not None:
        most = max(1, int(rate) * lane.cap // 800)
        fields |= {"meter_type": "bytes", "cir": str(most if lane.weight is None else 1), "pir": str(most)}
    return fields


def _profile(kind: TrafficClass) -> str:
    return f"fourlane_{kind.value}"


def _marking(ecn: Ecn | None) -> Entry:
    assert ecn is not None
    fields: Entry = {"ecn": "ecn_all"}
    for colour in _COLOURS:
        fields[f"wred_{colour}_enable"] = "false"
        fields[f"{colour}_min_threshold"] = str(int(ecn.kmin))
        fields[f"{colour}_max_threshold"] = str(int(ecn.kmax))
        fields[f"{colour}_drop_probability"] = str(max(1, round(100 * ecn.pmax)))
    return fields


def _queues(lanes: Mapping[TrafficClass, Lane], switch: Switch) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    by_queue = sorted(lanes.items(), key=lambda item: item[1].queue)
    for port in switch.ports:
        for kind, lane in by_queue:
            fields: Entry = {"scheduler": _scheduler_name(kind, lane, port.rate)}
            if lane.marking is not None:
                fields["wred_profile"] = _profile(kind)
            found[f"{port_name(port)}|{lane.queue}"] = fields
    return found


def _watchdog(plan: LanePlan, switch: Switch) -> dict[str, Entry]:
    if not plan.pfc.watchdog or not plan.lossless_on(switch.network):
        return {}
    fields: Entry = {
        "action": plan.pfc.action,
        "detection_time": _milliseconds(plan.pfc.detection),
        "restoration_time": _milliseconds(plan.pfc.restoration),
    }
    return {
        "GLOBAL": {"POLL_INTERVAL": _milliseconds(plan.pfc.poll)},
        **{port_name(port): {**fields} for port in switch.ports},
    }


def _milliseconds(time: Duration) -> str:
    return str(-(-int(time) // 10**9))


def _trimming(plan: LanePlan, network: NetworkName) -> dict[str, Entry]:
    if not any(lane.trim for lane in plan.on(network).values()):
        return {}
    to = plan.classes[plan.trimming.to]
    return {
        "GLOBAL": {
            "size": str(int(plan.trimming.size)),
            "dscp_value": str(to.dscp),
            "queue_index": str(to.queue),
        }
    }


def _adaptive_tables(plan: LanePlan, cluster: Cluster, switch: Switch) -> Tables:
    """Return what the design document for adaptive routing asks for: ARS on links between switches.

    Classes routed by ECMP are exempt by their code points. The next hops of the group are the device's
    to name (ARS_NEXTHOP_GROUP_MEMBER). Packets are spread one by one only where NICs put them back in order.
    """
    lanes = plan.on(switch.network)
    links = [port for port in switch.ports if port.facing != "server"]
    if not links or not any(lane.routing == "adaptive" for lane in lanes.values()):
        return {}
    reorders = nic_models()[cluster.networks()[switch.network].nic].adaptive_routing
    mode = {"assign_mode": "per_packet"} if reorders else {"assign_mode": "per_flowlet_quality"}
    maps = qos_maps(plan, switch.network)
    hashed = [dscp for dscp, tc in maps.dscp_to_tc.items() if plan.classes[maps.class_of_tc[tc]].routing == "ecmp"]
    tables: Tables = {
        "ARS_PROFILE": {"fourlane": {"algorithm": "ewma", "ipv4_enable": "true", "ipv6_enable": "true"}},
        "ARS_INTERFACE": {port_name(port): {} for port in links},
        "ARS_NEXTHOP_GROUP": {"fourlane": {"profile_name": "fourlane", **mode}},
        "ACL_TABLE_TYPE": {
            "FOURLANE_ARS": {"MATCHES": ["DSCP"], "ACTIONS": ["ARS_ACTION"], "BIND_POINTS": ["PORT"]},
        },
        "ACL_TABLE": {
            "FOURLANE_ARS": {"type": "FOURLANE_ARS", "stage": "ingress", "ports": [port_name(p) for p in switch.ports]},
        },
        "ACL_RULE": {
            f"FOURLANE_ARS|ECMP_DSCP_{dscp}": {
                "PRIORITY": str(1000 + dscp),
                "DSCP": str(dscp),
                "DISABLE_ARS_FORWARDING": "true",
            }
            for dscp in hashed
        },
    }
    return {name: table for name, table in tables.items() if table}
