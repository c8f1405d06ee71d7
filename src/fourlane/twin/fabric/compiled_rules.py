"""What the arrays of a compiled scenario must satisfy: each rule names the array that breaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from fourlane.twin.fabric.compiled import CompiledScenario

    Array = npt.NDArray[Any]

__all__ = ["LEAST_GAIN", "MOST_BYTES", "MOST_CLASSES", "MOST_QUEUES", "MOST_SHARED", "MOST_TIME", "faults_of"]

MOST_QUEUES, MOST_CLASSES = 8, 16
MOST_BYTES = 1 << 44
"""Of a flow, a window, a reservation."""
MOST_SHARED = 1 << 39
"""Of a switch's buffer: times the largest alpha it fits 64 bits."""
LEAST_GAIN = 2.0**-20
"""Of DCQCN's alpha, if not 0: with less it would take years of updates to fade."""
MOST_TIME = 1 << 60
"""Of a start or a delay, in ps: thirteen days."""
MOST_PACKETS = (1 << 31) - 1
MOST_FLOWS = MOST_PORTS = (1 << 27) - 1
LONGEST_PACKET = 1 << 16
MOST_ALPHA_Q16 = 128 << 16
_RANGES: dict[str, tuple[int, int]] = {
    "node_kind": (0, 1),
    "node_tier": (0, 7),
    "node_latency": (0, MOST_TIME),
    "node_cut_through": (0, 1),
    "node_shared": (0, MOST_SHARED),
    "port_ps_q16": (1, 1 << 40),
    "port_prop": (0, MOST_TIME),
    "port_headroom": (0, MOST_BYTES),
    "port_tx_latency": (0, MOST_TIME),
    "port_rx_latency": (0, MOST_TIME),
    "port_message_gap": (0, MOST_TIME),
    "epoch_time": (0, MOST_TIME),
    "epoch_port_up": (0, 1),
    "queue_weight": (0, 1 << 31),
    "queue_cap_q16": (0, 100 << 16),
    "queue_alpha_q16": (0, MOST_ALPHA_Q16),
    "queue_reserved": (0, MOST_BYTES),
    "queue_lossless": (0, 1),
    "queue_kmin": (-1, MOST_BYTES),
    "queue_kmax": (0, MOST_BYTES),
    "queue_pmax_q32": (0, 1 << 32),
    "queue_service": (0, 1),
    "class_routing": (0, 5),
    "class_transport": (0, 2),
    "class_cc": (0, 2),
    "class_window": (0, MOST_BYTES),
    "class_rto": (0, MOST_TIME),
    "class_ack_every": (1, 1 << 20),
    "class_trim": (0, 1),
    "class_ecn": (0, 1),
    "class_cts_slots": (1, 1 << 20),
    "flow_size": (0, MOST_BYTES),
    "flow_message": (0, MOST_BYTES),
    "flow_start": (0, MOST_TIME),
    "flow_delay": (0, MOST_TIME),
    "mtu": (1, LONGEST_PACKET),
    "header": (0, LONGEST_PACKET),
    "ack_wire": (1, LONGEST_PACKET),
    "trim_wire": (1, LONGEST_PACKET),
    "seed": (0, (1 << 64) - 1),
    "flowlet_gap": (0, MOST_TIME),
    "flowlet_entries": (1, 1 << 24),
    "ar_quantum": (1, MOST_BYTES),
    "ar_levels": (1, 1 << 62),
    "ar_staleness": (0, MOST_TIME),
    "pfc_response": (0, MOST_TIME),
    "xon_offset": (0, MOST_BYTES),
    "watchdog_detection": (0, MOST_TIME),
    "watchdog_restoration": (0, MOST_TIME),
    "watchdog_drop": (0, 1),
    "sample_interval": (0, MOST_TIME),
    "max_events": (1, 1 << 62),
    "max_time": (1, 1 << 62),
}


