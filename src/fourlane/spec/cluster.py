"""What a cluster is made of: servers, their NICs, the switches and cables of each network.

Read from TOML by `fourlane.spec.load.load_cluster`. A cluster has an `hpn`, the network of its GPUs, and
may have a `dcn`, a second one that carries KV cache, storage and everything else. Not for what a switch
model or a NIC model can do (`fourlane.spec.hardware`), nor for how traffic is treated (`fourlane.lanes`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fourlane.units import Length, Rate, Size

__all__ = ["Cluster", "Network", "NetworkName", "SwitchOs", "Tier"]

NetworkName = Literal["hpn", "dcn"]
SwitchOs = Literal["sonic", "cumulus", "eos", "linux"]


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Like switches in one place of a network.

    `down_ports` face servers (leaf) or leaves (spine), `up_ports` the tier above; both count
    ports in use on one switch. A leaf's down ports run at the rate of the network's NICs, a
    spine's down ports at the leaves' `up_rate` over cables of the leaves' `up_cable`.
    """

    switch: str
    os: SwitchOs = "sonic"
    count: int
    down_ports: int
    up_ports: int = 0
    up_rate: Rate | None = None
    down_cable: Length = Length.parse("5m")
    up_cable: Length | None = None


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network: the NIC ports of every server on it, and its switches.

    `interfaces` are the names a server's operating system gives those ports, the same on every
    server; `devices` their RDMA devices in the same order (empty: none). `fabric` says what
    runs on the wire: RoCE, InfiniBand, elastic RDMA over a VPC, or plain Ethernet.
    """

    nic: str
    rate: Rate
    interfaces: tuple[str, ...]
    devices: tuple[str, ...] = ()
    fabric: Literal["roce", "infiniband", "erdma", "ethernet"] = "roce"
    gid_index: int = 3
    mtu: Size = Size(9000)
    leaf: Tier
    spine: Tier | None = None


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Like servers on one or two networks."""

    name: str
    servers: int
    gpus_per_server: int = 8
    hpn: Network
    dcn: Network | None = None

    def networks(self) -> dict[NetworkName, Network]:
        """Return the networks there are, by name, in a fixed order."""
        found: dict[NetworkName, Network] = {"hpn": self.hpn}
        if self.dcn is not None:
            found["dcn"] = self.dcn
        return found
