"""What a cluster is made of: servers, their NICs, the switches and cables of each network.

Read from TOML by `fourlane.spec.load.load_cluster`. A cluster has an `hpn`, the network of its GPUs, and
may have a `dcn`, a second one that carries KV cache, storage and everything else. Not for what a switch
model or a NIC model can do (`fourlane.spec.hardware`), nor for how traffic is treated (`fourlane.lanes`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fourlane.units import Duration, Length, Rate, Size

__all__ = ["Cluster", "Network", "NetworkName", "SwitchOs", "Tier", "TierName"]

NetworkName = Literal["hpn", "dcn"]
TierName = Literal["leaf", "spine", "superspine"]
SwitchOs = Literal["sonic", "cumulus", "eos", "linux"]


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Like switches in one place of a network.

    `down_ports` face the tier below (servers, leaves, spines), `up_ports` the tier above; both
    count ports in use on one switch. A leaf's down ports run at the rate of the network's NICs,
    another tier's at the `up_rate` of the tier below over cables of its `up_cable`. `count` is
    of all planes and pods together. `latency`, from port to port when idle, is that of the
    switch's chip in the catalog unless given.
    """

    switch: str
    os: SwitchOs = "sonic"
    count: int
    down_ports: int
    up_ports: int = 0
    up_rate: Rate | None = None
    down_cable: Length = Length.parse("5m")
    up_cable: Length | None = None
    latency: Duration | None = None


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network: the NIC ports of every server on it, and its switches.

    `interfaces` are the names a server's operating system gives those ports, the same on every
    server; `devices` their RDMA devices in the same order (empty: none). `fabric` says what
    runs on the wire: RoCE, InfiniBand, elastic RDMA over a VPC, or plain Ethernet; `link` the
    kind of cable and coding, for its delay.

    A NIC has a port in each of `planes` disjoint networks of like switches; `interfaces` then names
    NIC by NIC each one's ports, plane by plane. NIC r of every server stands on a leaf of rail r (or, with
    fewer leaves than rails, several rails share a leaf). Servers, leaves and spines are cut into
    `pods` of equal size, in which every leaf reaches every spine; a superspine tier joins pods.
    With `spines = "per-rail"` each rail has spines of its own, and without a superspine tier rails
    are networks apart, joined only inside servers.
    """

    nic: str
    rate: Rate
    interfaces: tuple[str, ...]
    devices: tuple[str, ...] = ()
    fabric: Literal["roce", "infiniband", "erdma", "ethernet"] = "roce"
    gid_index: int = 3
    mtu: Size = Size(9000)
    planes: int = 1
    pods: int = 1
    spines: Literal["shared", "per-rail"] = "shared"
    link: str = "pam4-rs544"
    leaf: Tier
    spine: Tier | None = None
    superspine: Tier | None = None

    def tiers(self) -> dict[TierName, Tier]:
        """Return the tiers of switches there are, from below, by name."""
        found: dict[TierName, Tier] = {"leaf": self.leaf}
        if self.spine is not None:
            found["spine"] = self.spine
        if self.superspine is not None:
            found["superspine"] = self.superspine
        return found


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Like servers on one or two networks.

    `gpu` is their model; with one, the GPUs of a server are joined by NVLink.
    """

    name: str
    servers: int
    gpus_per_server: int = 8
    gpu: str | None = None
    hpn: Network
    dcn: Network | None = None

    def networks(self) -> dict[NetworkName, Network]:
        """Return the networks there are, by name, in a fixed order."""
        found: dict[NetworkName, Network] = {"hpn": self.hpn}
        if self.dcn is not None:
            found["dcn"] = self.dcn
        return found
