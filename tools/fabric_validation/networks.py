"""Small networks and traffic as compiled scenarios, for experiments that need every figure in hand."""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane._native import FabricSimulation
from fourlane.twin.fabric.builders import fat_tree, leaf_spine
from fourlane.twin.fabric.compiled import NEVER, CompiledScenario
from fourlane.twin.fabric.hashing import tuple_hash, udp_source_port
from fourlane.twin.fabric.routing import routing_table
from fourlane.twin.fabric.theory import UniformPath, pfc_headroom

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fourlane.twin.fabric.topology import Topology

__all__ = [
    "ADAPTIVE",
    "ECMP",
    "PACKET_PS",
    "ROUND_ROBIN",
    "SPRAY",
    "TIER_SEEDS",
    "all_to_all_pairs",
    "common",
    "compile_flows",
    "fat_tree_1024",
    "flow_hashes",
    "incast_pairs",
    "leaf_spine_128",
    "path",
    "permutation_pairs",
    "run",
    "uplinks",
]

ECMP, FLOWLET, SPRAY, ROUND_ROBIN, ADAPTIVE, STATIC = range(6)
"""Routing modes of a class."""
PACKET_PS = 83_200
"""4,160 bytes at 400 Gbit/s."""
TIER_SEEDS = [0, 0x9E3779B9, 0x7F4A7C15, 0x85EBCA6B, 0, 0, 0, 0]


def compile_flows(
    topology: Topology, source: Sequence[int], target: Sequence[int], size: int | Sequence[int], **given: Any
) -> CompiledScenario:
    """Compile flows between hosts; without more, lossy queues without bounds, ECMP by random hashes.

    Args:
        topology: what carries them.
        source: host of each flow; `target` too.
        size: bytes of each flow, or of all.
        given: arrays and scalars of `CompiledScenario` that differ.
    """
    table = routing_table(topology)
    flows = len(source)
    rng = np.random.default_rng(given.get("seed", 0))
    ends = topology.endpoint_of[0]
    arrays: dict[str, Any] = {name: getattr(topology, name) for name in _OF_TOPOLOGY} | {
        "route_first": table.first[None, :],
        "route_ports": table.ports,
        "tier_seed": TIER_SEEDS,
        "flow_src_port": ends[np.asarray(source)],
        "flow_dst_port": ends[np.asarray(target)],
        "flow_size": np.atleast_1d(size),
        "flow_hash": rng.integers(0, 1 << 32, flows, dtype=np.uint32),
        "flow_back_hash": rng.integers(0, 1 << 32, flows, dtype=np.uint32),
    }
    return CompiledScenario.of(**(arrays | given))


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
    "leaf_index",
    "switch_index",
)


def flow_hashes(
    source: Sequence[int], target: Sequence[int], *, seed: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return the hashes of flows' 5-tuples, there and back, with queue pairs (and so UDP ports) drawn from a seed."""
    rng = np.random.default_rng(seed)
    one, other = rng.integers(1, 1 << 24, (2, len(source)))
    port = udp_source_port(one, other)
    here, there = (0x0A000000 + np.asarray(hosts) for hosts in (source, target))
    return tuple_hash(here, there, port), tuple_hash(there, here, port)


def common(topology: Topology) -> dict[str, Any]:
    """Return the common setting: one lossless queue in 64 MiB of buffer, PFC; control packets before all else."""
    return {
        "queue_weight": [4160, 0],
        "queue_lossless": [1, 0],
        "queue_alpha_q16": [65536, 65536],
        "queue_reserved": [0, 1 << 30],
        "class_ack_queue": [1],
        "class_cnp_queue": [1],
        "node_shared": np.where(topology.node_kind == 1, 60_000_000, 0),
        "port_headroom": np.full(topology.ports, pfc_headroom(PACKET_PS, 4160, 100_000, response_ps=0, frame_ps=1_280)),
    }


def run(made: CompiledScenario) -> dict[str, Any]:
    """Run a scenario on the native core, however it ends, and return its raw results."""
    simulation = FabricSimulation(made.flat())
    simulation.advance(NEVER)
    return simulation.result()


def path(links: int) -> UniformPath:
    """Return a path of the common setting: 400 Gbit/s, 0.1 us a link, 0.5 us a switch, 4,160-byte packets."""
    return UniformPath(
        links=links, packet_ps=PACKET_PS, ack_ps=1_280, propagation_ps=100_000, switch_latency_ps=500_000
    )


@lru_cache
def leaf_spine_128() -> Topology:
    """Build LS128: 16 leaves of 8 hosts, 8 spines."""
    return leaf_spine(leaves=16, hosts_per_leaf=8, spines=8)


@lru_cache
def fat_tree_1024() -> Topology:
    """Build FT1024: the fat tree of 16-port switches."""
    return fat_tree(16)


def incast_pairs(flows: int) -> tuple[list[int], list[int]]:
    """Return sources 8..8 + flows - 1 and target 0 for each."""
    return list(range(8, 8 + flows)), [0] * flows


def all_to_all_pairs(ranks: int) -> tuple[list[int], list[int]]:
    """Return every pair: rank s sends to (s + k) mod ranks for k = 1.. in this order."""
    pairs = [(s, (s + k) % ranks) for s in range(ranks) for k in range(1, ranks)]
    return [s for s, _ in pairs], [d for _, d in pairs]


def permutation_pairs(hosts: int, seed: int = 1) -> tuple[list[int], list[int]]:
    """Return a cyclic permutation by Sattolo's algorithm."""
    rng, target = Random(seed), list(range(hosts))  # noqa: S311 - no secret
    for i in range(hosts - 1, 0, -1):
        j = rng.randrange(i)
        target[i], target[j] = target[j], target[i]
    return list(range(hosts)), target


def uplinks(topology: Topology, node: int) -> NDArray[np.int64]:
    """Return a switch's egress ports to the tier above."""
    ports = np.arange(topology.node_first_port[node], topology.node_first_port[node + 1])
    above = topology.node_tier[topology.port_node[topology.port_peer[ports]]] > topology.node_tier[node]
    return ports[above]
