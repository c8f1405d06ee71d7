"""A scenario as flat arrays: all that a simulator reads, the plain one and the native one alike.

Made by `fourlane.twin.fabric.scenario` for people, by `CompiledScenario.of` for tests. Not for units, names
of classes or files: here everything is whole numbers of bytes, picoseconds and indices.

Dimensions: N nodes, P egress ports, F flows, Q queues a port, C classes, X epochs (the network between two
failures or repairs), T routing tables, S switches, Lf switches that have hosts ("leaves"). An array of F
may have one element instead, which then holds for all flows, where the legend below says `F*`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.twin.fabric.compiled_rules import faults_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Bytes8 = npt.NDArray[np.uint8]
    Ints = npt.NDArray[np.int32]
    Longs = npt.NDArray[np.int64]
    Words = npt.NDArray[np.uint32]

__all__ = ["ARRAYS", "HOST", "NEVER", "SWITCH", "CompiledScenario", "Dcqcn"]

HOST, SWITCH = 0, 1
NEVER = 1 << 62
"""A time or a count of events that no run reaches."""

ARRAYS: dict[str, tuple[str, str]] = {
    "node_kind": ("u1", "N"),
    "node_tier": ("u1", "N"),
    "node_latency": ("i8", "N"),
    "node_cut_through": ("u1", "N"),
    "node_shared": ("i8", "N"),
    "node_first_port": ("i4", "N+1"),
    "port_node": ("i4", "P"),
    "port_peer": ("i4", "P"),
    "port_ps_q16": ("i8", "P"),
    "port_prop": ("i8", "P"),
    "port_headroom": ("i8", "P"),
    "port_tx_latency": ("i8", "P"),
    "port_rx_latency": ("i8", "P"),
    "port_message_gap": ("i8", "P"),
    "leaf_index": ("i4", "N"),
    "switch_index": ("i4", "N"),
    "epoch_time": ("i8", "X"),
    "epoch_port_up": ("u1", "X,P"),
    "route_table": ("i4", "X"),
    "route_first": ("i8", "T,S*Lf+1"),
    "route_ports": ("i4", "free"),
    "queue_weight": ("i8", "Q"),
    "queue_cap_q16": ("i8", "Q"),
    "queue_alpha_q16": ("i8", "Q"),
    "queue_reserved": ("i8", "Q"),
    "queue_lossless": ("u1", "Q"),
    "queue_kmin": ("i8", "Q"),
    "queue_kmax": ("i8", "Q"),
    "queue_pmax_q32": ("i8", "Q"),
    "queue_service": ("u1", "Q"),
    "class_queue": ("u1", "C"),
    "class_ack_queue": ("u1", "C"),
    "class_cnp_queue": ("u1", "C"),
    "class_routing": ("u1", "C"),
    "class_transport": ("u1", "C"),
    "class_cc": ("u1", "C"),
    "class_window": ("i8", "C"),
    "class_rto": ("i8", "C"),
    "class_ack_every": ("i4", "C"),
    "class_trim": ("u1", "C"),
    "class_ecn": ("u1", "C"),
    "class_cts_slots": ("i4", "C"),
    "flow_src_port": ("i4", "F"),
    "flow_dst_port": ("i4", "F"),
    "flow_size": ("i8", "F*"),
    "flow_message": ("i8", "F*"),
    "flow_class": ("u1", "F*"),
    "flow_start": ("i8", "F*"),
    "flow_delay": ("i8", "F*"),
    "flow_hash": ("u4", "F"),
    "flow_back_hash": ("u4", "F"),
    "flow_pin": ("u4", "F*"),
    "flow_after_first": ("i8", "F+1|1"),
    "flow_after": ("i4", "free"),
    "tier_seed": ("u4", "8"),
    "sample_ports": ("i4", "free"),
}
"""Every array by name: its dtype and its dimensions."""


@dataclass(frozen=True)
class Dcqcn:
    """DCQCN's parameters; the defaults are those of the paper (Zhu et al., SIGCOMM 2015).

    `clamp`: a decrease sets the target to the present rate even where no increase came since the last one.

    Units:
        alpha_period, cnp_interval, decrease_gate, timer: ps. byte_counter: bytes. rates: bit/s.
        max_decrease: the most a rate falls at once, as a share of it.
    """

    g: float = 1 / 256
    alpha0: float = 1.0
    alpha_period: int = 55_000_000
    cnp_interval: int = 50_000_000
    decrease_gate: int = 0
    max_decrease: float = 0.5
    timer: int = 55_000_000
    byte_counter: int = 10_000_000
    fast_rounds: int = 5
    rate_ai: float = 40e6
    rate_hai: float = 400e6
    min_rate: float = 1e6
    clamp: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class CompiledScenario:
    """All that a simulator reads. Its rules are checked by `validate`; what they mean is said by `reference.py`.

    Units:
        bytes; ps; `port_ps_q16`: ps a byte, times 65536; `queue_weight`: bytes a round, 0 for a strict queue;
        `queue_cap_q16`: 65536 * 100 / percent of the link, 0 for none; `queue_alpha_q16`: times 65536;
        `queue_kmin`: -1 where the queue never marks; `queue_pmax_q32`: times 2**32.
    """

    node_kind: Bytes8
    node_tier: Bytes8
    node_latency: Longs
    node_cut_through: Bytes8
    node_shared: Longs
    node_first_port: Ints
    port_node: Ints
    port_peer: Ints
    port_ps_q16: Longs
    port_prop: Longs
    port_headroom: Longs
    port_tx_latency: Longs
    port_rx_latency: Longs
    port_message_gap: Longs
    leaf_index: Ints
    switch_index: Ints
    epoch_time: Longs
    epoch_port_up: Bytes8
    route_table: Ints
    route_first: Longs
    route_ports: Ints
    queue_weight: Longs
    queue_cap_q16: Longs
    queue_alpha_q16: Longs
    queue_reserved: Longs
    queue_lossless: Bytes8
    queue_kmin: Longs
    queue_kmax: Longs
    queue_pmax_q32: Longs
    queue_service: Bytes8
    class_queue: Bytes8
    class_ack_queue: Bytes8
    class_cnp_queue: Bytes8
    class_routing: Bytes8
    class_transport: Bytes8
    class_cc: Bytes8
    class_window: Longs
    class_rto: Longs
    class_ack_every: Ints
    class_trim: Bytes8
    class_ecn: Bytes8
    class_cts_slots: Ints
    flow_src_port: Ints
    flow_dst_port: Ints
    flow_size: Longs
    flow_message: Longs
    flow_class: Bytes8
    flow_start: Longs
    flow_delay: Longs
    flow_hash: Words
    flow_back_hash: Words
    flow_pin: Words
    flow_after_first: Longs
    flow_after: Ints
    tier_seed: Words
    sample_ports: Ints

    mtu: int = 4096
    header: int = 64
    ack_wire: int = 64
    trim_wire: int = 64
    trim_queue: int = 0
    seed: int = 0
    flowlet_gap: int = 5_000_000
    flowlet_entries: int = 256
    ar_quantum: int = 1
    ar_levels: int = NEVER
    ar_staleness: int = 0
    pfc_response: int = 0
    xon_offset: int = 0
    watchdog_detection: int = 0
    watchdog_restoration: int = 0
    watchdog_drop: int = 1
    sample_interval: int = 0
    max_events: int = NEVER
    max_time: int = NEVER
    dcqcn: Dcqcn = Dcqcn()

    class_names: tuple[str, ...] = ()
    queue_names: tuple[str, ...] = ()
    node_names: Sequence[str] = ()
    flow_groups: tuple[tuple[str, int], ...] = ()
    """Names of groups of flows, and the first flow of each; in rising order."""

    @classmethod
    def of(cls, **given: Any) -> CompiledScenario:
        """Make a scenario from what differs from a plain one, and see that it is sound.

        Needed are `node_kind`, `port_node`, `port_peer`, `port_ps_q16`, `flow_src_port`, `flow_dst_port` and
        `flow_size`. Left out, the rest is: one lossy queue of unlimited buffer, one class hashed by ECMP with
        out-of-order placement, all flows in it from time 0, no failures; routes only within one switch.

        Raises:
            SpecError: naming each faulty array.
        """
        arrays = {name: np.ascontiguousarray(given[name], dtype=ARRAYS[name][0]) for name in ARRAYS if name in given}
        values: dict[str, Any] = {**_plain(arrays), **arrays}
        made = cls(**values, **{name: value for name, value in given.items() if name not in ARRAYS})
        made.validate()
        return made

    @property
    def nodes(self) -> int:
        """Return how many nodes there are."""
        return len(self.node_kind)

    @property
    def ports(self) -> int:
        """Return how many egress ports there are."""
        return len(self.port_node)

    @property
    def flows(self) -> int:
        """Return how many flows there are, gates included."""
        return len(self.flow_src_port)

    @property
    def queues(self) -> int:
        """Return how many queues a port has."""
        return len(self.queue_weight)

    @property
    def classes(self) -> int:
        """Return how many classes there are."""
        return len(self.class_queue)

    @property
    def leaves(self) -> int:
        """Return how many switches have hosts."""
        return int(self.leaf_index.max(initial=-1)) + 1

    @property
    def switches(self) -> int:
        """Return how many switches there are."""
        return int(self.switch_index.max(initial=-1)) + 1

    def node_name(self, node: int) -> str:
        """Return a node's name."""
        return self.node_names[node] if self.node_names else f"node {node}"

    def flow_name(self, flow: int) -> str:
        """Return a flow's name: its group's and its number within it."""
        for name, first in reversed(self.flow_groups):
            if first <= flow:
                return f"{name}[{flow - first}]"
        return f"flow {flow}"

    def validate(self) -> None:
        """See that every array has its dtype, dimensions and range, and that they fit each other.

        Raises:
            SpecError: naming each faulty array.
        """
        from fourlane.errors import SpecError

        faults = faults_of(self, ARRAYS)
        if faults:
            raise SpecError(*faults)

    def flat(self) -> dict[str, Any]:
        """Return everything a simulator reads by name, DCQCN's parameters as `dcqcn_g` and so on."""
        names = {"class_names", "queue_names", "node_names", "flow_groups", "dcqcn"}
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in names}
        return found | {f"dcqcn_{field.name}": getattr(self.dcqcn, field.name) for field in fields(self.dcqcn)}


