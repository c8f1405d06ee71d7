"""A scenario: a topology, what flows over it, in which lanes, with which failures - and from it flat arrays.

    net = leaf_spine(leaves=16, hosts_per_leaf=8, spines=8)
    result = Scenario(net, permutation(net, "2MB"), routing="adaptive").run()

Without a lane plan all classes share one lossless queue, packets are placed out of order and acknowledged one by
one. Everything is checked before anything runs.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fourlane.errors import SpecError
from fourlane.spec.reading import read_struct
from fourlane.twin.fabric.compiled import ARRAYS, NEVER, CompiledScenario
from fourlane.twin.fabric.failures import epochs_of, refuse_unroutable
from fourlane.twin.fabric.flows import Flows, concatenated
from fourlane.twin.fabric.hashing import FIXED_SOURCE_PORT, mix32, murmur3, tuple_hash, udp_source_port
from fourlane.twin.fabric.lane_queues import Lanes, Uses, lanes_of_plan, plain_lanes
from fourlane.twin.fabric.settings import ClassSettings, Settings, settings_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from fourlane.lanes.plan import LanePlan
    from fourlane.twin.fabric.failures import Epochs
    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.simulator import Progress
    from fourlane.twin.fabric.topology import Topology

    Array = npt.NDArray[Any]

__all__ = ["Scenario"]

_QP_MASK = 0xFFFFFF
_TEN = 10 << 24
"""Hosts have addresses in 10.0.0.0/8."""
_EVENTS_A_PACKET = 400
"""More than a packet, its acknowledgement and what they wait for can cause on eight hops, many times over."""


@dataclass(frozen=True, eq=False, init=False)
class Scenario:
    """What is to be simulated.

    Args:
        topology: where.
        flows: what is sent; several workloads run side by side.
        plan: the lanes; None: plain ones.
        settings: any field of `Settings` (classes, queues, failures, seed, ...), and any of `ClassSettings`
            (routing, transport, congestion, window, ...), which then holds for every class. As text with units,
            or as values.

    Raises:
        SpecError: with every setting that is unknown or no value.
    """

    topology: Topology
    flows: Flows
    plan: LanePlan | None
    settings: Settings = field(default_factory=Settings)

    def __init__(
        self, topology: Topology, flows: Flows | Sequence[Flows], *, plan: LanePlan | None = None, **settings: Any
    ) -> None:
        parts = [flows] if isinstance(flows, Flows) else list(flows)
        if not parts:
            raise SpecError("flows: expected at least one workload, got none")
        object.__setattr__(self, "topology", topology)
        object.__setattr__(self, "flows", concatenated(parts))
        object.__setattr__(self, "plan", plan)
        object.__setattr__(self, "settings", _read(settings))

    def run(
        self, progress: Callable[[Progress], object] | None = None, *, engine: str = "native", partial: bool = False
    ) -> Results:
        """Simulate it; see `fourlane.twin.fabric.simulator.Simulator`.

        Raises:
            SpecError: it makes no sense.
            SimulationStuck: nothing can happen any more, and flows are unfinished.
            LimitReached: a limit came first.
        """
        from fourlane.twin.fabric.simulator import Simulator

        return Simulator(self.compile(), engine=engine).run(progress, partial=partial)

    def compile(self) -> CompiledScenario:
        """Return it as flat arrays.

        Raises:
            SpecError: naming what makes no sense.
        """
        topology, flows, settings = self.topology, self.flows, self.settings
        flows.check()
        _check_ends(topology, flows)
        lanes = self._lanes()
        epochs = epochs_of(topology, settings.failures)
        refuse_unroutable(topology, flows, epochs, settings.failures)
        packets = settings.packets
        trimmed = self._trimmed()
        largest = max(int(packets.payload + packets.header), int(packets.ack), trimmed)
        given: dict[str, Any] = {
            **{name: getattr(topology, name) for name in _OF_TOPOLOGY},
            **lanes.buffer_arrays(topology, packets, settings.pauses),
            **lanes.queue_arrays(largest),
            **lanes.class_arrays(lossy_network=self._may_lose(), bdp=_bdp(topology, epochs, settings)),
            **_epoch_arrays(epochs),
            **self._flow_arrays(lanes),
            **self._scalars(lanes),
            "trim_wire": trimmed,
        }
        for name in ARRAYS:
            given[name] = np.ascontiguousarray(given[name], dtype=ARRAYS[name][0])
        made = CompiledScenario(**given)
        made.validate()
        return made

    def _lanes(self) -> Lanes:
        if self.plan is None:
            found = plain_lanes(self.flows.kinds, own=self.settings.lanes == "own")
        else:
            dscps = {name: each.dscp for name, each in self.settings.classes.items() if each.dscp is not None}
            found = lanes_of_plan(self.plan, _uses(self.topology, self.flows), dscps)
            ordered = {kind: found.classes[kind] for kind in self.flows.kinds if kind in found.classes}
            found = Lanes(found.queues, ordered, found.plan, found.trim_queue)
        return found.changed(self.settings)

    def _may_lose(self) -> bool:
        return bool(self.settings.failures) or self._watchdog()["watchdog_detection"] > 0

    def _trimmed(self) -> int:
        given = self.settings.packets.trimmed
        if given is None:
            given = self.settings.packets.header if self.plan is None else self.plan.trimming.size
        return max(1, int(given))

    def _watchdog(self) -> dict[str, int]:
        """Return the watchdog's arrays: as set, else as the plan says, else off."""
        pauses, pfc = self.settings.pauses, self.plan.pfc if self.plan is not None else None
        on = pauses.watchdog if pauses.watchdog is not None else pfc is not None and pfc.watchdog
        values = {
            name: getattr(pauses, name) if getattr(pauses, name) is not None or pfc is None else getattr(pfc, name)
            for name in ("detection", "restoration", "action")
        }
        if not on:
            return {"watchdog_detection": 0, "watchdog_restoration": 0, "watchdog_drop": 1}
        if not values["detection"] or not values["restoration"]:
            raise SpecError("pauses: with watchdog = true expected detection and restoration above nothing")
        return {
            "watchdog_detection": int(values["detection"]),
            "watchdog_restoration": int(values["restoration"]),
            "watchdog_drop": int(values["action"] != "forward"),
        }

    def _flow_arrays(self, lanes: Lanes) -> dict[str, Any]:
        flows = self.flows
        first, after = flows.awaited()
        number = {kind: place for place, kind in enumerate(lanes.classes)}
        return {
            "flow_src_port": flows.source,
            "flow_dst_port": flows.destination,
            "flow_size": flows.size,
            "flow_message": flows.message,
            "flow_class": np.array([number.get(kind, 0) for kind in flows.kinds])[flows.kind],
            "flow_start": flows.start,
            "flow_delay": flows.delay,
            "flow_pin": flows.pin,
            "flow_after_first": first,
            "flow_after": after,
            **_hashes(self.topology, flows, lanes, self.settings.seed),
        }

    def _scalars(self, lanes: Lanes) -> dict[str, Any]:
        settings = self.settings
        wire = int(settings.packets.payload + settings.packets.header)
        offset, levels = settings.pauses.xon_offset, settings.adaptive.levels
        same = settings.hash_seeds == "same"
        queues = list(lanes.queues)
        return {
            "mtu": int(settings.packets.payload),
            "header": int(settings.packets.header),
            "ack_wire": int(settings.packets.ack),
            "trim_queue": queues.index(lanes.trim_queue),
            "seed": settings.seed,
            "tier_seed": mix32(np.full(8, 1) if same else murmur3(np.arange(8), settings.seed & 0xFFFFFFFF)),
            "flowlet_gap": int(settings.flowlets.gap),
            "flowlet_entries": settings.flowlets.entries,
            "ar_quantum": int(settings.adaptive.quantum),
            "ar_levels": NEVER if levels is None else levels,
            "ar_staleness": int(settings.adaptive.staleness),
            "pfc_response": int(settings.pauses.response),
            "xon_offset": 2 * wire if offset is None else int(offset),
            **self._watchdog(),
            **self._sampled(),
            "max_events": _budget(self.flows, settings),
            "max_time": int(settings.limits.time),
            "dcqcn": settings.dcqcn.compiled(),
            "class_names": tuple(lanes.classes),
            "queue_names": tuple(queues),
            "node_names": _NodeNames(self.topology),
            "flow_groups": self.flows.groups,
        }

    def _sampled(self) -> dict[str, Any]:
        sampling, topology = self.settings.sampling, self.topology
        if not sampling.interval:
            return {"sample_interval": 0, "sample_ports": np.zeros(0, np.int32)}
        nodes = [topology.node_named(name) for name in sampling.nodes] or range(topology.nodes)
        first = topology.node_first_port
        ports = np.concatenate([np.arange(first[node], first[node + 1]) for node in nodes])
        return {"sample_interval": int(sampling.interval), "sample_ports": ports}


