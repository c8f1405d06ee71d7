"""A topology: hosts, switches and cables as arrays, the same for both simulators.

A host is a GPU with its NIC ports and its NVLink port (or a NIC alone, where several GPUs share it). A port is a
directed egress port; the ports of a node are contiguous, and `port_peer` is the port at the cable's other end. An
endpoint, the source or destination of a flow, is a host's egress port: it names host and network at once.

Made by `fourlane.twin.fabric.builders` and `fourlane.twin.fabric.cluster_topology`. Not for what becomes of packets,
nor for buffers of traffic classes, which a lane plan gives (`fourlane.twin.fabric.scenario`).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["HOST", "LEAF", "NVLINK", "SPINE", "SUPERSPINE", "Topology"]

HOST, LEAF, SPINE, SUPERSPINE = range(4)
"""Values of `node_tier`. An NVSwitch is a leaf of the network "nvlink"."""
NVLINK = "nvlink"
_LABELS = ("host", "leaf", "spine", "superspine", "nvswitch")
_NAME = re.compile(r"([a-z]+)(\d+)")


@dataclass(frozen=True, eq=False)
class Topology:
    """Nodes and ports; never changed after it is built (arrays are read-only).

    Attributes:
        name: what was built.
        networks: names of the networks a host may have ports in; planes of one network have names of their own.
        models: names of switch models, which `node_model` points into.
        node_kind: u8 [nodes], 0 host, 1 switch. Hosts come first: host h is node h.
        node_tier: u8 [nodes]: HOST, LEAF, SPINE, SUPERSPINE.
        node_latency: i64 [nodes], ps from ingress to egress queue.
        node_cut_through: u8 [nodes].
        node_buffer: i64 [nodes], bytes of packet buffer; 0 for hosts, which have no limit.
        node_network: i16 [nodes], which network a switch belongs to; -1 for hosts.
        node_model: i16 [nodes], which of `models`; -1 for none.
        node_pod: i32 [nodes], the pod a switch or host stands in; -1 where it belongs to all.
        node_first_port: i32 [nodes + 1].
        port_node: i32 [ports].
        port_peer: i32 [ports].
        port_rate: i64 [ports], bit/s.
        port_prop: i64 [ports], ps: cable and FEC.
        port_length: i64 [ports], mm of cable; 0 where only a delay was given.
        port_tx_latency: i64 [ports], ps in the NIC before serialisation; host ports only.
        port_rx_latency: i64 [ports], ps in the NIC after the tail arrived; host ports only.
        port_message_gap: i64 [ports], ps a message costs the NIC beside its bytes; host ports only.
        port_network: i16 [ports].
        host_server: i32 [hosts].
        gpu_host: i32 [gpus], the host a GPU sends through; one GPU a host where nothing was said of GPUs.
        endpoint_of: i32 [networks, hosts], the host's port in each network; -1 for none.
    """

    name: str
    networks: tuple[str, ...]
    models: tuple[str, ...]
    node_kind: NDArray[np.uint8]
    node_tier: NDArray[np.uint8]
    node_latency: NDArray[np.int64]
    node_cut_through: NDArray[np.uint8]
    node_buffer: NDArray[np.int64]
    node_network: NDArray[np.int16]
    node_model: NDArray[np.int16]
    node_pod: NDArray[np.int32]
    node_first_port: NDArray[np.int32]
    port_node: NDArray[np.int32]
    port_peer: NDArray[np.int32]
    port_rate: NDArray[np.int64]
    port_prop: NDArray[np.int64]
    port_length: NDArray[np.int64]
    port_tx_latency: NDArray[np.int64]
    port_rx_latency: NDArray[np.int64]
    port_message_gap: NDArray[np.int64]
    port_network: NDArray[np.int16]
    host_server: NDArray[np.int32]
    gpu_host: NDArray[np.int32]
    endpoint_of: NDArray[np.int32]

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def nodes(self) -> int:
        """Return how many hosts and switches there are."""
        return len(self.node_kind)

    @property
    def hosts(self) -> int:
        """Return how many hosts there are."""
        return len(self.host_server)

    @property
    def ports(self) -> int:
        """Return how many ports there are, both ends of every cable."""
        return len(self.port_node)

    @property
    def gpus(self) -> int:
        """Return how many GPUs there are."""
        return len(self.gpu_host)

    @cached_property
    def port_ps_q16(self) -> NDArray[np.int64]:
        """Return ps a byte takes on each port, times 65,536, rounded."""
        scaled = 8 * 10**12 * 65536
        rates, place = np.unique(self.port_rate, return_inverse=True)
        return np.array([(scaled + int(rate) // 2) // int(rate) for rate in rates], dtype=np.int64)[place]

    @cached_property
    def switch_index(self) -> NDArray[np.int32]:
        """Return [nodes]: the place of each switch among the switches; -1 for hosts."""
        return _numbered(self.node_kind == 1)

    @cached_property
    def leaf_index(self) -> NDArray[np.int32]:
        """Return [nodes]: the place of each switch with hosts among those; -1 for others."""
        with_hosts = np.zeros(self.nodes, dtype=bool)
        to_hosts = self.node_kind[self.port_node[self.port_peer]] == 0
        with_hosts[self.port_node[to_hosts]] = True
        return _numbered(with_hosts & (self.node_kind == 1))

    @property
    def switches(self) -> int:
        """Return how many switches there are, NVSwitches among them."""
        return self.nodes - self.hosts

    @property
    def leaves(self) -> int:
        """Return how many switches have hosts."""
        return int(self.leaf_index.max()) + 1

    @cached_property
    def _label(self) -> NDArray[np.uint8]:
        nvlink = np.array([name == NVLINK for name in (*self.networks, "")])
        return np.where(nvlink[self.node_network], len(_LABELS) - 1, self.node_tier).astype(np.uint8)

    @cached_property
    def _first_of(self) -> dict[str, tuple[int, int]]:
        """Return the first node and the number of nodes by label; nodes of a label are contiguous."""
        found = [np.flatnonzero(self._label == code) for code in range(len(_LABELS))]
        return {label: (int(nodes[0]), len(nodes)) for label, nodes in zip(_LABELS, found, strict=True) if len(nodes)}

    def node_name(self, node: int) -> str:
        """Return "host12", "leaf3", "spine0", "superspine1", "nvswitch7"."""
        label = _LABELS[self._label[node]]
        return f"{label}{node - self._first_of[label][0]}"

    def node_named(self, name: str) -> int:
        """Return the node of a name such as "leaf3".

        Raises:
            SpecError: there is none.
        """
        match = _NAME.fullmatch(name)
        label, number = (match[1], int(match[2])) if match else (name, -1)
        first, count = self._first_of.get(label, (0, 0))
        if not 0 <= number < count:
            spans = [f"{each}0..{each}{total - 1}" for each, (_, total) in self._first_of.items()]
            close = difflib.get_close_matches(label, self._first_of, n=1) if count == 0 else []
            hint = f' (did you mean "{close[0]}{max(number, 0)}"?)' if close else ""
            raise SpecError(f'{self.name}: expected one of {", ".join(spans)}, got "{name}"{hint}')
        return first + number

    def endpoint(self, host: int, network: int | str = 0) -> int:
        """Return the port of a host in a network, given by place or name.

        Raises:
            SpecError: no such host or network, or the host has no port in it.
        """
        if not 0 <= host < self.hosts:
            raise SpecError(f"{self.name}: expected a host from 0 to {self.hosts - 1}, got {host}")
        place = self.networks.index(network) if network in self.networks else network
        if not isinstance(place, int) or not 0 <= place < len(self.networks):
            raise SpecError(f'{self.name}: expected one of the networks {", ".join(self.networks)}, got "{network}"')
        port = int(self.endpoint_of[place, host])
        if port < 0:
            raise SpecError(f"{self.name}: host {host} has no port in network {self.networks[place]}")
        return port

    def links_between(self, one: int, other: int) -> NDArray[np.int32]:
        """Return the egress ports at node `one` whose cable ends at node `other`, and then those at `other`."""
        ports = np.arange(self.node_first_port[one], self.node_first_port[one + 1], dtype=np.int32)
        there = ports[self.port_node[self.port_peer[ports]] == other]
        return np.concatenate([there, self.port_peer[there]])

    def ports_of(self, node: int) -> NDArray[np.int32]:
        """Return the ports of a node and the ports at the other end of its cables: all that fails with it."""
        ports = np.arange(self.node_first_port[node], self.node_first_port[node + 1], dtype=np.int32)
        return np.concatenate([ports, self.port_peer[ports]])

    def ports_up(self, failed: Iterable[int] = ()) -> NDArray[np.uint8]:
        """Return u8 [ports]: 0 for failed ports and for the other ends of their cables, 1 for all others."""
        up = np.ones(self.ports, dtype=np.uint8)
        down = np.fromiter(failed, dtype=np.int64)
        up[down] = 0
        up[self.port_peer[down]] = 0
        return up

    def replaced(self, **arrays: NDArray[np.int64]) -> Topology:
        """Return the topology with other arrays, such as `port_message_gap`, of the same shape.

        Raises:
            SpecError: an array's shape differs from the present one's.
        """
        for name, array in arrays.items():
            shape = getattr(self, name).shape
            if array.shape != shape:
                raise SpecError(f"{self.name}: {name}: expected an array of shape {shape}, got {array.shape}")
        return replace(self, **{name: array.copy() for name, array in arrays.items()})  # type: ignore[arg-type]


def _numbered(chosen: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the place of each chosen one among the chosen, -1 for the others."""
    return np.where(chosen, np.cumsum(chosen) - 1, -1).astype(np.int32)