def _plain(given: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return every array of a plain scenario on the given nodes, ports and flows."""
    kind, node, peer = given["node_kind"], given["port_node"], given["port_peer"]
    nodes, ports, flows = len(kind), len(node), len(given["flow_src_port"])
    queues = next((len(array) for name, array in given.items() if name.startswith("queue_")), 1)
    classes = next((len(array) for name, array in given.items() if name.startswith("class_")), 1)
    epochs = len(given["epoch_time"]) if "epoch_time" in given else 1
    has_host = np.zeros(nodes, bool)
    has_host[node[peer[kind[node] == HOST]]] = True
    found = {
        "node_tier": kind,
        "node_shared": np.full(nodes, NEVER >> 24),
        "node_first_port": np.searchsorted(node, np.arange(nodes + 1)),
        "leaf_index": _numbered(has_host & (kind == SWITCH)),
        "switch_index": _numbered(kind == SWITCH),
        "epoch_port_up": np.ones((epochs, ports)),
        "queue_alpha_q16": np.full(queues, 65536),
        "queue_kmin": np.full(queues, -1),
        "queue_pmax_q32": np.full(queues, 1 << 32),
        "class_transport": np.ones(classes),
        "class_ack_every": np.ones(classes),
        "class_cts_slots": np.ones(classes),
        "flow_hash": np.arange(flows) * 2_654_435_761 & 0xFFFFFFFF,
        "flow_back_hash": np.arange(flows) * 2_246_822_519 & 0xFFFFFFFF,
    }
    switches, leaves = found["switch_index"].max() + 1, found["leaf_index"].max() + 1
    found["route_first"] = np.zeros((1, switches * leaves + 1))
    size = {"N": nodes, "P": ports, "F": flows, "Q": queues, "C": classes, "X": epochs, "free": 0, "8": 8}
    for name, (_, dims) in ARRAYS.items():
        found.setdefault(name, np.zeros(size.get(dims, 1)))
    return {name: np.ascontiguousarray(array, dtype=ARRAYS[name][0]) for name, array in found.items()}


def _numbered(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Number the chosen nodes from 0; the others are -1."""
    return np.where(chosen, np.cumsum(chosen) - 1, -1)
