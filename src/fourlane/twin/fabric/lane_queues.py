"""Lanes as a simulator needs them: queues of every port, buffers of every switch, and how each class uses them.

From a lane plan (`lanes_of_plan`), or plain ones for simple scenarios (`plain_lanes`). What a plan says, the
simulated switches do: code points lead to classes and queues by the very maps that are written into real ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fourlane.errors import SpecError
from fourlane.lanes.default_plan import spelled_ranges
from fourlane.lanes.headroom import port_headroom
from fourlane.lanes.plan import DSCPS, Ecn
from fourlane.lanes.qos_maps import qos_maps
from fourlane.spec.hardware import switch_models
from fourlane.spec.traffic import TrafficClass
from fourlane.twin.fabric.compiled_rules import MOST_QUEUES
from fourlane.twin.fabric.settings import ClassSettings, QueueSettings
from fourlane.twin.fabric.theory import pfc_headroom
from fourlane.twin.fabric.topology import NVLINK
from fourlane.units import Duration, Length, Rate, Size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from fourlane.lanes.plan import Lane, LanePlan
    from fourlane.spec.cluster import NetworkName
    from fourlane.twin.fabric.settings import Packets, Pauses, Settings
    from fourlane.twin.fabric.topology import Topology

    Array = npt.NDArray[Any]

__all__ = ["DATA", "Lanes", "Uses", "lanes_of_plan", "plain_lanes"]

DATA, ACKS = "data", "acks"
"""Queues of plain lanes: what all classes share, and acknowledgements, which go first."""
REPEAT_AFTER = Duration.parse("1ms")
"""Where packets can get lost, and nothing else is said."""
CNP_DSCP = 48
PFC_FRAME = 64
MOST_ALPHA = 128.0
_ROUTINGS = ("ecmp", "flowlet", "spray-random", "spray", "adaptive", "static")
_TRANSPORTS = ("go-back-n", "out-of-order", "reorder-buffer")
_CONGESTION = ("none", "dcqcn", "clear-to-send")
_PLAIN_CLASS = ClassSettings(
    routing="ecmp",
    transport="out-of-order",
    congestion="none",
    source_port="per-connection",
    window=Size(0),
    ack_every=1,
    grants=8,
    trim=False,
)
_PLAIN_QUEUE = QueueSettings(
    scheduler="dwrr", weight=100, alpha=1.0, reserved=Size(0), lossless=True, ecn="off", service="round-robin"
)
_ACK_QUEUE = QueueSettings(
    scheduler="strict", weight=100, alpha=8.0, reserved=Size(8192), lossless=False, ecn="off", service="round-robin"
)

Uses = frozenset[tuple[str, str]]
"""Pairs of a class and a network that its flows use."""


@dataclass(frozen=True)
class Lanes:
    """Queues in the order of their index, classes in that of theirs, all fields settled but `rto` and `ecn`.

    `plan` is where they come from, if from a plan.
    """

    queues: dict[str, QueueSettings]
    classes: dict[str, ClassSettings]
    plan: LanePlan | None = None
    trim_queue: str = ""

    def changed(self, settings: Settings) -> Lanes:
        """Return the lanes with a scenario's own settings over them, checked.

        Raises:
            SpecError: with everything that is unknown, out of range or in contradiction.
        """
        faults = [
            *_unknown("queues", settings.queues, self.queues),
            *_unknown("classes", settings.classes, self.classes),
        ]
        queues = {name: _over(queue, settings.queues.get(name)) for name, queue in self.queues.items()}
        classes = {
            name: _over(_over(each, settings.every), settings.classes.get(name)) for name, each in self.classes.items()
        }
        for name, queue in queues.items():
            faults += [f"queues.{name}.{fault}" for fault in _queue_faults(queue)]
        for name, each in classes.items():
            faults += [f"classes.{name}.{fault}" for fault in _class_faults(each, queues)]
        if faults:
            raise SpecError(*faults)
        return Lanes(queues, classes, self.plan, self.trim_queue)

    def queue_arrays(self, largest: int) -> dict[str, Array]:
        """Return the arrays of queues; `largest` is the longest packet, which each round must let through."""
        rows = list(self.queues.values())
        weights = [queue.weight or 100 for queue in rows if queue.scheduler == "dwrr"]
        unit = -(-largest // min(weights, default=1))
        marks = [queue.ecn if isinstance(queue.ecn, Ecn) else None for queue in rows]
        found = {
            "weight": [0 if queue.scheduler == "strict" else (queue.weight or 100) * unit for queue in rows],
            "cap_q16": [6_553_600 // queue.cap if queue.cap and queue.cap < 100 else 0 for queue in rows],
            "alpha_q16": [round((queue.alpha or 0.0) * 65536) for queue in rows],
            "reserved": [int(queue.reserved or 0) for queue in rows],
            "lossless": [bool(queue.lossless) for queue in rows],
            "kmin": [-1 if mark is None else int(mark.kmin) for mark in marks],
            "kmax": [0 if mark is None else int(mark.kmax) for mark in marks],
            "pmax_q32": [0 if mark is None else round(mark.pmax * 2**32) for mark in marks],
            "service": [queue.service == "in-order" for queue in rows],
        }
        return {f"queue_{name}": np.array(values) for name, values in found.items()}

    def class_arrays(self, *, lossy_network: bool, bdp: int) -> dict[str, Array]:
        """Return the arrays of classes.

        Args:
            lossy_network: packets may get lost whatever their queue, by failures or the watchdog.
            bdp: bandwidth-delay product of the longest path.
        """
        place = {name: number for number, name in enumerate(self.queues)}
        rows: list[dict[str, int]] = []
        for each in self.classes.values():
            queue = self.queues[each.queue or ""]
            lossy = lossy_network or not queue.lossless
            rto = each.rto if each.rto is not None else (REPEAT_AFTER if lossy else 0)
            window = each.window if each.window_bdp is None else math.ceil(each.window_bdp * bdp)
            routing = "ecmp" if each.routing == "qp-hash" else each.routing
            rows.append(
                {
                    "queue": place[each.queue or ""],
                    "ack_queue": place[each.ack_queue or each.queue or ""],
                    "cnp_queue": place[each.cnp_queue or each.ack_queue or each.queue or ""],
                    "routing": _ROUTINGS.index(routing or "ecmp"),
                    "transport": _TRANSPORTS.index(each.transport or "out-of-order"),
                    "cc": _CONGESTION.index(each.congestion or "none"),
                    "window": int(window or 0),
                    "rto": int(rto) if (each.ack_every or 1) == 1 or each.transport == "go-back-n" else 0,
                    "ack_every": each.ack_every or 1,
                    "trim": int(bool(each.trim)),
                    "ecn": int(isinstance(queue.ecn, Ecn) if each.ecn is None else each.ecn),
                    "cts_slots": each.grants or 1,
                }
            )
        return {f"class_{name}": np.array([row[name] for row in rows]) for name in rows[0]}

    def buffer_arrays(self, topology: Topology, packets: Packets, pauses: Pauses) -> dict[str, Array]:
        """Return the headroom of every port and what each switch is left with to share.

        Raises:
            SpecError: no figure of headroom is known for a port, or nothing is left to share.
        """
        room, taken = self._headroom(topology, packets, pauses)
        at_switch = topology.node_kind[topology.port_node] == 1
        per_port = np.where(at_switch, taken * self._counts(topology, lossless=True), 0)
        per_port += np.where(at_switch, self._counts(topology, lossless=False), 0)
        set_aside = np.bincount(topology.port_node, weights=per_port, minlength=topology.nodes).astype(np.int64)
        shared = np.where(topology.node_kind == 1, topology.node_buffer - set_aside, 0)
        short = np.flatnonzero((topology.node_kind == 1) & (shared <= 0))
        if len(short):
            node = int(short[0])
            raise SpecError(
                f"{topology.name}: {topology.node_name(node)}: headroom and reservations of its "
                f"{int((topology.port_node == node).sum())} ports take {Size(int(set_aside[node]))} of a buffer of "
                f"{Size(int(topology.node_buffer[node]))}, and leave nothing to share; make fewer classes lossless, "
                "or lower reserved or pauses.headroom"
            )
        return {"port_headroom": np.where(at_switch, room, 0), "node_shared": shared}

    def _counts(self, topology: Topology, *, lossless: bool) -> Array:
        """Return for each port how many lossless queues it has, or the bytes reserved for all its queues."""
        values = []
        for network in topology.networks:
            queues = [queue for name, queue in self.queues.items() if self._on(name, network)]
            values.append(sum(bool(q.lossless) if lossless else int(q.reserved or 0) for q in queues))
        return np.array(values, np.int64)[topology.port_network]

    def _on(self, queue: str, network: str) -> bool:
        if self.plan is None or network == NVLINK:
            return True
        return self.plan.classes[TrafficClass(queue)].on(plan_network(network))

    def _headroom(self, topology: Topology, packets: Packets, pauses: Pauses) -> tuple[Array, Array]:
        """Return for each port what may still arrive after a pause, and what that takes of the buffer."""
        given = pauses.headroom if pauses.headroom is not None or self.plan is None else self.plan.pfc.headroom
        models = topology.node_model[topology.port_node]
        lossless = self._counts(topology, lossless=True) > 0
        columns = [models, topology.port_rate, topology.port_length, topology.port_prop, lossless]
        kinds, place = np.unique(np.stack(columns).astype(np.int64), axis=1, return_inverse=True)
        room = np.zeros((2, kinds.shape[1]), np.int64)
        for number, (model, rate, length, prop, pausing) in enumerate(kinds.T.tolist()):
            if pausing:
                name = topology.models[model] if model >= 0 else ""
                own = _of_model(name, rate, length, given) if self.plan is not None else None
                room[:, number] = own or (given or _computed(rate, prop, packets, pauses),) * 2
        return room[0][place.reshape(-1)], room[1][place.reshape(-1)]


def _of_model(name: str, rate: int, length: int, given: Size | None) -> tuple[int, int] | None:
    """Return a known switch's headroom and what it takes of the buffer; None if the model is not in the catalog."""
    model = switch_models().get(name)
    if model is None:
        return None
    found = port_headroom(model, Rate(rate), Length(length), given=given)
    if found is None:
        raise SpecError(
            f"plan: pfc.headroom: no figure is published for {name} at {Rate(rate)}; give one, or make classes lossy"
        )
    return int(found.xoff), int(found.size)


