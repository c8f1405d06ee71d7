"""Put a topology together: kinds of nodes, then cables, then arrays with ports in their final order.

For the builders. A node's ports stand in the order its cables were laid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fourlane.twin.fabric.topology import HOST, Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Cable", "Draft", "Gear", "Nic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gear:
    """What like switches are: latency in ps, buffer in bytes."""

    latency: int
    buffer: int
    cut_through: bool = False
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cable:
    """What like cables are: bit/s, ps of delay (FEC included), mm."""

    rate: int
    prop: int
    length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """What the host ports of a network are: ps before and after the wire, ps a message."""

    tx_latency: int = 0
    rx_latency: int = 0
    message_gap: int = 0


@dataclass(slots=True)
class Draft:
    """A topology being put together, hosts first."""

    name: str
    host_server: NDArray[np.int32]
    host_pod: NDArray[np.int32]
    gpu_host: NDArray[np.int32]
    networks: list[str] = field(default_factory=list)
    _models: list[str] = field(default_factory=list)
    _nodes: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)
    _links: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)
    _nics: list[Nic] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        hosts = len(self.host_server)
        self._add_nodes(hosts, kind=0, tier=HOST, latency=0, cut_through=0, buffer=0, network=-1, model=-1)
        self._nodes["pod"] = [self.host_pod.astype(np.int64)]

    def network(self, name: str, nic: Nic) -> int:
        """Begin a network and return its place."""
        self.networks.append(name)
        self._nics.append(nic)
        return len(self.networks) - 1

    def switches(self, count: int, gear: Gear, *, tier: int, network: int, pod: NDArray[np.int64]) -> int:
        """Add like switches and return the first one's node; `pod` is -1 where one serves all pods."""
        if gear.model and gear.model not in self._models:
            self._models.append(gear.model)
        first = self._count
        self._add_nodes(
            count,
            kind=1,
            tier=tier,
            latency=gear.latency,
            cut_through=int(gear.cut_through),
            buffer=gear.buffer,
            network=network,
            model=self._models.index(gear.model) if gear.model else -1,
        )
        self._nodes["pod"].append(np.asarray(pod, dtype=np.int64))
        return first

    def _add_nodes(self, count: int, **values: int) -> None:
        for name, value in values.items():
            self._nodes.setdefault(name, []).append(np.full(count, value, dtype=np.int64))
        self._count += count

    def cables(self, one: NDArray[np.int64], other: NDArray[np.int64], cable: Cable, *, network: int) -> None:
        """Lay like cables between nodes `one` and `other`, element by element."""
        laid = {"rate": cable.rate, "prop": cable.prop, "length": cable.length, "network": network}
        self._links.setdefault("ends", []).append(np.stack([one, other], axis=1))
        for name, value in laid.items():
            self._links.setdefault(name, []).append(np.full(len(one), value, dtype=np.int64))

    def finish(self) -> Topology:
        """Return the topology."""
        nodes = {name: np.concatenate(parts) for name, parts in self._nodes.items()}
        links = {name: np.concatenate(parts) for name, parts in self._links.items()}
        ends = links.pop("ends").reshape(-1)  # half cables: 2c and 2c + 1 are the ends of cable c
        order = np.argsort(ends, kind="stable")
        port_of = np.empty(len(ends), dtype=np.int32)
        port_of[order] = np.arange(len(ends), dtype=np.int32)
        port_node = ends[order].astype(np.int32)
        port = {name: np.repeat(values, 2)[order] for name, values in links.items()}
        first = np.searchsorted(port_node, np.arange(self._count + 1)).astype(np.int32)
        at_host = port_node < len(self.host_server)
        return Topology(
            name=self.name,
            networks=tuple(self.networks),
            models=tuple(self._models),
            node_kind=nodes["kind"].astype(np.uint8),
            node_tier=nodes["tier"].astype(np.uint8),
            node_latency=nodes["latency"],
            node_cut_through=nodes["cut_through"].astype(np.uint8),
            node_buffer=nodes["buffer"],
            node_network=nodes["network"].astype(np.int16),
            node_model=nodes["model"].astype(np.int16),
            node_pod=nodes["pod"].astype(np.int32),
            node_first_port=first,
            port_node=port_node,
            port_peer=port_of[order ^ 1],
            port_rate=port["rate"],
            port_prop=port["prop"],
            port_length=port["length"],
            port_tx_latency=self._of_nic("tx_latency", port["network"], at_host),
            port_rx_latency=self._of_nic("rx_latency", port["network"], at_host),
            port_message_gap=self._of_nic("message_gap", port["network"], at_host),
            port_network=port["network"].astype(np.int16),
            host_server=self.host_server.astype(np.int32),
            gpu_host=self.gpu_host.astype(np.int32),
            endpoint_of=self._endpoints(port_node, port["network"], at_host),
        )

    def _of_nic(self, name: str, network: NDArray[np.int64], at_host: NDArray[np.bool_]) -> NDArray[np.int64]:
        values = np.array([getattr(nic, name) for nic in self._nics], dtype=np.int64)
        return np.where(at_host, values[network], 0)

    def _endpoints(
        self, port_node: NDArray[np.int32], network: NDArray[np.int64], at_host: NDArray[np.bool_]
    ) -> NDArray[np.int32]:
        found = np.full((len(self.networks), len(self.host_server)), -1, dtype=np.int32)
        ports = np.flatnonzero(at_host)
        found[network[ports], port_node[ports]] = ports
        return found
