"""How busy ports are, by queue and by tier, from what their queues carry: the same for rates and for times."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fourlane.twin.fabric.topology import NVLINK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fourlane.twin.fabric.topology import Topology

    Doubles = NDArray[np.float64]

__all__ = ["LinkUse", "PortUse", "TierUse"]

_TIERS = ("host", "leaf", "spine", "superspine")


class LinkUse(NamedTuple):
    """A port: "leaf3 -> spine1", the share of its rate in use, and that of each queue."""

    port: int
    name: str
    share: float
    queues: dict[str, float]


class TierUse(NamedTuple):
    """Ports of a network from one tier to the next: "leaf to spine". Shares of their rate, idle ports included.

    `queues`: of the mean, by queue.
    """

    network: str
    tiers: str
    ports: int
    mean: float
    most: float
    queues: dict[str, float]


class PortUse:
    """What the ports of a topology carry.

    Args:
        topology: whose ports.
        queue_names: of its queues.
        rate_PQ: [ports, queues], bytes a second on the wire.
    """

    def __init__(self, topology: Topology, queue_names: Sequence[str], rate_PQ: Doubles) -> None:
        self.topology = topology
        self.queue_names = tuple(queue_names)
        self.rate_PQ = rate_PQ

    @cached_property
    def queue_share(self) -> Doubles:
        """Return the share of each port's rate that each of its queues takes, [ports, queues]."""
        return self.rate_PQ * 8 / self.topology.port_rate[:, None]

    @cached_property
    def share(self) -> Doubles:
        """Return the share of each port's rate that is in use, [ports]."""
        return self.queue_share.sum(axis=1)

    def busiest(self, most: int = 10, *, between_switches: bool = False) -> list[LinkUse]:
        """Return the ports most in use, the busiest first; perhaps only those between switches."""
        topology = self.topology
        share = self.share.copy()
        if between_switches:
            at_host = topology.node_kind[topology.port_node] == 0
            share[at_host | at_host[topology.port_peer]] = 0
        return [self._link(int(port)) for port in np.argsort(-share, kind="stable")[:most] if share[port] > 0]

    def tiers(self) -> list[TierUse]:
        """Return the use of each network's ports, tier by tier, upwards and downwards."""
        topology = self.topology
        here = topology.node_tier[topology.port_node].astype(np.int64)
        there = here[topology.port_peer]
        key = (topology.port_network.astype(np.int64) * 4 + here) * 4 + there
        found = []
        for each in np.unique(key).tolist():
            ports = key == each
            network = topology.networks[each // 16]
            ends = [("NVSwitch" if network == NVLINK and tier else _TIERS[tier]) for tier in (each // 4 % 4, each % 4)]
            share = self.share[ports]
            queues = self._named(self.queue_share[ports].mean(axis=0))
            tiers = " to ".join(ends)
            found.append(TierUse(network, tiers, int(ports.sum()), float(share.mean()), float(share.max()), queues))
        return found

    def _named(self, shares: Doubles) -> dict[str, float]:
        return {name: float(share) for name, share in zip(self.queue_names, shares, strict=True) if share > 0}

    def _link(self, port: int) -> LinkUse:
        topology = self.topology
        ends = [topology.node_name(int(topology.port_node[each])) for each in (port, topology.port_peer[port])]
        return LinkUse(port, " -> ".join(ends), float(self.share[port]), self._named(self.queue_share[port]))