def _computed(rate: int, prop: int, packets: Packets, pauses: Pauses) -> int:
    """Return what no packet can exceed: the bytes on their way when a pause is asked for, each packet whole."""
    wire = int(packets.payload + packets.header)
    packet_ps, frame_ps = (size * 8 * 10**12 // rate for size in (wire, PFC_FRAME))
    return pfc_headroom(
        packet_ps, wire, prop, response_ps=int(pauses.response), frame_ps=MOST_QUEUES * frame_ps, reverse_ps=packet_ps
    )


def plan_network(network: str) -> NetworkName:
    """Return which network of a plan one of a topology stands for: planes ("hpn.0") belong together."""
    return "dcn" if network.partition(".")[0] == "dcn" else "hpn"


def plain_lanes(kinds: Iterable[str], *, own: bool = False) -> Lanes:
    """Return lanes for simple scenarios: lossless, ECN off, one queue for all classes or one for each.

    Acknowledgements have a strict queue of their own.

    Raises:
        SpecError: more classes than a port has queues.
    """
    names = list(kinds)
    if own and len(names) >= MOST_QUEUES:
        raise SpecError(f"lanes: expected at most {MOST_QUEUES - 1} classes with a queue each, got {len(names)}")
    queues = dict.fromkeys(names, _PLAIN_QUEUE) if own else {DATA: _PLAIN_QUEUE}
    classes = {name: _over(_PLAIN_CLASS, ClassSettings(queue=name if own else DATA, ack_queue=ACKS)) for name in names}
    return Lanes({**queues, ACKS: _ACK_QUEUE}, classes, trim_queue=ACKS)


def lanes_of_plan(plan: LanePlan, uses: Uses, dscps: Mapping[str, int]) -> Lanes:
    """Return the lanes of a plan for the classes in use.

    Acknowledgements travel in their class's queue, as RoCE's do; congestion notifications carry DSCP 48. Classes
    whose queue marks are controlled by DCQCN, the others by nothing.

    Args:
        plan: the plan.
        uses: classes of the flows, and networks they use.
        dscps: what senders of a class write, where it is not the lane's own.

    Raises:
        SpecError: code points that lead nowhere, classes that the plan has not or has on another network only.
    """
    networks = sorted({network for _, network in uses if network != NVLINK})
    faults = [fault for network in networks for fault in _unmapped(plan, plan_network(network))]
    kinds = dict.fromkeys(kind for kind, _ in sorted(uses))
    ordered = sorted(plan.classes.items(), key=lambda item: item[1].queue)
    if len(ordered) > MOST_QUEUES:
        faults.append(f"plan: classes: expected at most {MOST_QUEUES}, a queue each, got {len(ordered)}")
    known = {kind.value: lane for kind, lane in plan.classes.items()}
    classes: dict[str, ClassSettings] = {}
    for kind in kinds:
        if kind not in known:
            faults.append(f"plan: classes.{kind}: flows are of this class, but the plan has only {', '.join(known)}")
            continue
        on = [network for other, network in sorted(uses) if other == kind and network != NVLINK]
        astray = sorted({plan_network(network) for network in on if not known[kind].on(plan_network(network))})
        faults += [
            f"plan: classes.{kind}.network: flows of this class use {network}, but its lane is on "
            f"{known[kind].network} only"
            for network in astray
        ]
        try:
            classes[kind] = _planned(plan, known[kind], on, dscps.get(kind))
        except SpecError as error:
            faults += [f"classes.{kind}.{fault}" for fault in error.faults]
    if faults:
        raise SpecError(*dict.fromkeys(faults))
    queues = {kind.value: _queue_of(lane) for kind, lane in ordered}
    return Lanes(queues, classes, plan, plan.trimming.to.value)


def _unmapped(plan: LanePlan, network: NetworkName) -> list[str]:
    missing = spelled_ranges(set(DSCPS) - set(qos_maps(plan, network).dscp_to_tc))
    if not missing:
        return []
    missed = f"no class takes DSCP {', '.join(missing)} on the {network}"
    return [f'plan: classes.default.accept: {missed}; add it to an accept list of a class on "both" networks']


def _planned(plan: LanePlan, lane: Lane, networks: Sequence[str], dscp: int | None) -> ClassSettings:
    """Return how the class of a lane is sent; its queue is where switches put the code point that senders write.

    Raises:
        SpecError: that code point leads nowhere.
    """
    maps = qos_maps(plan, plan_network(networks[0]) if networks else "hpn")
    written = lane.dscp if dscp is None else dscp
    if written not in maps.dscp_to_tc:
        raise SpecError(f"dscp: {written} leads to no class of the plan; map it by an accept list")
    queue = maps.class_of_tc[maps.dscp_to_tc[written]].value
    notices = maps.dscp_to_tc.get(CNP_DSCP)
    return _over(
        _PLAIN_CLASS,
        ClassSettings(
            queue=queue,
            ack_queue=queue,
            cnp_queue=queue if notices is None else maps.class_of_tc[notices].value,
            routing=lane.routing,
            congestion="dcqcn" if lane.marking else "none",
            trim=lane.trim,
            ecn=bool(lane.marking) if lane.ect is None else lane.ect,
            dscp=written,
        ),
    )


def _queue_of(lane: Lane) -> QueueSettings:
    return QueueSettings(
        scheduler=lane.scheduler,
        weight=lane.weight,
        cap=lane.cap,
        alpha=lane.alpha,
        reserved=lane.reserved,
        lossless=lane.lossless,
        ecn=lane.ecn,
        service="round-robin",
    )


def _over(base: Any, other: Any) -> Any:
    """Return settings with all that another says over them; a window replaces the other kind of window."""
    if other is None:
        return base
    said = {name: value for name, value in msgspec.structs.asdict(other).items() if value is not None}
    if "window" in said and "window_bdp" not in said:
        said["window_bdp"] = None
    return msgspec.structs.replace(base, **said)


def _unknown(place: str, given: Iterable[str], known: Iterable[str]) -> list[str]:
    names = list(known)
    return [f"{place}.{name}: unknown; known: {', '.join(names)}" for name in given if name not in names]


def _queue_faults(queue: QueueSettings) -> list[str]:
    faults = []
    for name, value, most in (("weight", queue.weight, 100), ("cap", queue.cap, 100)):
        if value is not None and not 1 <= value <= most:
            faults.append(f"{name}: expected a whole number from 1 to {most}, got {value}")
    if queue.scheduler == "dwrr" and queue.weight is None:
        faults.append('weight: expected one with scheduler = "dwrr", but it is missing')
    if queue.alpha is None or not 0 < queue.alpha <= MOST_ALPHA:
        faults.append(f"alpha: expected above 0 and up to {MOST_ALPHA:g}, got {queue.alpha}")
    if isinstance(queue.ecn, Ecn):
        if queue.ecn.kmax < queue.ecn.kmin:
            faults.append(f"ecn.kmax: expected at least kmin = {queue.ecn.kmin}, got {queue.ecn.kmax}")
        if not 0 < queue.ecn.pmax <= 1:
            faults.append(f"ecn.pmax: expected a probability above 0 and up to 1, got {queue.ecn.pmax:g}")
    return faults


def _class_faults(each: ClassSettings, queues: Mapping[str, QueueSettings]) -> list[str]:
    faults = []
    for field in ("queue", "ack_queue", "cnp_queue"):
        name = getattr(each, field)
        if name is not None and name not in queues:
            faults.append(f'{field}: expected one of the queues {", ".join(queues)}, got "{name}"')
    for field, most in (("ack_every", 1 << 20), ("grants", 1 << 20)):
        value = getattr(each, field)
        if value is not None and not 1 <= value <= most:
            faults.append(f"{field}: expected a whole number from 1 to {most}, got {value}")
    if each.window_bdp is not None and not 0 < each.window_bdp <= 1000:
        faults.append(f"window_bdp: expected above 0 and up to 1000, got {each.window_bdp:g}")
    selective = each.transport != "go-back-n"
    if (each.ack_every or 1) > 1 and each.rto and selective:
        faults.append('ack_every: expected 1 with an rto, or transport = "go-back-n": which packets to repeat is known')
    return faults
