"""Random small scenarios over everything a simulator does, for properties and for the comparison of the simulators.

Times and sizes come from short lists on purpose: then events fall on the same instant, queues just fit, and deadlines
are met exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st
from tiny_fabrics import compiled

from fourlane.twin.fabric.builders import fat_tree, leaf_spine, single_switch
from fourlane.twin.fabric.compiled import CompiledScenario, Dcqcn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.twin.fabric.topology import Topology

US = 1_000_000
NETWORKS = [
    single_switch(2),
    single_switch(4),
    leaf_spine(2, 2, 1),
    leaf_spine(2, 3, 2),
    leaf_spine(3, 2, 2, links=2),
    fat_tree(4),
]
Draw = Any


def pick(draw: Draw, *values: Any) -> Any:
    """Draw one of a few values; the first is the simplest."""
    return draw(st.sampled_from(values))


def several(draw: Draw, count: int, *values: Any) -> list[Any]:
    """Draw so many of a few values."""
    return draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))


@st.composite
def fabrics(draw: Draw) -> CompiledScenario:
    """Draw a scenario. Its run ends by itself or after 8,000 events."""
    net = draw(st.sampled_from(NETWORKS))
    packet = {"mtu": pick(draw, 4096, 1000), "header": pick(draw, 64, 0), "ack_wire": pick(draw, 64, 1)}
    queues, classes, flows = (draw(st.integers(1, most)) for most in (4, 3, 12))
    arrays: dict[str, Any] = packet | {"trim_wire": pick(draw, 64, 200), "trim_queue": draw(st.integers(0, queues - 1))}
    arrays |= cables(draw, net) | switches(draw, net) | lanes(draw, queues, packet["mtu"] + packet["header"])
    arrays |= traffic_classes(draw, classes, queues) | flow_arrays(draw, flows, classes) | failures(draw, net)
    arrays |= scalars(draw, net)
    ends = [draw(st.permutations(range(net.hosts)))[:2] for _ in range(flows)]
    sizes = several(draw, flows, 20_000, 4096, 0, 1, 5000, 60_000)
    return compiled(net, [(s, t, size) for (s, t), size in zip(ends, sizes, strict=True)], **arrays)


def both_ends(net: Topology, values: Sequence[int]) -> list[int]:
    """Return an array of ports where the two ends of a cable have the same of some values, taken in turn."""
    cable = np.minimum(np.arange(net.ports), net.port_peer)
    return [values[c % len(values)] for c in cable]


def cables(draw: Draw, net: Topology) -> dict[str, Any]:
    paces = several(draw, 3, 20 << 16, 10 << 16, 1_310_723, 80 << 16)
    delays = several(draw, 2, 100_000, 0, 1, 1_000_003)
    at_host = net.node_kind[net.port_node] == 0
    latencies = np.outer(several(draw, 3, 0, 300_000), at_host)
    return {
        "port_ps_q16": both_ends(net, paces),
        "port_prop": both_ends(net, delays),
        "port_headroom": [draw(st.sampled_from([1 << 20, 1 << 20, 20_000, 5000, 0]))] * net.ports,
        "port_tx_latency": latencies[0],
        "port_rx_latency": latencies[1],
        "port_message_gap": latencies[2],
    }


def switches(draw: Draw, net: Topology) -> dict[str, Any]:
    is_switch = net.node_kind == 1
    rooms = np.resize(several(draw, 3, 1 << 30, 60_000, 20_000, 1 << 30, 3000, 0), net.nodes)
    return {
        "node_latency": np.resize(several(draw, 2, 500_000, 0, 83_200), net.nodes) * is_switch,
        "node_cut_through": np.resize(several(draw, 2, 0, 1), net.nodes) * is_switch,
        "node_shared": rooms * is_switch,
    }


def lanes(draw: Draw, queues: int, largest: int) -> dict[str, Any]:
    largest = max(largest, 200)
    kmin = several(draw, queues, -1, 0, 4160, 10_000)
    return {
        "queue_weight": several(draw, queues, 0, largest, 3 * largest + 1),
        "queue_cap_q16": several(draw, queues, 0, 65536, 2 * 65536, 200_001),
        "queue_alpha_q16": several(draw, queues, 65536, 65536, 8 << 16, 128 << 16, 8192, 0),
        "queue_reserved": several(draw, queues, 0, 1000, 4160, 10_000),
        "queue_lossless": several(draw, queues, 0, 1),
        "queue_kmin": kmin,
        "queue_kmax": [max(low, 0) + draw(st.sampled_from([0, 4160, 30_000])) for low in kmin],
        "queue_pmax_q32": several(draw, queues, 1 << 32, 1 << 30, 0),
        "queue_service": several(draw, queues, 0, 1),
    }


def traffic_classes(draw: Draw, classes: int, queues: int) -> dict[str, Any]:
    transport = several(draw, classes, 1, 0, 2)
    rto, trim = several(draw, classes, 0, 20 * US, 3 * US), several(draw, classes, 0, 1)
    every = several(draw, classes, 1, 2, 5)
    sparse = [t == 0 or not (r or cut) for t, r, cut in zip(transport, rto, trim, strict=True)]
    queue_of = {f"class_{name}queue": several(draw, classes, *range(queues)) for name in ("", "ack_", "cnp_")}
    return queue_of | {
        "class_routing": several(draw, classes, *range(6)),
        "class_transport": transport,
        "class_cc": several(draw, classes, 0, 1, 2),
        "class_window": several(draw, classes, 0, 1, 9000, 20_000),
        "class_rto": rto,
        "class_ack_every": [n if allowed else 1 for n, allowed in zip(every, sparse, strict=True)],
        "class_trim": trim,
        "class_ecn": several(draw, classes, 1, 0),
        "class_cts_slots": several(draw, classes, 1, 2),
    }


def flow_arrays(draw: Draw, flows: int, classes: int) -> dict[str, Any]:
    waits = [
        sorted(draw(st.sets(st.integers(0, flows - 1), max_size=2))) if draw(st.booleans()) else []
        for _ in range(flows)
    ]
    # Mostly for earlier flows; now and then for itself or in a circle, which leaves them stuck.
    waits = [w if draw(st.integers(0, 19)) == 19 else [after for after in w if after > f] for f, w in enumerate(waits)]
    words = st.integers(0, 0xFFFFFFFF)
    return {
        "flow_class": several(draw, flows, *range(classes)),
        "flow_message": several(draw, flows, 0, 1000, 5000, 4096),
        "flow_start": several(draw, flows, 0, 83_200, 1_000_000, 10 * US),
        "flow_delay": several(draw, flows, 0, 5000),
        "flow_hash": draw(st.lists(words, min_size=flows, max_size=flows)),
        "flow_back_hash": draw(st.lists(words, min_size=flows, max_size=flows)),
        "flow_pin": draw(st.lists(words, min_size=flows, max_size=flows)),
        "flow_after_first": np.cumsum([0] + [len(w) for w in waits]),
        "flow_after": [after for w in waits for after in w],
    }


def failures(draw: Draw, net: Topology) -> dict[str, Any]:
    epochs = draw(st.integers(1, 4)) if draw(st.booleans()) else 1
    failed = [draw(st.sets(st.integers(0, net.ports - 1), max_size=2)) if epochs > 1 else () for _ in range(epochs)]
    up = np.array([net.ports_up(ports) for ports in failed], np.uint8)
    steps = several(draw, epochs - 1, 1_000_000, 182_000, 20 * US)
    return {
        "epoch_time": np.cumsum([0, *steps]),
        "epoch_port_up": up,
        "tables": [None, *up],
        # Some tables are late: they lead to ports that are down.
        "route_table": [draw(st.sampled_from([0, epoch + 1])) for epoch in range(epochs)],
    }


def scalars(draw: Draw, net: Topology) -> dict[str, Any]:
    return {
        "seed": pick(draw, 0, 1, (1 << 64) - 1),
        "tier_seed": several(draw, 8, 0, 0x12345678),
        "flowlet_gap": pick(draw, 83_200, 0, 2 * US),
        "flowlet_entries": pick(draw, 1, 7, 256),
        "ar_quantum": pick(draw, 1, 4160, 20_000),
        "ar_levels": pick(draw, 1 << 62, 1, 4),
        "ar_staleness": pick(draw, 0, 100_000, 1 << 50),
        "pfc_response": pick(draw, 0, 48_320, 500_000),
        "xon_offset": pick(draw, 0, 3000),
        "watchdog_detection": pick(draw, 0, 300_000, 2 * US),
        "watchdog_restoration": pick(draw, 0, 500_000, 5 * US),
        "watchdog_drop": pick(draw, 1, 0),
        "sample_interval": pick(draw, 0, 700_000),
        "sample_ports": draw(st.lists(st.integers(0, net.ports - 1), max_size=3)),
        "max_events": pick(draw, *[8_000] * 8, 300, 1),
        "max_time": pick(draw, *[400 * US] * 4, 5 * US, 1_234_567),
        "dcqcn": Dcqcn(
            g=pick(draw, 1 / 256, 0.25, 0.0),
            alpha0=pick(draw, 1.0, 0.3),
            alpha_period=pick(draw, 1 * US, 300_001),
            cnp_interval=pick(draw, 0, 500_000, 4 * US),
            decrease_gate=pick(draw, 0, 4 * US),
            max_decrease=pick(draw, 0.5, 0.1),
            timer=pick(draw, 2 * US, 300_000),
            byte_counter=pick(draw, 5000, 1 << 40, 1000),
            fast_rounds=pick(draw, 1, 0, 5),
            rate_ai=pick(draw, 40e6, 5e9),
            rate_hai=pick(draw, 400e6, 20e9),
            min_rate=pick(draw, 100e6, 10e9, 1e15),
            clamp=pick(draw, 1, 0),
        ),
    }
