"""The text that `ip -batch` reads to join a lab's namespaces: interfaces, bridges, addresses, routes.

Text only; `network.py` runs it. Every link is a veth pair. Segmentation offload is off (`gso_max_segs 1`): with
it on, a queue would let whole super-packets of 64 KB pass on credit, and short messages would not be shaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lab.topology import LEAVES, NUMBER, SPINES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.lab.topology import Network, Topology
    from fourlane.spec.cluster import NetworkName

__all__ = ["host_batch", "spreading_batch", "switch_batch", "switch_settings"]

BRIDGE = "hosts"
SPREADING = 1
"""The preference of the filters that spread packets."""


def switch_batch(topology: Topology, switch: str, holders: Mapping[str, int]) -> list[str]:
    """Return the lines for a switch's namespace: its interfaces, the hosts' ends included.

    Args:
        holders: process ids that say which namespace is which.
    """
    network = next(network for network in topology.networks if switch in topology.switches(network.name))
    place = topology.switches(network.name).index(switch)
    if network.shape == "leaf-spine" and place >= LEAVES:
        return _spine_batch(network, place - LEAVES)
    hosts = [host for host in topology.hosts if topology.switch(host, network.name) == switch]
    lines = [f"link add name {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"]
    if network.shape == "leaf-spine":
        lines += [f"link set {BRIDGE} address {_leaf_mac(network.name, place)}"]
    for host in hosts:
        port = f"to-{host}"
        lines += [
            (
                f"link add name {port} address {_port_mac(topology, host, network.name)} type veth "
                f"peer name {network.name} address {_host_mac(topology, host, network.name)} netns {holders[host]}"
            ),
            f"link set {port} mtu {network.mtu} gso_max_segs 1 addrgenmode none master {BRIDGE} up",
        ]
    lines.append(f"link set {BRIDGE} addrgenmode none up")
    if network.shape == "leaf-spine":
        lines += _leaf_uplinks(topology, network, place, holders)
    return lines


def host_batch(topology: Topology, host: str) -> list[str]:
    """Return the lines for a host's namespace: its addresses, and routes that say how TCP behaves on each network.

    IPv6 is there on stars only.
    """
    lines: list[str] = []
    for network in topology.networks:
        name, leaf = network.name, topology.leaf(host)
        manner = f"congctl {network.congestion} rto_min {_milliseconds(network)}"
        manner += " features ecn" if network.ecn else ""
        rack = leaf if network.shape == "leaf-spine" else 0
        lines += [
            f"link set {name} mtu {network.mtu} gso_max_segs 1 addrgenmode none up",
            f"address add {topology.address(host, name)}/24 dev {name} noprefixroute",
            f"route add 10.{200 + NUMBER[name]}.{rack}.0/24 dev {name} src {topology.address(host, name)} {manner}",
        ]
        if network.shape == "star":
            lines += [
                f"address add {topology.address6(host, name)}/64 dev {name} nodad noprefixroute",
                f"route add fd4c:{NUMBER[name]}:{rack}::/64 dev {name} {manner}",
            ]
        else:
            lines += [
                f"route add 10.{200 + NUMBER[name]}.{other}.0/24 via {_gateway(name, leaf)} dev {name} "
                f"src {topology.address(host, name)} {manner}"
                for other in range(LEAVES)
                if other != leaf
            ]
    return lines


def switch_settings(topology: Topology, switch: str) -> dict[str, str]:
    """Return the sysctls (paths under /proc/sys) of a switch: leaves and spines route, by a hash over the flow.

    Those that this kernel lacks are left out when they are written, if they begin with net/bridge.
    """
    network = next(network for network in topology.networks if switch in topology.switches(network.name))
    # Bridges may hand every packet to netfilter, which costs a fifth of a core here and is of no use.
    unfiltered = dict.fromkeys((f"net/bridge/bridge-nf-call-{table}" for table in ("iptables", "ip6tables")), "0")
    if network.shape == "star":
        return unfiltered
    # Policy 1 takes the hash that the sending socket drew for itself and draws anew after a timeout. A switch does not
    # know it; policy 3 looks at addresses, protocol and ports only.
    return unfiltered | {
        "net/ipv4/ip_forward": "1",
        "net/ipv4/fib_multipath_hash_policy": "3",
        "net/ipv4/fib_multipath_hash_fields": "55",
        "net/ipv4/conf/all/rp_filter": "0",
    }


def spreading_batch(topology: Topology, leaf: str, name: NetworkName, *, on: bool) -> list[str]:
    """Return the lines for `tc -batch` that make a leaf spread packets for the other leaf over both spines in turn.

    With `on` false: those that end it.

    Linux counts the IP identification up by one a packet of a TCP connection, so its lowest bit alternates. The
    packets of a host are taken as they come in and handed to the uplink of that bit, past the routing table.
    """
    place = topology.switches(name).index(leaf)
    lines: list[str] = []
    for host in topology.hosts:
        if topology.switch(host, name) != leaf:
            continue
        # Replaced, not added: clsact may be there already, for marks on the way out.
        lines += [f"qdisc replace dev to-{host} clsact", f"filter del dev to-{host} ingress"]
        if not on:
            continue
        for other in range(LEAVES):
            if other == place:
                continue
            lines += [
                f"filter add dev to-{host} ingress protocol ip prio {SPREADING} u32 "
                f"match ip dst 10.{200 + NUMBER[name]}.{other}.0/24 match u16 {spine} 0x0001 at 4 "
                f"action mirred egress redirect dev up-{spine}"
                for spine in range(SPINES)
            ]
    return lines


def _leaf_uplinks(topology: Topology, network: Network, leaf: int, holders: Mapping[str, int]) -> list[str]:
    """Join a leaf to the spines: its gateway address, an interface and a network a spine, routes over both."""
    name = network.name
    lines = [f"address add {_gateway(name, leaf)}/24 dev {BRIDGE}"]
    for spine, above in enumerate(topology.switches(name)[LEAVES:]):
        lines += [
            # The spine's end has the address of the leaf's bridge: what hosts send to their gateway can then be
            # handed to either spine as it is, packet by packet (`spreading`).
            (
                f"link add name up-{spine} type veth peer name down-{leaf} address {_leaf_mac(name, leaf)} "
                f"netns {holders[above]}"
            ),
            f"link set up-{spine} mtu {network.mtu} gso_max_segs 1 addrgenmode none up",
            f"address add {_between(name, leaf, spine)}.1/24 dev up-{spine}",
        ]
    for other in range(LEAVES):
        if other != leaf:
            hops = " ".join(f"nexthop via {_between(name, leaf, spine)}.2 dev up-{spine}" for spine in range(SPINES))
            lines.append(f"route add 10.{200 + NUMBER[name]}.{other}.0/24 {hops}")
    return lines


def _spine_batch(network: Network, spine: int) -> list[str]:
    """Return a spine's lines; its interfaces came with the leaves'."""
    lines: list[str] = []
    for leaf in range(LEAVES):
        lines += [
            f"link set down-{leaf} mtu {network.mtu} gso_max_segs 1 addrgenmode none up",
            f"address add {_between(network.name, leaf, spine)}.2/24 dev down-{leaf}",
            f"route add 10.{200 + NUMBER[network.name]}.{leaf}.0/24 via {_between(network.name, leaf, spine)}.1",
        ]
    return lines


def _milliseconds(network: Network) -> str:
    return f"{max(1, round(network.rto_min.seconds * 1e3))}ms"


def _gateway(name: NetworkName, leaf: int) -> str:
    return f"10.{200 + NUMBER[name]}.{leaf}.254"


def _between(name: NetworkName, leaf: int, spine: int) -> str:
    """Return the first three numbers of the addresses between a leaf and a spine."""
    return f"10.{210 + NUMBER[name]}.{leaf * SPINES + spine}"


def _host_mac(topology: Topology, host: str, name: NetworkName) -> str:
    return f"02:4c:{NUMBER[name]:02x}:00:00:{topology.hosts.index(host) + 1:02x}"


def _port_mac(topology: Topology, host: str, name: NetworkName) -> str:
    return f"02:4c:{NUMBER[name]:02x}:01:00:{topology.hosts.index(host) + 1:02x}"


def _leaf_mac(name: NetworkName, leaf: int) -> str:
    return f"02:4c:{NUMBER[name]:02x}:02:00:{leaf + 1:02x}"
