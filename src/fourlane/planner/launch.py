"""What is launched where, as values: units on servers, commands with their options and environment.

Engines (`fourlane.planner.engines`) turn a `Launch` into `Commands`, targets (`fourlane.planner.targets`) those into
files. Not for what is worth launching (`fourlane.planner.search`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fourlane.errors import SpecError
from fourlane.spec.hardware import gpu_models

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.lanes.plan import Carrier, LanePlan
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.cluster import Cluster
    from fourlane.spec.twin import Twin, TwinPool
    from fourlane.twin.memory import MemoryUse
    from fourlane.twin.times import Phase

__all__ = [
    "PHASES",
    "Command",
    "Commands",
    "Connector",
    "Expanded",
    "Launch",
    "Option",
    "PoolLayout",
    "Variable",
    "lay_out",
    "spare_experts",
]

PHASES: tuple[Phase, ...] = ("prefill", "decode")
Connector = Literal["nixl", "mooncake"]


class Expanded(str):
    """Text that a shell expands: written between double quotes, as it is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Option:
    """A command line option: exact name, values (none: a switch), and why it is there."""

    name: str
    values: tuple[str, ...]
    why: str

    @classmethod
    def of(cls, name: str, *values: object, why: str) -> Option:
        """Make one; values become text, what a shell shall expand stays `Expanded`."""
        return cls(name, tuple(value if isinstance(value, str) else str(value) for value in values), why)


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable that is set, and why."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its options and environment.

    Args:
        program: words before the options.
        options: in order.
        environment: beside that of the lane plan.
        prepare: lines of shell before it, each complete.
    """

    program: tuple[str, ...]
    options: tuple[Option, ...] = ()
    environment: tuple[Variable, ...] = ()
    prepare: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Commands:
    """Everything that an engine runs for a launch.

    Args:
        engine: its name and version, for people.
        image: of a container with it.
        phases: what every server of a unit runs, by phase. Its shell knows MODEL, HEAD (the address of the unit's first
            server), HOST (this one's), UNIT (number of the unit in its phase), NODE (of the server in its unit), SLOT
            (of the unit among those that share the server).
        router: takes requests. Its shell knows MODEL, and PREFILL and DECODE: words "address:slot" of all endpoints.
        router_port: where clients find it.
        endpoints: which servers of a unit answer HTTP: its first, or all.
        ports: first port of HTTP of each phase; a unit's is so many on as its slot. None: it has no HTTP of its own.
        benchmark: the plan's load, in the words of the engine's own tool; its shell knows URL and MODEL.
        carriers: libraries that carry experts and KV, for the lane plan.
        files: beside the scripts, by relative path.
        notes: what a person must know, in sentences.
        secret: whether all need one secret file, `fourlane.secret`.
        token_ids: whether the router takes prompts as token ids, as `fourlane bench serve` sends them.
    """

    engine: str
    image: str
    phases: Mapping[Phase, Command]
    router: Command
    router_port: int
    endpoints: Literal["heads", "servers"]
    ports: Mapping[Phase, int] | None
    benchmark: Command
    carriers: tuple[tuple[Carrier, ...], tuple[Carrier, ...]]
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    secret: bool = False
    token_ids: bool = True


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """Where the units of a phase run.

    Args:
        phase: which.
        units: there are.
        ranks: GPUs of a unit.
        servers: a unit takes.
        per_server: units that share a server; 1 where a unit takes whole ones.
        first: the first unit's first server, counted over both phases.
    """

    phase: Phase
    units: int
    ranks: int
    servers: int
    per_server: int
    first: int

    @property
    def gpus(self) -> int:
        """Return the GPUs a unit has on each of its servers."""
        return self.ranks // self.servers

    @property
    def all_servers(self) -> int:
        """Return the servers of all units."""
        return -(-self.units // self.per_server) * self.servers


@dataclass(frozen=True, slots=True)
class Launch:
    """A service to be launched.

    Args:
        twin: what is to run.
        cluster, architecture: what its file names, read.
        plan: lanes, as the twin changes them, with the carriers that its engine uses.
        model: what the engine loads: a folder, or a name on Hugging Face.
        layouts: where units run, by phase.
        memory: of a rank, by phase; None: the engine finds out what is left for KV cache.
        connector: what moves KV cache.
        balancer: who places experts in other engines: their own algorithm, or fourlane's plug-in.
    """

    twin: Twin
    cluster: Cluster
    architecture: Architecture
    plan: LanePlan
    model: str
    layouts: Mapping[Phase, PoolLayout]
    memory: Mapping[Phase, MemoryUse | None]
    connector: Connector
    balancer: Literal["engine", "fourlane"]

    def pool(self, phase: Phase) -> TwinPool:
        """Return the pool of a phase."""
        return self.twin.pools()[phase]

    def kv_bytes(self, phase: Phase) -> int | None:
        """Return the bytes of a rank's KV cache; None where the engine finds out."""
        use, asked = self.memory[phase], self.pool(phase).kv_memory
        return use.kv if use is not None else asked

    def kv_tokens(self, phase: Phase) -> int | None:
        """Return the tokens of a rank's KV cache; None where the engine finds out."""
        use = self.memory[phase]
        return None if use is None else use.kv_blocks * self.twin.block_size

    @property
    def servers(self) -> int:
        """Return the servers of all units."""
        return sum(layout.all_servers for layout in self.layouts.values())

    @property
    def gpu(self) -> str | None:
        """Return the model of GPU, as the catalog has it; None: processors of hosts, or nobody says."""
        named = self.twin.hardware
        return named if named in gpu_models() else self.cluster.gpu

    @property
    def rdma(self) -> bool:
        """Tell whether GPUs can start transfers on the network of expert traffic themselves."""
        return self.cluster.hpn.fabric in ("roce", "infiniband")


def lay_out(twin: Twin, cluster: Cluster) -> dict[Phase, PoolLayout]:
    """Put units on servers: prefill first, whole servers each, or several units to one they all fit on.

    Where servers have no GPUs a unit's ranks are processes of one of them.

    Raises:
        SpecError: a unit's ranks do not spread evenly over servers, or there are too few servers.
    """
    first = 0
    faults: list[str] = []
    found: dict[Phase, PoolLayout] = {}
    for phase in PHASES:
        pool = twin.pools()[phase]
        size = cluster.gpus_per_server or pool.ranks
        servers = -(-pool.ranks // size)
        if pool.ranks % servers:
            even = [str(n) for n in (pool.ranks // size * size, servers * size) if n]
            faults.append(
                f"{phase}.ranks: {pool.ranks} ranks do not spread evenly over {servers} servers of {size} GPUs; "
                f"use {' or '.join(even)}"
            )
            continue
        per_server = max(1, size // pool.ranks)
        found[phase] = PoolLayout(phase, pool.units, pool.ranks, servers, per_server, first)
        first += found[phase].all_servers
    if not faults and first > cluster.servers:
        faults.append(
            f"prefill, decode: the units take {first} servers, and cluster {cluster.name} has "
            f"{cluster.servers}; take fewer units, or a larger cluster"
        )
    if faults:
        raise SpecError(*faults)
    return found


def spare_experts(architecture: Architecture, pool: TwinPool) -> int:
    """Return the redundant experts a layer, rounded up so that all ranks hold equally many."""
    slots = -(-(architecture.experts + pool.redundant_experts) // pool.ranks) * pool.ranks
    return slots - architecture.experts
