"""Render a plan for NICs: one POSIX shell script a network, which reads, compares and sets its NICs.

What the plan says of a priority is the NIC's as well: its traffic class has the priority's number, so that counters
read alike. What is not a matter of the plan (receive buffer sizes, DCQCN's constants) is left to the driver. The
script's unchanging part is `nic.sh` beside this module. Not run on a NIC: tested with tools that keep state.
"""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from fourlane.lanes.plan import DSCPS
from fourlane.lanes.qos_maps import qos_maps
from fourlane.spec.hardware import nic_models
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fourlane.lanes.plan import Lane, LanePlan
    from fourlane.spec.cluster import Cluster, Network, NetworkName
    from fourlane.spec.hardware import NicModel

__all__ = ["render_nic"]

_PRIORITIES = range(8)
_GBPS = 10**9


def render_nic(plan: LanePlan, cluster: Cluster) -> dict[str, str]:
    """Write `<network>.sh` for each network; servers are alike, so it is the same on all of them."""
    return {f"{name}.sh": _script(plan, cluster, name, network) for name, network in cluster.networks().items()}


def _script(plan: LanePlan, cluster: Cluster, name: NetworkName, network: Network) -> str:
    model = nic_models()[network.nic]
    title = (
        "#!/bin/sh\n"
        f"# The NICs on the {name} of {_line(cluster.name)}, set as the lane plan {_line(plan.name)} says.\n"
        "# Written by fourlane lanes render --target nic: change the plan, not this file.\n"
    )
    why_nothing = _why_nothing(network, model)
    if why_nothing:
        return title + _nothing_to_set(name, why_nothing)
    lanes = plan.on(name)
    return (
        f"{title}{_notes(lanes, network, model)}\nset -u\n\n"
        f"{_settings(plan, name, network, model)}\n{_describe(lanes, network, model)}\n{_body()}"
    )


@cache
def _body() -> str:
    return Path(__file__).with_name("nic.sh").read_text(encoding="utf-8")


def _why_nothing(network: Network, model: NicModel) -> str:
    """Return why nothing of a plan can be told to these NICs; empty if something can."""
    if network.fabric == "infiniband":
        return (
            "InfiniBand service levels become virtual lanes by the subnet manager's tables (opensm: qos_sl2vl, "
            "qos_vlarb_high, qos_vlarb_low), not by the NIC's; senders choose the service level, see --target env"
        )
    if network.fabric == "erdma":
        return (
            "elastic RDMA has neither priorities nor pauses: the cloud's own network and congestion control carry it; "
            "sockets are queued by the host, see --target host"
        )
    if not model.dcb:
        return (
            f"a NIC of the model {network.nic} is not taken to know priorities, weights or pauses (data centre "
            "bridging); the host keeps its lanes by queueing disciplines, see --target host"
        )
    return ""


def _nothing_to_set(name: NetworkName, why: str) -> str:
    return f"""
why={shlex.quote(f"{name}: nothing to set: {why}.")}
case ${{1-}} in
    --check | --dry-run | --apply) printf '%s\\n' "$why" ;;
    *)
        printf 'usage: %s --check | --dry-run | --apply\\n%s\\n' "$0" "$why"
        exit 2
        ;;
esac
"""


def _rdma(network: Network) -> bool:
    return network.fabric == "roce" and bool(network.devices)


def _adaptive(lanes: Mapping[TrafficClass, Lane], network: Network, model: NicModel) -> bool:
    return _rdma(network) and model.adaptive_routing and any(lane.routing == "adaptive" for lane in lanes.values())


def _fallback(lanes: Mapping[TrafficClass, Lane]) -> TrafficClass:
    """Return the class of what no class on this network claims: the default one, else that of the least weight."""
    if TrafficClass.DEFAULT in lanes:
        return TrafficClass.DEFAULT
    return min(lanes, key=lambda kind: lanes[kind].weight or 101, default=TrafficClass.DEFAULT)


def _marked(lane: Lane) -> bool:
    return lane.marking is not None and not lane.over_tcp


def _congestion_control(lanes: Mapping[TrafficClass, Lane], model: NicModel) -> list[int]:
    """Return, for each priority, whether the NIC reacts to ECN marks; all alike where it cannot tell them apart."""
    marked = {lane.priority for lane in lanes.values() if _marked(lane)}
    if not model.ecn_per_priority:
        return [int(bool(marked))] * len(_PRIORITIES)
    return [int(priority in marked) for priority in _PRIORITIES]


