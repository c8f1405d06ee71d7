"""Launch a plan on fourlane's own engine: one deployment file, a gateway, and `fourlane worker` under torchrun.

Every unit is an expert-parallel group, every server of it one launch of torchrun. Not for models that the engine does
not implement; the message says which engines do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError
from fourlane.planner.engines.common import balanced, kv_devices, own_benchmark
from fourlane.planner.launch import Command, Commands, Expanded, Option, Variable
from fourlane.spec.architecture import LatentAttention
from fourlane.spec.deployment import (
    Balance,
    Deployment,
    Exchange,
    Gateway,
    KvCache,
    KvTransfer,
    Model,
    Overlap,
    Pool,
)
from fourlane.spec.traffic import TrafficClass
from fourlane.spec.writing import render
from fourlane.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.plan import Carrier
    from fourlane.planner.launch import Launch
    from fourlane.spec.cluster import NetworkName
    from fourlane.twin.times import Phase

__all__ = ["commands"]

GATEWAY_PORT = 9000
CONTROL_PORT = 7600
MEETING_PORTS = {"prefill": 12000, "decode": 22000}
"""MASTER_PORT of a unit, below those a kernel gives out; ranks meet on ports above, a thousand for each unit."""
PORTS_A_UNIT = 1001
KV_PORTS = "7000-7511"
SECRET = "fourlane.secret"  # noqa: S105 - a file's name
DEPLOYMENT = "deployment.toml"
LANES = "lanes/lanes.toml"
_WEIGHTS = {None: "auto", "bf16": "bfloat16", "fp32": "float32"}


def commands(launch: Launch) -> Commands:
    """Return what fourlane runs for a launch.

    Raises:
        SpecError: the engine cannot do what the plan asks for.
    """
    _refuse(launch)
    return Commands(
        engine="fourlane",
        image="fourlane",
        phases={phase: _phase(launch, phase) for phase in launch.layouts},
        router=_gateway(),
        router_port=GATEWAY_PORT,
        endpoints="heads",
        ports=None,
        benchmark=own_benchmark(launch),
        carriers=_carriers(launch),
        files={DEPLOYMENT: _deployment(launch)},
        notes=tuple(_notes(launch)),
        secret=True,
    )


def _refuse(launch: Launch) -> None:
    faults = []
    attention = launch.architecture.attention
    if isinstance(attention, LatentAttention) or launch.architecture.name.startswith("mixtral"):
        faults.append(
            f"model: fourlane's engine implements Qwen3MoeForCausalLM and Qwen2MoeForCausalLM, and "
            f"{launch.architecture.name} is neither; use --engine sglang or vllm"
        )
    if launch.twin.assumptions.weights not in _WEIGHTS:
        faults.append(
            f'assumptions.weights: fourlane\'s engine holds weights as "bf16" or "fp32", got '
            f'"{launch.twin.assumptions.weights}"; plan again with one of them, or use --engine sglang or vllm'
        )
    if launch.twin.assumptions.mtp_tokens:
        faults.append(
            "assumptions.mtp_tokens: fourlane's engine predicts one token at a time, got "
            f"{launch.twin.assumptions.mtp_tokens}; plan again with 0, or use --engine sglang or vllm"
        )
    if faults:
        raise SpecError(*faults)


def _on_gpus(launch: Launch) -> bool:
    return launch.gpu is not None


def _carriers(launch: Launch) -> tuple[tuple[Carrier, ...], tuple[Carrier, ...]]:
    if not _on_gpus(launch):
        return ("sockets",), ("sockets",)
    experts: tuple[Carrier, ...] = ("deepep-v2",) if launch.rdma else ("nccl",)
    return experts, ("ucx",) if launch.connector == "nixl" else ("mooncake",)


def _deployment(launch: Launch) -> str:
    """Write the one deployment file that the gateway and all ranks read."""
    assumed, twin = launch.twin.assumptions, launch.twin
    spare = twin.prefill.redundant_experts
    on_any = any(balanced(launch, phase) for phase in launch.layouts)
    modes = [pool.overlap for pool in twin.pools().values()]
    made = Deployment(
        lanes=LANES,
        model=Model(path=launch.model, name=twin.model, weights=_WEIGHTS[assumed.weights]),  # type: ignore[arg-type]
        gateway=Gateway(
            host="0.0.0.0",  # noqa: S104 - clients are elsewhere
            port=GATEWAY_PORT,
            control=f"tcp://0.0.0.0:{CONTROL_PORT}",
            max_queued_requests=4096,
            ready_timeout=Duration.parse("30min"),
        ),
        prefill=_pool(launch, "prefill"),
        decode=_pool(launch, "decode"),
        kv_cache=KvCache(block_size=twin.block_size),
        kv_transfer=KvTransfer(
            transport="auto" if _on_gpus(launch) else "tcp", devices=kv_devices(launch), ports=KV_PORTS
        ),
        exchange=Exchange(
            implementation="deepep" if _on_gpus(launch) and launch.rdma else "auto",
            dispatch="float8" if assumed.dispatch == "fp8" else "activations",
            timeout=Duration.parse("60s"),
        ),
        balance=Balance(redundant_experts=spare, split=twin.experts.split) if on_any else None,
        overlap=Overlap(mode=modes[0]),
    )
    return _head(launch) + render(made)


def _head(launch: Launch) -> str:
    return (
        f"# {launch.twin.name}: {launch.twin.prefill.units} prefill units of {launch.twin.prefill.ranks} ranks, "
        f"{launch.twin.decode.units} decode units of {launch.twin.decode.ranks}.\n"
        "# Ranks get their addresses on the lanes' interfaces from the command line, each server its own.\n\n"
    )


def _pool(launch: Launch, phase: Phase) -> Pool:
    pool = launch.pool(phase)
    made = Pool(
        ranks=pool.units * pool.ranks,
        expert_parallel=pool.ranks,
        device="cuda" if _on_gpus(launch) else "cpu",
        chunk_tokens=pool.chunk_tokens,
        max_running=pool.max_running,
        prefix_cache=pool.prefix_cache,
        launch="external",
    )
    size = launch.kv_bytes(phase)
    return msgspec.structs.replace(made, kv_memory=Size(size)) if size else made


def _phase(launch: Launch, phase: Phase) -> Command:
    layout = launch.layouts[phase]
    port = f"$(({MEETING_PORTS[phase]} + SLOT * {PORTS_A_UNIT}))"
    options = [
        Option.of("--nnodes", layout.servers, why="servers of a unit"),
        Option.of("--node-rank", Expanded("$NODE"), why="this one's number"),
        Option.of("--nproc-per-node", layout.gpus, why="ranks on each"),
        Option.of("--master-addr", Expanded("$HEAD"), why="the unit's first server"),
        Option.of("--master-port", Expanded(port), why="and where its ranks meet"),
        Option.of("--no-python", why="a command, no script"),
    ]
    options.append(Option.of("fourlane", "worker", DEPLOYMENT, why="one rank of the service"))
    options += _worker(launch, phase)
    experts, kv = _interfaces(launch)
    prepare = (
        "address_of() { # INTERFACE: this server's address on it",
        '  ip -4 -o address show dev "$1" | awk \'{ sub("/.*", "", $4); print $4; exit }\'',
        "}",
        f"EXPERT_ADDRESS=${{EXPERT_ADDRESS:-$(address_of {experts})}}  # experts travel on {experts}",
        f"KV_ADDRESS=${{KV_ADDRESS:-$(address_of {kv})}}  # KV cache on {kv}",
        ': "${EXPERT_ADDRESS:?this server has no IPv4 address on the interface of expert traffic}"',
        ': "${KV_ADDRESS:?this server has no IPv4 address on the interface of KV traffic}"',
    )
    return Command(("torchrun",), tuple(options), tuple(_environment()), prepare)


def _worker(launch: Launch, phase: Phase) -> Iterator[Option]:
    yield Option.of("--role", phase, why="its pool")
    yield Option.of("--gateway", Expanded(f"tcp://$GATEWAY:{CONTROL_PORT}"), why="where the gateway listens for ranks")
    yield Option.of("--secret-file", SECRET, why="what gateway and ranks know each other by")
    yield Option.of("--group", Expanded("$UNIT"), why="the unit is this expert-parallel group")
    yield Option.of("--set", Expanded("exchange.address=$EXPERT_ADDRESS"), why="the lane of expert traffic")
    yield Option.of("--set", Expanded("kv_transfer.address=$KV_ADDRESS"), why="the lane of KV traffic")
    pools = launch.twin.pools()
    if phase == "decode" and balanced(launch, phase):
        spare = pools["decode"].redundant_experts
        if spare != pools["prefill"].redundant_experts:
            yield Option.of("--set", f"balance.redundant_experts={spare}", why="this pool's own")
    if phase == "decode" and pools["decode"].overlap != pools["prefill"].overlap:
        yield Option.of("--set", f"overlap.mode={pools['decode'].overlap}", why="this pool's own")


def _interfaces(launch: Launch) -> tuple[str, str]:
    """Return the first interface of the networks that experts and KV cache travel on."""
    there = launch.cluster.networks()

    def first(kind: TrafficClass) -> str:
        wanted = launch.plan.classes[kind].network
        name: NetworkName = "hpn" if wanted == "both" else wanted
        return there[name].interfaces[0]

    return first(TrafficClass.EXPERT), first(TrafficClass.KV)


def _environment() -> Iterator[Variable]:
    yield Variable("OMP_NUM_THREADS", "1", "one compute thread a rank")


def _gateway() -> Command:
    options = (Option.of("--secret-file", SECRET, why="what gateway and ranks know each other by"),)
    return Command(("fourlane", "serve", DEPLOYMENT), options)


def _notes(launch: Launch) -> Iterator[str]:
    yield (
        "Anyone who reaches the gateway's port can use the service: set gateway.api_key in deployment.toml, or keep "
        "the port inside."
    )
    if not all(launch.kv_bytes(phase) for phase in launch.layouts):
        yield "The plan does not say how much memory KV cache gets; set prefill.kv_memory and decode.kv_memory."
    if launch.cluster.gpus_per_server > 1 and any(layout.per_server > 1 for layout in launch.layouts.values()):
        yield "Several units share a server: each takes GPUs of its own, by CUDA_VISIBLE_DEVICES."
