"""Scenario files: a topology, workloads, lanes and settings in TOML, read with all faults at once.

    scenario = load_scenario("incast.toml", overrides=["every.routing=adaptive"])

Every field of `fourlane.twin.fabric.settings.Settings` may stand in the file as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fourlane.errors import SpecError
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import load_plan
from fourlane.spec.load import load, load_cluster
from fourlane.spec.reading import Fault
from fourlane.twin.fabric.builders import fat_tree, leaf_spine, multi_plane, single_switch
from fourlane.twin.fabric.cluster_topology import rail_clos
from fourlane.twin.fabric.file_workloads import Workload, flows_of, workload_faults
from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.fabric.settings import Settings, settings_faults
from fourlane.units import Duration, Rate, Size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster
    from fourlane.twin.fabric.topology import Topology

__all__ = ["ScenarioFile", "TopologyTable", "load_scenario"]

_COUNTS: dict[str, tuple[str, ...]] = {
    "single-switch": ("hosts",),
    "leaf-spine": ("leaves", "hosts_per_leaf", "spines", "links"),
    "fat-tree": ("k",),
    "multi-plane": ("planes", "leaves", "hosts_per_leaf", "spines"),
}
_BUILDERS = {
    "single-switch": single_switch,
    "leaf-spine": leaf_spine,
    "fat-tree": fat_tree,
    "multi-plane": multi_plane,
}
_EQUIPMENT = ("rate", "uplink_rate", "propagation", "switch_latency", "cut_through", "buffer", "nic_latency")
_OF_CLUSTER = ("network", "nvlink", "servers")


class TopologyTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either a `cluster` (a file beside the scenario's, or a name of the catalog), or a `builder` with its counts.

    `servers` takes that many of the cluster's; `network` and `nvlink` say what of it is simulated. Counts and
    equipment that are left out are the builder's own.
    """

    cluster: str | None = None
    network: Literal["hpn", "dcn"] | None = None
    nvlink: bool | None = None
    servers: int | None = None
    builder: Literal["single-switch", "leaf-spine", "fat-tree", "multi-plane"] | None = None
    hosts: int | None = None
    leaves: int | None = None
    hosts_per_leaf: int | None = None
    spines: int | None = None
    links: int | None = None
    planes: int | None = None
    k: int | None = None
    rate: Rate | None = None
    uplink_rate: Rate | None = None
    propagation: Duration | None = None
    switch_latency: Duration | None = None
    cut_through: bool | None = None
    buffer: Size | None = None
    nic_latency: Duration | None = None

    def said(self, names: Sequence[str]) -> dict[str, Any]:
        """Return those of the fields that are not None."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class ScenarioFile(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole scenario.

    `plan` is a lane plan's file beside the scenario's, or "default" for the default plan of the cluster; None:
    plain lanes. Workloads run in the order of the file where nothing else is said.
    """

    name: str = "scenario"
    topology: TopologyTable
    plan: str | None = None
    workloads: dict[str, Workload] = {}


def load_scenario(path: str | Path, *, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario file.

    Args:
        path: the file.
        overrides: "path=value" texts, such as "workloads.incast.size=2MB".

    Raises:
        SpecError: with every fault of the file and the overrides, or of what it names.
    """
    file = Path(path)
    read = load(file, ScenarioFile, overrides, rules=_faults)
    faults: list[str] = []
    topology, cluster = _topology(read.topology, file, faults)
    plan = _plan(read, cluster, file, faults)
    if topology is None:
        raise SpecError(*faults)
    flows = flows_of(read.workloads, topology, file.name, faults)
    if faults or flows is None:
        raise SpecError(*faults)
    own = {name: getattr(read, name) for name in Settings.__struct_fields__}
    return Scenario(topology, flows, plan=plan, **own)


def _faults(read: ScenarioFile) -> Iterator[Fault]:
    yield from settings_faults(read)
    yield from (Fault(f"topology.{fault.place}".rstrip("."), fault.message) for fault in _table_faults(read.topology))
    if not read.workloads:
        yield Fault("workloads", "expected at least one table such as [workloads.load], got none")
    if read.plan == "default" and read.topology.cluster is None:
        yield Fault("plan", 'expected topology.cluster with "default", the default plan of a cluster')
    for name, workload in read.workloads.items():
        before = list(read.workloads)[: list(read.workloads).index(name)]
        faults = workload_faults(workload, before)
        yield from (Fault(f"workloads.{name}.{fault.place}".rstrip("."), fault.message) for fault in faults)


def _table_faults(table: TopologyTable) -> Iterator[Fault]:
    if (table.cluster is None) == (table.builder is None):
        yield Fault("", 'expected either cluster = "h800-ft" or builder = "leaf-spine", got both or neither')
        return
    if table.cluster is not None:
        takes: tuple[str, ...] = _OF_CLUSTER
        kind = "cluster"
    else:
        kind = f'builder "{table.builder}"'
        takes = (*_COUNTS[table.builder or ""], *_EQUIPMENT)
    for name in table.said(table.__struct_fields__):
        if name not in (*takes, "cluster", "builder"):
            yield Fault(name, f"a {kind} has none; it takes {', '.join(takes)}")
    for name in ("hosts", "leaves", "hosts_per_leaf", "spines", "links", "planes", "k", "servers"):
        value = getattr(table, name)
        if value is not None and not 1 <= value <= 1 << 20:
            yield Fault(name, f"expected a whole number from 1 to {1 << 20}, got {value}")


def _topology(table: TopologyTable, file: Path, faults: list[str]) -> tuple[Topology | None, Cluster | None]:
    """Build it, or note why not."""
    try:
        if table.builder is not None:
            counts = {**table.said(_COUNTS[table.builder]), **table.said(_EQUIPMENT)}
            return _BUILDERS[table.builder](**counts), None
        beside = file.parent / str(table.cluster)
        cluster = load_cluster(beside if beside.is_file() else str(table.cluster))
        if table.servers is not None:
            cluster = msgspec.structs.replace(cluster, servers=table.servers)
        nvlink = True if table.nvlink is None else table.nvlink
        return rail_clos(cluster, table.network or "hpn", nvlink=nvlink), cluster
    except SpecError as error:
        faults += [f"{file.name}: topology: {fault}" for fault in error.faults]
        return None, None


def _plan(read: ScenarioFile, cluster: Cluster | None, file: Path, faults: list[str]) -> LanePlan | None:
    if read.plan is None:
        return None
    if read.plan == "default":
        return default_plan(cluster) if cluster is not None else None
    try:
        return load_plan(file.parent / read.plan)
    except SpecError as error:
        faults += [f"{file.name}: plan: {fault}" for fault in error.faults]
        return None