_OF_TOPOLOGY = (
    "node_kind",
    "node_tier",
    "node_latency",
    "node_cut_through",
    "node_first_port",
    "port_node",
    "port_peer",
    "port_ps_q16",
    "port_prop",
    "port_tx_latency",
    "port_rx_latency",
    "port_message_gap",
    "leaf_index",
    "switch_index",
)


class _NodeNames:
    """The names of a topology's nodes, made when asked for."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def __len__(self) -> int:
        return self._topology.nodes

    def __getitem__(self, node: int) -> str:
        if not 0 <= node < len(self):
            raise IndexError(node)
        return self._topology.node_name(node)


def _read(given: dict[str, Any]) -> Settings:
    """Return settings; those of a class, given as such, hold for every class.

    Raises:
        SpecError: with all faults.
    """
    data = _plain(given)
    own, shared = list(Settings.__struct_fields__), list(ClassSettings.__struct_fields__)
    unknown = [name for name in data if name not in own and name not in shared]
    wrong = [
        f"{name}: unknown setting{_meant(name, own + shared)}; known: {', '.join(own + shared)}" for name in unknown
    ]
    every = {name: data[name] for name in data if name in shared and data[name] is not None}
    tables = {name: data[name] for name in data if name in own}
    if every:
        tables["every"] = {**tables.get("every", {}), **every}
    settings, faults = read_struct(Settings, tables)
    if not faults:
        faults = list(settings_faults(settings))
    if faults or wrong:
        raise SpecError(*wrong, *(f"{fault.place}: {fault.message}" for fault in faults))
    return settings


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _plain(value: Any) -> Any:
    """Return structs as tables, leaving out what they do not say."""
    if isinstance(value, msgspec.Struct):
        return {name: _plain(item) for name, item in msgspec.structs.asdict(value).items() if item is not None}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _check_ends(topology: Topology, flows: Flows) -> None:
    """Refuse flows that were made for another topology."""
    for name in ("source", "destination"):
        ends = getattr(flows, name)
        ends = ends[ends != -1]
        if len(ends) and (
            ends.min() < 0 or ends.max() >= topology.ports or topology.node_kind[topology.port_node[ends]].any()
        ):
            raise SpecError(f"flows: {name}: expected ports of hosts of {topology.name}; were they made for another?")


def _uses(topology: Topology, flows: Flows) -> Uses:
    """Return which classes use which networks."""
    real = flows.source >= 0
    kind = np.broadcast_to(flows.kind, len(flows))[real].astype(np.int64)
    network = topology.port_network[flows.source[real]].astype(np.int64)
    pairs = np.unique(kind * len(topology.networks) + network).tolist()
    count = len(topology.networks)
    return frozenset((flows.kinds[pair // count], topology.networks[pair % count]) for pair in pairs)


def _epoch_arrays(epochs: Epochs) -> dict[str, Any]:
    begins = np.cumsum([0, *(len(table.ports) for table in epochs.tables)])
    return {
        "epoch_time": epochs.times,
        "epoch_port_up": epochs.up,
        "route_table": epochs.table,
        "route_first": np.stack([table.first + at for table, at in zip(epochs.tables, begins, strict=False)]),
        "route_ports": np.concatenate([table.ports for table in epochs.tables]),
    }


def _bdp(topology: Topology, epochs: Epochs, settings: Settings) -> int:
    """Return rate times round trip of the longest path, in bytes, a packet more included."""
    reached = epochs.tables[0].distance
    links = int(reached[reached < topology.nodes].max(initial=0)) + 2
    wire = int(settings.packets.payload + settings.packets.header)
    rate = int(topology.port_rate[topology.node_kind[topology.port_node] == 0].max())
    ps_a_byte = 8e12 / rate
    one_way = links * int(topology.port_prop.max()) + (links - 1) * int(topology.node_latency.max())
    trip = 2 * one_way + links * (wire + int(settings.packets.ack)) * ps_a_byte
    return int(trip / ps_a_byte) + wire


def _hashes(topology: Topology, flows: Flows, lanes: Lanes, seed: int) -> dict[str, Any]:
    """Return the hashes of flows and of their acknowledgements: of the five fields that name a connection."""
    real = flows.source >= 0
    ends = [np.where(real, port, 0) for port in (flows.source, flows.destination)]
    here, there = (_address(topology, end) for end in ends)
    connection = np.arange(len(flows), dtype=np.uint32) if flows.qp is None else flows.qp
    low, high = seed & 0xFFFFFFFF, seed >> 32
    own, peer = (murmur3(connection, low, high, end) & np.uint32(_QP_MASK) for end in (1, 2))
    settings = [lanes.classes.get(kind, ClassSettings()) for kind in flows.kinds]
    kind = flows.kind
    fixed = np.array([each.source_port == "fixed" for each in settings])[kind]
    port = np.where(fixed, np.uint32(FIXED_SOURCE_PORT), udp_source_port(own, peer))
    deep = np.array([each.routing == "qp-hash" for each in settings])[kind]
    pinned = np.array([each.routing == "static" for each in settings])[kind]
    found = {}
    for name, source, target, qp in (("flow_hash", here, there, peer), ("flow_back_hash", there, here, own)):
        hashed = tuple_hash(source, target, port)
        if deep.any():
            hashed = np.where(deep, tuple_hash(source, target, port, qp=qp), hashed)
        found[name] = np.where(pinned, flows.pin, hashed) if pinned.any() else hashed
    return found


def _address(topology: Topology, port: Array) -> Array:
    """Return the IPv4 address of a host's port: 10.0.0.0/8, network by network."""
    host = topology.port_node[port].astype(np.uint32)
    network = topology.port_network[port].astype(np.uint32)
    return np.uint32(_TEN) + network * np.uint32(topology.hosts) + host


def _budget(flows: Flows, settings: Settings) -> int:
    if settings.limits.events is not None:
        return settings.limits.events
    size, message = np.broadcast_arrays(flows.size, flows.message)
    part = np.where(message > 0, np.minimum(message, int(settings.packets.payload)), int(settings.packets.payload))
    packets = int((-(-size // part)).sum()) * (len(flows) if len(size) == 1 else 1)
    return 10_000_000 + _EVENTS_A_PACKET * packets