def faults_of(made: CompiledScenario, arrays: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return a sentence for every broken rule; rules about contents only once all forms are right."""
    faults = list(_forms(made, arrays)) or list(_ranges(made))
    return faults or [*_nodes(made), *_routes(made), *_lanes(made), *_flows(made)]


def _forms(made: CompiledScenario, arrays: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield what is wrong with dtypes and dimensions."""
    for name, (dtype, dims) in arrays.items():
        array: Any = getattr(made, name)
        if not isinstance(array, np.ndarray):
            yield f"{name}: expected an array, got {type(array).__name__}"
        elif array.dtype != np.dtype(dtype):
            yield f"{name}: expected dtype {np.dtype(dtype)}, got {array.dtype}"
        elif array.ndim != dims.count(",") + 1:
            yield f"{name}: expected {dims.count(',') + 1} dimensions [{dims}], got {array.ndim}"
        elif not array.flags.c_contiguous:
            yield f"{name}: expected a C-contiguous array; pass it through numpy.ascontiguousarray"
        else:
            yield from _dims(made, name, array, dims)


def _dims(made: CompiledScenario, name: str, array: Array, dims: str) -> Iterator[str]:
    switches, leaves = np.max(made.switch_index, initial=-1) + 1, np.max(made.leaf_index, initial=-1) + 1
    known = {
        "N": len(made.node_kind),
        "P": len(made.port_node),
        "F": len(made.flow_src_port),
        "Q": len(made.queue_weight),
        "C": len(made.class_queue),
        "X": len(made.epoch_time),
        "8": 8,
    }
    wanted = [
        *([dims.split(",")] if "|" not in dims else []),
        *([["F+1"], ["1"]] if "|" in dims else []),
        *([["1"]] if dims == "F*" else []),
    ]
    sizes = known | {"N+1": known["N"] + 1, "F+1": known["F"] + 1, "F*": known["F"], "1": 1}
    sizes |= {"S*Lf+1": int(switches * leaves) + 1}
    fits = (all(sizes.get(dim, size) == size for dim, size in zip(shape, array.shape, strict=True)) for shape in wanted)
    if not any(fits):
        spelled = ", ".join(f"{dim} = {sizes[dim]}" for dim in dims.replace("|", ",").split(",") if dim in sizes)
        yield f"{name}: expected dimensions [{dims}] with {spelled}, got {list(array.shape)}"


def _ranges(made: CompiledScenario) -> Iterator[str]:
    for name, (least, most) in _RANGES.items():
        value = np.asarray(getattr(made, name))
        wrong = (value < least) | (value > most)
        if wrong.any():
            at = f"[{int(np.flatnonzero(wrong)[0])}]" if value.ndim else ""
            found = value.reshape(-1)[np.flatnonzero(wrong)[0]]
            yield f"{name}{at}: expected {least} to {most}, got {found}"
    for count, name, most in (
        (made.queues, "queue_weight", MOST_QUEUES),
        (made.classes, "class_queue", MOST_CLASSES),
        (made.flows, "flow_src_port", MOST_FLOWS),
        (made.ports, "port_node", MOST_PORTS),
        (len(made.epoch_time), "epoch_time", 1 << 20),
    ):
        if not 1 <= count <= most:
            yield f"{name}: expected 1 to {most} entries, got {count}"
    yield from _dcqcn(made)


def _dcqcn(made: CompiledScenario) -> Iterator[str]:
    dcqcn = made.dcqcn
    for name, least, most in (
        ("g", 0.0, 1.0),
        ("alpha0", 0.0, 1.0),
        ("alpha_period", 1, MOST_TIME),
        ("cnp_interval", 0, MOST_TIME),
        ("decrease_gate", 0, MOST_TIME),
        ("max_decrease", 0.0, 1.0),
        ("timer", 1, MOST_TIME),
        ("byte_counter", 1, MOST_BYTES),
        ("fast_rounds", 0, 1 << 20),
        ("rate_ai", 0.0, 1e15),
        ("rate_hai", 0.0, 1e15),
        ("min_rate", 1.0, 1e15),
        ("clamp", 0, 1),
    ):
        value = getattr(dcqcn, name)
        if not least <= value <= most:
            yield f"dcqcn.{name}: expected {least} to {most}, got {value}"
    if 0 < dcqcn.g < LEAST_GAIN:
        yield f"dcqcn.g: expected 0 or at least {LEAST_GAIN}, got {dcqcn.g}"


def _first(wrong: Array) -> int:
    return int(np.flatnonzero(wrong)[0])


def _nodes(made: CompiledScenario) -> Iterator[str]:
    ports = np.arange(made.ports)
    first = made.node_first_port
    if first[0] != 0 or first[-1] != made.ports or (np.diff(first) < 0).any():
        yield f"node_first_port: expected to rise from 0 to {made.ports}"
        return
    wrong = made.port_node != np.repeat(np.arange(made.nodes), np.diff(first))
    if wrong.any():
        yield f"port_node[{_first(wrong)}]: expected the node that node_first_port gives the port to"
        return
    if made.port_peer.min() < 0 or made.port_peer.max() >= made.ports:
        yield f"port_peer: expected ports 0 to {made.ports - 1}"
        return
    wrong = (made.port_peer[made.port_peer] != ports) | (made.port_peer == ports)
    if wrong.any():
        yield f"port_peer[{_first(wrong)}]: expected another port whose peer is this one"
    wrong = made.port_ps_q16 != made.port_ps_q16[made.port_peer]
    if wrong.any():
        yield f"port_ps_q16[{_first(wrong)}]: expected the rate of the port at the other end of the cable"
    yield from _indices(made)


def _indices(made: CompiledScenario) -> Iterator[str]:
    is_switch = made.node_kind == 1
    if ((made.switch_index >= 0) != is_switch).any() or _not_a_numbering(made.switch_index[is_switch]):
        yield "switch_index: expected switches numbered from 0 and -1 for hosts"
    at_host = made.node_kind[made.port_node] == 0
    leaves = np.unique(made.port_node[made.port_peer[at_host]])
    leaves = leaves[is_switch[leaves]]
    if (made.leaf_index[leaves] < 0).any() or _not_a_numbering(made.leaf_index[made.leaf_index >= 0]):
        yield "leaf_index: expected switches with hosts numbered from 0, -1 elsewhere"
    if made.epoch_time[0] != 0 or (np.diff(made.epoch_time) <= 0).any():
        yield "epoch_time: expected to rise from 0"


def _not_a_numbering(found: Array) -> bool:
    return bool((np.sort(found) != np.arange(len(found))).any())


def _routes(made: CompiledScenario) -> Iterator[str]:
    first, tables = made.route_first, len(made.route_first)
    if made.route_table.min() < 0 or made.route_table.max() >= tables:
        yield f"route_table: expected tables 0 to {tables - 1}"
    if first.min() < 0 or first.max() > len(made.route_ports) or (np.diff(first, axis=1) < 0).any():
        yield f"route_first: expected each table to rise, within 0 to {len(made.route_ports)}"
        return
    if len(made.route_ports) == 0:
        return
    if made.route_ports.min() < 0 or made.route_ports.max() >= made.ports:
        yield f"route_ports: expected ports 0 to {made.ports - 1}"
        return
    leaves = made.leaves
    switches = made.switch_index[made.port_node[made.route_ports]]
    for table in first:
        owner = np.repeat(np.arange(len(table) - 1), np.diff(table)) // max(leaves, 1)
        ports = switches[table[0] : table[-1]]
        if (ports != owner).any():
            yield "route_ports: expected only ports of the switch they are listed for"
            return


def _lanes(made: CompiledScenario) -> Iterator[str]:
    for name in ("class_queue", "class_ack_queue", "class_cnp_queue"):
        wrong = getattr(made, name) >= made.queues
        if wrong.any():
            yield f"{name}[{_first(wrong)}]: expected a queue 0 to {made.queues - 1}, got {getattr(made, name).max()}"
    if not 0 <= made.trim_queue < made.queues:
        yield f"trim_queue: expected a queue 0 to {made.queues - 1}, got {made.trim_queue}"
    largest = max(made.mtu + made.header, made.ack_wire, made.trim_wire)
    if largest > LONGEST_PACKET:
        yield f"mtu: expected packets of up to {LONGEST_PACKET} bytes with their header, got {largest}"
    wrong = (made.queue_weight > 0) & (made.queue_weight < largest)
    if wrong.any():
        at = _first(wrong)
        yield f"queue_weight[{at}]: expected 0 (strict) or at least {largest}, got {made.queue_weight[at]}"
    marks = made.queue_kmin >= 0
    if (made.queue_kmax[marks] < made.queue_kmin[marks]).any():
        yield "queue_kmax: expected at least queue_kmin"
    wrong = (made.queue_cap_q16 > 0) & (made.queue_cap_q16 < 65536)
    if wrong.any():
        yield f"queue_cap_q16[{_first(wrong)}]: expected 0 (none) or at least 65536 (all of the link)"
    repeats = (made.class_rto > 0) | (made.class_trim > 0)
    wrong = (made.class_ack_every > 1) & repeats & (made.class_transport > 0)
    if wrong.any():
        yield (
            f"class_ack_every[{_first(wrong)}]: expected 1 where a class repeats selectively, after a timeout or "
            "trimming: which packets arrived is known only from an acknowledgement each"
        )


def _flows(made: CompiledScenario) -> Iterator[str]:
    source, target = made.flow_src_port, made.flow_dst_port
    gate = np.broadcast_to(made.flow_size == 0, source.shape)
    hosts = made.node_kind[made.port_node] == 0
    for name, ends in (("flow_src_port", source), ("flow_dst_port", target)):
        inside = (ends >= 0) & (ends < made.ports)
        good = np.where(gate, ends == -1, inside & hosts[np.where(inside, ends, 0)])
        if not good.all():
            at = _first(~good)
            wanted = "-1, since the flow has no bytes" if gate[at] else "a port of a host"
            yield f"{name}[{at}]: expected {wanted}, got {ends[at]}"
            return
    wrong = ~gate & (made.port_node[source] == made.port_node[target])
    if wrong.any():
        yield f"flow_dst_port[{_first(wrong)}]: expected another host than the source's, got a flow to itself"
    if made.flow_class.max() >= made.classes:
        yield f"flow_class: expected classes 0 to {made.classes - 1}, got {made.flow_class.max()}"
    yield from _packets(made)
    yield from _dependencies(made)


def _packets(made: CompiledScenario) -> Iterator[str]:
    """Yield a fault if a flow has too many packets to number."""
    size, message = np.broadcast_arrays(made.flow_size, made.flow_message)
    each = np.where(message > 0, np.minimum(message, made.mtu), made.mtu)
    wrong = size // each > MOST_PACKETS - 1
    if wrong.any():
        yield f"flow_size[{_first(wrong)}]: expected at most {MOST_PACKETS} packets, got {size[_first(wrong)]} bytes"


def _dependencies(made: CompiledScenario) -> Iterator[str]:
    first, after = made.flow_after_first, made.flow_after
    if first[0] != 0 or (np.diff(first) < 0).any() or (len(first) > 1 and first[-1] != len(after)):
        yield f"flow_after_first: expected to rise from 0 to {len(after)}"
    if len(first) == 1 and made.flows > 0 and len(after):
        yield f"flow_after_first: expected {made.flows + 1} entries, since flow_after has {len(after)}"
    if len(after) and (after.min() < 0 or after.max() >= made.flows):
        yield f"flow_after: expected flows 0 to {made.flows - 1}"
