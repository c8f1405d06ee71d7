"""Everything one rank process needs to know at its start, worked out from a deployment.

No torch here: the gateway's supervisor and the command line build these values and send them to
the process that becomes the rank. Not for what changes while a rank runs (`messages`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.engine.model.config import resolve_model_path
from fourlane.errors import SpecError
from fourlane.lanes.marking import LaneMark, default_marks
from fourlane.spec.deployment import KvTransport
from fourlane.spec.deployment_rules import deployment_faults, port_range
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.spec.deployment import Balance, Deployment, Pool

__all__ = ["RankBalance", "RankConfig", "RankOverlap", "control_endpoint", "exchange_of", "group_store", "rank_configs"]

Role = Literal["prefill", "decode", "unified"]
Implementation = Literal["torch_all_to_all", "tcp", "shared_memory", "deepep", "symmetric_memory"]


class RankBalance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a rank's group keeps its experts in balance: `spec.deployment.Balance` in plain numbers.

    `initial` is the path of a placement file, or None.

    Units:
        bulk_rate: bit/s out of this rank, None without a limit; migration_timeout_s: seconds a layer.
    """

    redundant_experts: int = 0
    initial: str | None = None
    split: bool = True
    rebalance: bool = True
    interval_steps: int = 2000
    window_steps: int = 100
    min_gain: float = 0.02
    moves: int = 32
    cost_tokens: float = 1.0
    cost_activated: float = 0.0
    bulk_rate: int | None = None
    migration_timeout_s: float = 30.0

    @classmethod
    def of(cls, balance: Balance) -> RankBalance:
        """Return what a deployment's table means to a rank."""
        same = {name: getattr(balance, name) for name in cls.__struct_fields__ if hasattr(balance, name)}
        rate = None if balance.bulk_rate is None else int(balance.bulk_rate)
        return cls(**same | {"bulk_rate": rate, "migration_timeout_s": balance.migration_timeout.seconds})


class RankOverlap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether a rank's group runs steps in two streams: `spec.deployment.Overlap`."""

    mode: Literal["auto", "never", "always"] = "auto"
    min_tokens: int = 16
    min_gain: float = 0.03


class RankConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank: who it is, what it loads, whom it talks to.

    `rank` counts in the pool of `role` (0 to `ranks` - 1), `group_rank` in the expert-parallel
    group `group` (0 to `group_size` - 1). `generation` counts how often the group was formed anew.

    `store` is where the group meets at the start: a path (FileStore), "host:port" (TCPStore,
    hosted by the member of group_rank 0), or "" to meet nowhere yet. With "" and a group of more
    than one rank, the rank says `Hello` (generation -1) as soon as it has loaded and waits for a
    `Regroup`, exactly as it does after it has lost a peer. External ranks start like that, because
    only the gateway knows which generation it is; they offer `rendezvous`, "host:port", in their
    `Hello`, and the gateway picks a port above that one for each generation.

    Units:
        kv_memory: bytes; *_timeout_s: seconds; block_size: tokens a page; chunk_tokens: tokens a
        prefill step; max_length: tokens of a sequence, None for the model's own limit.
    """

    role: Role
    rank: int
    ranks: int
    group: int = 0
    group_rank: int = 0
    group_size: int = 1
    generation: int = 0
    store: str = ""
    rendezvous: str | None = None

    model_path: str
    weights: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    threads: int = 1

    chunk_tokens: int = 512
    max_running: int = 256
    kv_memory: int = 256 << 20
    block_size: int = 16
    max_length: int | None = None
    prefix_cache: bool = True

    control_endpoint: str
    secret_file: str
    run_dir: str

    exchange: Implementation = "tcp"
    exchange_dispatch: Literal["activations", "float8"] = "activations"
    exchange_hierarchical: Literal["auto", "always", "never"] = "auto"
    exchange_deepep: Literal["auto", "v1", "v2"] = "auto"
    exchange_low_latency_tokens: int = 128
    exchange_address: str = "127.0.0.1"
    exchange_timeout_s: float = 30.0

    kv_transport: KvTransport = "auto"
    kv_addresses: tuple[str, ...] = ("127.0.0.1",)
    kv_streams: int = 1
    kv_devices: tuple[str, ...] = ()
    kv_gid_index: int | None = None
    kv_ports: tuple[int, int] | None = None
    kv_timeout_s: float = 30.0

    balance: RankBalance | None = None
    """None: experts stay in order, one of each."""

    overlap: RankOverlap = RankOverlap()

    marks: dict[TrafficClass, LaneMark] = msgspec.field(default_factory=default_marks)
    """What sockets of each class carry: numbers of the lane plan, so that no other host has to read it."""

    @property
    def name(self) -> str:
        """Return the identity of the rank on the control lane, such as "prefill-0"."""
        return f"{self.role}-{self.rank}"


def rank_configs(
    deployment: Deployment,
    run_dir: Path,
    *,
    secret_file: Path | None = None,
    marks: dict[TrafficClass, LaneMark] | None = None,
) -> list[RankConfig]:
    """Return the configuration of every rank of a deployment, pool by pool, in order of rank.

    Args:
        deployment: what is wanted.
        run_dir: folder for sockets and rendezvous files of this run.
        secret_file: the deployment's secret; None: `secret` in the run folder.
        marks: of the lane plan; None: it is read, if the deployment names one.

    Raises:
        SpecError: the deployment breaks a rule (one that was read from a file does not), or its lane
            plan cannot be read; all faults.
    """
    faults = [f"{fault.place}: {fault.message}" for fault in deployment_faults(deployment)]
    if faults:
        raise SpecError(*faults)
    secret = secret_file if secret_file is not None else run_dir / "secret"
    if marks is None:
        from fourlane.lanes.live import deployment_plan, plan_marks

        marks = plan_marks(deployment_plan(deployment))
    return [
        msgspec.structs.replace(_rank_config(deployment, role, pool, rank, run_dir=run_dir, secret=secret), marks=marks)
        for role, pool in deployment.pools().items()
        for rank in range(pool.ranks)
    ]


def control_endpoint(deployment: Deployment, run_dir: Path) -> str:
    """Return the ZeroMQ address of the gateway's hub: the one asked for, else a socket in the run folder."""
    return deployment.gateway.control or f"ipc://{run_dir / 'control'}"


