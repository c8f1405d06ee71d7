"""What a lab is made of: hosts, the networks between them, every interface with a queue. Values only.

A network is a star (one switch) or a leaf-spine (two leaves, two spines). Interfaces have the same names
everywhere: in a host, the network's name; on a switch, `to-HOST`, `up-SPINE` or `down-LEAF`.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from fourlane.errors import SpecError
from fourlane.spec.cluster import NetworkName
from fourlane.units import Duration, Rate

__all__ = ["Network", "Port", "Topology", "leaf_spine", "star"]

NUMBER: dict[NetworkName, int] = {"hpn": 1, "dcn": 2}
MOST_HOSTS = 32
LEAVES = SPINES = 2


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One network: its shape, the rate of every link, and how TCP behaves on it.

    `mtu` is that of every interface, in bytes: with packets of 9000 the machine forwards a sixth of as many, so that
    more of its links are busy at once before its processors are what is measured.
    `ecn` says whether senders ask for ECN; `spread` whether the leaves of a leaf-spine spread packets over the
    spines one by one instead of flow by flow.
    """

    name: NetworkName
    shape: Literal["star", "leaf-spine"] = "star"
    rate: Rate = Rate.parse("500Mbps")
    mtu: int = 1500
    congestion: str = "cubic"
    rto_min: Duration = Duration.parse("5ms")
    ecn: bool = False
    spread: bool = False


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """One interface that sends at its network's rate: in which namespace, called what, towards whom."""

    namespace: str
    interface: str
    network: NetworkName
    kind: Literal["nic", "switch", "up", "down"]
    towards: str


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts, each with one interface into every network."""

    hosts: tuple[str, ...]
    networks: tuple[Network, ...]

    def __post_init__(self) -> None:
        faults = [
            f"lab: host {host!r}: expected a letter, then up to 8 letters and digits"
            for host in self.hosts
            if re.fullmatch(r"[a-z][a-z0-9]{0,8}", host) is None
        ]
        if len(set(self.hosts)) != len(self.hosts):
            faults.append(f"lab: hosts: expected different names, got {', '.join(self.hosts)}")
        if not 2 <= len(self.hosts) <= MOST_HOSTS:
            faults.append(f"lab: hosts: expected 2 to {MOST_HOSTS}, got {len(self.hosts)}")
        if faults:
            raise SpecError(*faults)

    def network(self, name: NetworkName) -> Network:
        """Return a network by name."""
        return next(network for network in self.networks if network.name == name)

    def switches(self, name: NetworkName) -> tuple[str, ...]:
        """Return the names of a network's switches: leaves first."""
        if self.network(name).shape == "star":
            return (f"{name}-switch",)
        return (*(f"{name}-leaf{leaf}" for leaf in range(LEAVES)), *(f"{name}-spine{n}" for n in range(SPINES)))

    def namespaces(self) -> tuple[str, ...]:
        """Return the names of all hosts and switches."""
        return (*self.hosts, *(switch for network in self.networks for switch in self.switches(network.name)))

    def leaf(self, host: str) -> int:
        """Return the leaf a host is at: the first half of the hosts at leaf 0, the others at leaf 1."""
        return self.hosts.index(host) * LEAVES // len(self.hosts)

    def switch(self, host: str, name: NetworkName) -> str:
        """Return the switch a host's interface leads to."""
        switches = self.switches(name)
        return switches[0] if len(switches) == 1 else switches[self.leaf(host)]

    def address(self, host: str, name: NetworkName) -> str:
        """Return a host's IPv4 address: 10.201.0.0/16 is the hpn, 10.202.0.0/16 the dcn."""
        return f"10.{200 + NUMBER[name]}.{self._rack(host, name)}.{self.hosts.index(host) + 1}"

    def address6(self, host: str, name: NetworkName) -> str:
        """Return a host's IPv6 address."""
        return f"fd4c:{NUMBER[name]}:{self._rack(host, name)}::{self.hosts.index(host) + 1:x}"

    def _rack(self, host: str, name: NetworkName) -> int:
        return self.leaf(host) if self.network(name).shape == "leaf-spine" else 0

    def nic(self, host: str, name: NetworkName) -> Port:
        """Return the interface by which a host sends."""
        return Port(namespace=host, interface=name, network=name, kind="nic", towards=self.switch(host, name))

    def switch_port(self, host: str, name: NetworkName) -> Port:
        """Return the interface by which a switch sends to a host."""
        return Port(
            namespace=self.switch(host, name), interface=f"to-{host}", network=name, kind="switch", towards=host
        )

    def ports(self, name: NetworkName | None = None) -> tuple[Port, ...]:
        """Return every interface that sends, of one network or of all."""
        found: list[Port] = []
        for network in self.networks:
            if name in (None, network.name):
                found += [self.nic(host, network.name) for host in self.hosts]
                found += [self.switch_port(host, network.name) for host in self.hosts]
                if network.shape == "leaf-spine":
                    found += self._between_switches(network.name)
        return tuple(found)

    def _between_switches(self, name: NetworkName) -> list[Port]:
        leaves, spines = self.switches(name)[:LEAVES], self.switches(name)[LEAVES:]
        found = []
        for leaf, at in enumerate(leaves):
            for spine, above in enumerate(spines):
                found.append(Port(namespace=at, interface=f"up-{spine}", network=name, kind="up", towards=above))
                found.append(Port(namespace=above, interface=f"down-{leaf}", network=name, kind="down", towards=at))
        return found


def star(
    hosts: int | tuple[str, ...] = 4, *, rate: Rate | None = None, mtu: int = 1500, dcn_ecn: bool = False
) -> Topology:
    """Return a lab of one switch a network; 500 Mbit/s a link unless told otherwise."""
    speed = rate or Network(name="hpn").rate
    networks = (Network(name="hpn", rate=speed, mtu=mtu), Network(name="dcn", rate=speed, mtu=mtu, ecn=dcn_ecn))
    return Topology(hosts=_names(hosts), networks=networks)


def leaf_spine(hosts: int | tuple[str, ...] = 4, *, rate: Rate | None = None, spread: bool = False) -> Topology:
    """Return a lab whose hpn has two leaves and two spines; 200 Mbit/s a link unless told otherwise.

    Six shaped hops a packet are as much as two cores forward exactly at that rate; 500 Mbit/s are too much.
    """
    speed = rate or Rate.parse("200Mbps")
    networks = (
        Network(name="hpn", shape="leaf-spine", rate=speed, spread=spread),
        Network(name="dcn", rate=speed),
    )
    return Topology(hosts=_names(hosts), networks=networks)


def _names(hosts: int | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"h{number}" for number in range(hosts)) if isinstance(hosts, int) else hosts