def _settings(plan: LanePlan, name: NetworkName, network: Network, model: NicModel) -> str:
    lanes = plan.on(name)
    by_priority = {lane.priority: lane for lane in lanes.values()}
    rest = plan.classes[_fallback(lanes)]
    priorities = qos_maps(plan, name).dscp_to_tc
    devices = network.devices or ("",) * len(network.interfaces)
    notifications = lanes.get(TrafficClass.CONTROL, rest)
    values = {
        "NETWORK": name,
        "PORTS": _words(f"{port}={device}" for port, device in zip(network.interfaces, devices, strict=True)),
        "PRIORITY_OF_DSCP": _words(priorities.get(dscp, rest.priority) for dscp in DSCPS),
        "TC_OF_PRIORITY": _words(p if p in by_priority else rest.priority for p in _PRIORITIES),
        "TSA_OF_TC": _words(_schedulers(by_priority)),
        "WEIGHT_OF_TC": _words(_weight(by_priority.get(p)) for p in _PRIORITIES),
        "GBPS_OF_TC": _words(_limit(by_priority.get(p), network) for p in _PRIORITIES),
        "PFC_OF_PRIORITY": _words(int(p in by_priority and by_priority[p].lossless) for p in _PRIORITIES),
        "CABLE_METRES": str(max(1, -(-int(network.leaf.down_cable) // 1000))),
        "RDMA": str(int(_rdma(network))),
        "CM_TOS": str(rest.tos),
        "CC_OF_PRIORITY": _words(_congestion_control(lanes, model)),
        "CNP_DSCP": str(notifications.dscp),
        "CNP_PRIORITY": str(notifications.priority),
        "ADAPTIVE_ROUTING": str(int(_adaptive(lanes, network, model))),
    }
    return "".join(f"{key}='{value}'\n" for key, value in values.items())


def _line(text: str) -> str:
    """Keep a name within its comment."""
    return " ".join(text.split())


def _words(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def _schedulers(by_priority: Mapping[int, Lane]) -> list[str]:
    """Return each traffic class's scheduler; one that no priority uses is harmless as the others are.

    Weights of all that are "ets" must sum to 100, so that without weighted classes there may be none.
    """
    unused = "ets" if any(lane.weight for lane in by_priority.values()) else "strict"
    return [
        unused if p not in by_priority else "strict" if by_priority[p].scheduler == "strict" else "ets"
        for p in _PRIORITIES
    ]


def _weight(lane: Lane | None) -> int:
    return (lane.weight or 0) if lane is not None else 0


def _limit(lane: Lane | None, network: Network) -> int:
    """Return a cap in whole Gbit/s, rounded up, since mlnx_qos takes no fractions; 0: none."""
    if lane is None or lane.cap is None or lane.cap == 100:
        return 0
    return -(-int(network.rate) * lane.cap // (100 * _GBPS))


def _notes(lanes: Mapping[TrafficClass, Lane], network: Network, model: NicModel) -> str:
    """Write what a reader of the script must know and could not guess."""
    notes = [
        f"NIC: {network.nic}, {network.rate}. Not run on one by its authors: start with --dry-run on one server.",
        "Weights share what strict classes leave, and only while classes wait. A cap is rounded up to whole Gbit/s.",
    ]
    marked = [kind.value for kind, lane in lanes.items() if _marked(lane)]
    unmarked = [kind.value for kind, lane in lanes.items() if not _marked(lane)]
    if _rdma(network) and not model.ecn_per_priority:
        notes.append(
            "Congestion control of this NIC is one switch for all priorities (ConnectX-7 firmware notes, known issue "
            f"4394475): it is {_onoff(bool(marked))} for all. "
            + (
                f"What keeps it from {', '.join(unmarked)} is elsewhere: senders leave the ECN bits of the ToS byte at "
                "0 (--target env), and switches mark nothing in those queues."
                if marked
                else "No class of this network is marked."
            )
        )
    if _adaptive(lanes, network, model):
        notes.append(
            "Adaptive routing is switched for the whole NIC, not for a class: which queues are sprayed, switches say."
        )
    if _rdma(network):
        notes.append(
            "/sys/class/infiniband/<device>/tc/1/traffic_class is left empty on purpose. A ToS byte there replaces "
            "those of all queue pairs set up through the kernel (NCCL, Mooncake, UCX over verbs) but not of those set "
            "up past it (NVSHMEM IBGDA, NCCL GIN), so that classes no longer tell anything apart (NVIDIA/nccl issue "
            "2383, Mooncake issue 1699). Classes are chosen by environment variables instead: --target env. --check "
            "reports it when it is set."
        )
    return "".join(f"#\n{_comment(note)}" for note in notes)


def _comment(text: str) -> str:
    """Wrap text into comment lines."""
    return fill(text, width=116, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n"


def _describe(lanes: Mapping[TrafficClass, Lane], network: Network, model: NicModel) -> str:
    cc = _congestion_control(lanes, model)
    rows = [
        f"  priority {lane.priority}  {kind.value:<10}  DSCP {lane.dscp:>2}  {_scheduling(lane, network):<26}  "
        f"{'PFC  ' if lane.lossless else 'lossy'}  congestion control {_onoff(bool(cc[lane.priority]))}"
        for kind, lane in sorted(lanes.items(), key=lambda item: -item[1].priority)
    ]
    return f"describe() {{\n    cat <<'END'\nOn {', '.join(network.interfaces)}:\n" + "\n".join(rows) + "\nEND\n}\n"


def _scheduling(lane: Lane, network: Network) -> str:
    share = "strict" if lane.scheduler == "strict" else f"{lane.weight} %"
    limit = _limit(lane, network)
    return f"{share}, at most {limit} Gbit/s" if limit else share


def _onoff(value: bool) -> str:  # noqa: FBT001 (nothing else could be meant)
    return "on" if value else "off"
