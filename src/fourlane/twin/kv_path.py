"""How KV cache gets from a prefill to a decode rank: rates, latency, and what it and expert traffic cost each other.

A rank has its share of its server's NICs on the network of the KV lane. Where that is the experts' network, its lane's
cap and weight bound it, and what it carries is a background to exchanges (`ExchangeTable.with_background`). Not for
transfers one by one, nor for the network between the NICs (`fourlane.twin.serving`, `fourlane.twin.flow_level`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fourlane.spec.hardware import latencies, switch_models
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.spec.cluster import Cluster, Network
    from fourlane.twin.exchange.lanes import LanesCase

__all__ = ["KvPath", "kv_path", "path_latency_s"]

_RDMA = 0.87, "87 GB/s of 4 x 200G by RDMA (Mooncake transfer engine, its paper's figure)"
_TCP = 0.36, "TCP assumed 2.4 times slower than 87 GB/s of 4 x 200G (the least of Mooncake's figures)"
_PS = 1e-12
_WAYS = 2
"""Of the network: the data's, and that of the word that it is there."""


@dataclass(frozen=True, slots=True)
class KvPath:
    """The way of KV cache.

    Units:
        line_rate: bytes a second of a rank's NICs on its network; out_rate, in_rate: what a transfer gets of it, out of
        a prefill rank and into a decode rank, alone; latency_s: from the last byte's sending until the decode rank
        knows of it.

    Args:
        network: "hpn" or "dcn".
        shared: with expert traffic.
        squeezed: share of its rate alone that a transfer keeps while expert traffic wants the whole NIC.
        source: in words.
    """

    network: str
    shared: bool
    line_rate: float
    out_rate: float
    in_rate: float
    latency_s: float
    squeezed: float
    source: str

    def seconds(self, size: float) -> float:
        """Return what a transfer of so many bytes takes alone."""
        return self.latency_s + size / min(self.out_rate, self.in_rate)

    def exposed_s(self, size: float, computing_s: float, layers: int) -> float:
        """Return what is left of a transfer once the prompt is computed, each layer being sent when it is done.

        Args:
            size: bytes of all layers.
            computing_s: of the prompt.
            layers: of the model, alike.
        """
        sending = size / min(self.out_rate, self.in_rate)
        return self.latency_s + max(sending / layers, sending - computing_s * (layers - 1) / layers)

    def background(self, rate: float) -> float:
        """Return which share of a rank's NIC so many bytes of KV a second take beside expert traffic.

        0 where KV cache has a network of its own.
        """
        return rate / self.line_rate if self.shared else 0.0

    def beside(self, exchanging: float) -> KvPath:
        """Return the path beside expert traffic that wants all of the NIC for a share of the time.

        Args:
            exchanging: that share, 0 to 1; of no account where KV cache has a network of its own.
        """
        if not self.shared or not exchanging:
            return self
        kept = 1.0 - min(exchanging, 1.0) * (1.0 - self.squeezed)
        source = f"{self.source}; beside exchanges {exchanging:.0%} of the time, {kept:.2f} of it"
        return replace(self, out_rate=self.out_rate * kept, in_rate=self.in_rate * kept, source=source)


def kv_path(cluster: Cluster, lanes: LanesCase) -> KvPath:
    """Return the way of KV cache on a cluster, by its lane.

    Elastic RDMA is taken to move as much of the NIC's rate as RDMA on a network of one's own does, as Baidu reports of
    its KV library. Of TCP and RDMA, the share of the line rate that transfers reach is published; nothing is fitted.
    """
    name = lanes.kv_network
    network = cluster.networks()[name]
    shared = name == "hpn"
    efficiency, words = _TCP if network.fabric == "ethernet" else _RDMA
    line = int(network.rate) / 8 * len(network.interfaces) / max(1, cluster.gpus_per_server)
    cap, squeezed = _lane(lanes) if shared else (1.0, 1.0)
    rate = line * min(efficiency, cap)
    bound = f", its lane's cap {cap:.0%}" if cap < efficiency else ""
    return KvPath(
        network=name,
        shared=shared,
        line_rate=line,
        out_rate=rate,
        in_rate=rate,
        latency_s=_WAYS * path_latency_s(network),
        squeezed=min(1.0, squeezed * line / rate),
        source=f"{line / 1e9:.1f} GB/s of NICs a GPU on the {name.upper()} of {cluster.name}; {words}{bound}",
    )


def path_latency_s(network: Network) -> float:
    """Return the time of a first byte along a network's longest path when idle: NICs, cables, switches."""
    known = latencies()
    nic, link = known.nics[network.nic], known.links[network.link]
    total, above = int(nic.tx) + int(nic.rx), list(network.tiers().values())
    for place, tier in enumerate(above):
        chip = known.chips[switch_models()[tier.switch].chip].latency
        passed = 2 if place < len(above) - 1 else 1
        total += passed * int(chip if tier.latency is None else tier.latency)
        cable = network.leaf.down_cable if place == 0 else (above[place - 1].up_cable or network.leaf.down_cable)
        total += 2 * int(link.delay(cable))
    return total * _PS


def _lane(lanes: LanesCase) -> tuple[float, float]:
    """Return the cap of a KV lane, and what it keeps beside expert traffic, as shares of the NIC.

    In a shared queue both get as much as they send: half each while both want everything.
    """
    if lanes.plan is None or lanes.queue == "shared":
        return 1.0, 0.5
    kv, expert = lanes.plan.classes[TrafficClass.KV], lanes.plan.classes[TrafficClass.EXPERT]
    cap = 1.0 if kv.cap is None else kv.cap / 100
    if kv.weight is None:
        return cap, cap
    if expert.weight is None:
        return cap, 1.0 - (1.0 if expert.cap is None else expert.cap / 100)
    return cap, min(cap, kv.weight / (kv.weight + expert.weight))