def group_store(run_dir: Path, role: str, group: int, generation: int) -> str:
    """Return the path at which one generation of a local group meets; never used twice."""
    return str(run_dir / f"group-{role}-{group}-{generation}")


def _rank_config(
    deployment: Deployment, role: str, pool: Pool, rank: int, *, run_dir: Path, secret: Path
) -> RankConfig:
    group_size = pool.expert_parallel or pool.ranks
    group, group_rank = divmod(rank, group_size)
    meets_here = group_size > 1 and pool.launch == "local"
    return RankConfig(
        role=msgspec.convert(role, Role),
        rank=rank,
        ranks=pool.ranks,
        group=group,
        group_rank=group_rank,
        group_size=group_size,
        store=group_store(run_dir, role, group, 0) if meets_here else "",
        model_path=str(resolve_model_path(deployment.model.path)),
        weights=deployment.model.weights,
        device=pool.device,
        threads=pool.threads,
        chunk_tokens=pool.chunk_tokens,
        max_running=pool.max_running,
        kv_memory=int(pool.kv_memory),
        block_size=deployment.kv_cache.block_size,
        max_length=deployment.model.max_length,
        prefix_cache=pool.prefix_cache,
        control_endpoint=control_endpoint(deployment, run_dir),
        secret_file=str(secret),
        run_dir=str(run_dir),
        exchange=exchange_of(deployment, pool),
        exchange_dispatch=deployment.exchange.dispatch,
        exchange_hierarchical=deployment.exchange.hierarchical,
        exchange_deepep=deployment.exchange.deepep,
        exchange_low_latency_tokens=deployment.exchange.low_latency_tokens,
        exchange_address=deployment.exchange.address,
        exchange_timeout_s=deployment.exchange.timeout.seconds,
        kv_transport=deployment.kv_transfer.transport,
        kv_addresses=(deployment.kv_transfer.address, *deployment.kv_transfer.more_addresses),
        kv_streams=deployment.kv_transfer.streams,
        kv_devices=deployment.kv_transfer.devices,
        kv_gid_index=deployment.kv_transfer.gid_index,
        kv_ports=_ports(deployment.kv_transfer.ports),
        kv_timeout_s=deployment.kv_transfer.timeout.seconds,
        balance=None if deployment.balance is None else RankBalance.of(deployment.balance),
        overlap=RankOverlap(**msgspec.structs.asdict(deployment.overlap)),
    )


def exchange_of(deployment: Deployment, pool: Pool) -> Implementation:
    """Return over what a pool's ranks exchange: what is asked for, or for "auto" by where its ranks are."""
    wanted = deployment.exchange.implementation
    if wanted != "auto":
        return wanted
    if pool.device != "cpu":
        return "torch_all_to_all"
    return "shared_memory" if pool.launch == "local" else "tcp"


def _ports(ports: str | None) -> tuple[int, int] | None:
    if ports is None:
        return None
    found = port_range(ports)
    return found.start, found.stop - 1
