"""Plain topologies: one switch, leaf and spine, fat tree, several planes. Hosts stand on leaves in order.

For those of a cluster file see `fourlane.twin.fabric.cluster_topology`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric.clos import Tiers, lay_clos
from fourlane.twin.fabric.draft import Cable, Draft, Gear, Nic
from fourlane.units import Duration, Quantity, Rate, Size

if TYPE_CHECKING:
    from fourlane.twin.fabric.topology import Topology

__all__ = ["Equipment", "fat_tree", "leaf_spine", "multi_plane", "single_switch"]


class Equipment(TypedDict, total=False):
    """What hosts, switches and cables of a plain topology are; quantities, or text with a unit.

    rate: of every link ("400Gbps"). uplink_rate: of links between switches (as `rate`). propagation: of every link
    ("100ns"). switch_latency: from ingress to egress queue ("500ns"). cut_through: forward before the tail is in
    (False). buffer: of each switch ("64MiB"). nic_latency: before the wire, and again after it ("0ns").
    """

    rate: Rate | str
    uplink_rate: Rate | str
    propagation: Duration | str
    switch_latency: Duration | str
    cut_through: bool
    buffer: Size | str
    nic_latency: Duration | str


_DEFAULTS: dict[str, str] = {
    "rate": "400Gbps",
    "propagation": "100ns",
    "switch_latency": "500ns",
    "buffer": "64MiB",
    "nic_latency": "0ns",
}
_KINDS: dict[str, type[Quantity]] = {
    "rate": Rate,
    "uplink_rate": Rate,
    "propagation": Duration,
    "switch_latency": Duration,
    "buffer": Size,
    "nic_latency": Duration,
}


def single_switch(hosts: int = 8, **equipment: Unpack[Equipment]) -> Topology:
    """Build hosts on one switch.

    Raises:
        SpecError: a count or quantity is wrong.
    """
    _refuse("single_switch", *_count("hosts", hosts))
    return _plain(f"single_switch({hosts})", Tiers(leaves=1), hosts, equipment)


def leaf_spine(
    leaves: int = 16, hosts_per_leaf: int = 8, spines: int = 8, *, links: int = 1, **equipment: Unpack[Equipment]
) -> Topology:
    """Build leaves with hosts, each with `links` links to every spine; host h stands on leaf h // hosts_per_leaf.

    Raises:
        SpecError: a count or quantity is wrong.
    """
    counts = {"leaves": leaves, "hosts_per_leaf": hosts_per_leaf, "spines": spines, "links": links}
    _refuse("leaf_spine", *(fault for name, value in counts.items() for fault in _count(name, value)))
    name = f"leaf_spine({leaves}x{hosts_per_leaf}x{spines})"
    return _plain(name, Tiers(leaves=leaves, spines=spines, leaf_up=spines * links), hosts_per_leaf, equipment)


def fat_tree(k: int = 4, **equipment: Unpack[Equipment]) -> Topology:
    """Build the fat tree of k-port switches: k pods of k/2 leaves and k/2 spines, k^2/4 superspines, k^3/4 hosts.

    Source: Al-Fares, Loukissas, Vahdat, "A Scalable, Commodity Data Center Network Architecture", SIGCOMM 2008.

    Raises:
        SpecError: k is odd or below 2, or a quantity is wrong.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 2 or k % 2:
        raise SpecError(f"fat_tree: k: expected an even number of at least 2, got {k!r}")
    half = k // 2
    tiers = Tiers(
        leaves=k * half, spines=k * half, superspines=half * half, leaf_up=half, spine_up=half, pods=k, blocks=k
    )
    return _plain(f"fat_tree({k})", tiers, half, equipment)


def multi_plane(
    planes: int = 2, leaves: int = 8, hosts_per_leaf: int = 8, spines: int = 8, **equipment: Unpack[Equipment]
) -> Topology:
    """Build hosts with a port in each of several disjoint leaf-spine networks ("net.0", "net.1", ...), all alike.

    Raises:
        SpecError: a count or quantity is wrong.
    """
    counts = {"planes": planes, "leaves": leaves, "hosts_per_leaf": hosts_per_leaf, "spines": spines}
    _refuse("multi_plane", *(fault for name, value in counts.items() for fault in _count(name, value)))
    name = f"multi_plane({planes}x{leaves}x{hosts_per_leaf}x{spines})"
    tiers = Tiers(leaves=leaves, spines=spines, leaf_up=spines)
    return _plain(name, tiers, hosts_per_leaf, equipment, planes=planes)


def _plain(name: str, tiers: Tiers, hosts_per_leaf: int, equipment: Equipment, *, planes: int = 1) -> Topology:
    made = _quantities(name.partition("(")[0], equipment)
    hosts = np.arange(tiers.leaves * hosts_per_leaf, dtype=np.int32)
    leaf_of = hosts.astype(np.int64) // hosts_per_leaf
    pod_of = (leaf_of // (tiers.leaves // tiers.pods)).astype(np.int32)
    draft = Draft(name, host_server=hosts, host_pod=pod_of, gpu_host=hosts)
    gear = Gear(
        latency=made["switch_latency"], buffer=made["buffer"], cut_through=bool(equipment.get("cut_through", False))
    )
    nic = Nic(tx_latency=made["nic_latency"], rx_latency=made["nic_latency"])
    networks = [draft.network(f"net.{plane}" if planes > 1 else "net", nic) for plane in range(planes)]
    down = Cable(rate=made["rate"], prop=made["propagation"])
    up = Cable(rate=made["uplink_rate"], prop=made["propagation"])
    lay_clos(draft, tiers, leaf_of, gear=(gear, gear, gear), cables=(down, up, up), networks=networks)
    return draft.finish()


def _quantities(builder: str, equipment: Equipment) -> dict[str, int]:
    """Return the quantities in base units, with the defaults."""
    unknown = sorted(equipment.keys() - _KINDS.keys() - {"cut_through"})
    faults = [f"{builder}: {name}: unknown; known: {', '.join(_KINDS)}, cut_through" for name in unknown]
    if not isinstance(equipment.get("cut_through", False), bool):
        faults.append(f"{builder}: cut_through: expected true or false, got {equipment.get('cut_through')!r}")
    read: dict[str, int] = {}
    given = {**_DEFAULTS, **{name: equipment[name] for name in _KINDS if name in equipment}}  # type: ignore[literal-required]
    for name, value in given.items():
        try:
            read[name] = int(_KINDS[name].parse(value))
        except ValueError as error:
            faults.append(f"{builder}: {name}: {error}")
    least = {"rate": 10**6, "uplink_rate": 10**6, "buffer": 1}
    faults += [
        f"{builder}: {name}: expected at least {_KINDS[name](low)}, got {given[name]}"
        for name, low in least.items()
        if name in read and read[name] < low
    ]
    _refuse(builder, *faults)
    return {"uplink_rate": read["rate"], **read}


def _count(name: str, value: int) -> list[str]:
    """Return the fault of a count that is no positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return [f"{name}: expected a whole number of at least 1, got {value!r}"]
    return []


def _refuse(builder: str, *faults: str) -> None:
    if faults:
        raise SpecError(*(fault if fault.startswith(builder) else f"{builder}: {fault}" for fault in faults))
