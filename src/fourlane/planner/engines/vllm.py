"""Launch a plan on vLLM: attention data-parallel, experts parallel over all ranks of a unit, KV by NIXL or Mooncake.

Options are those of `vllm.toml` beside this module, which holds them to vLLM's own parser.

Source: vllm 0.32.0, vllm/config/parallel.py, vllm/config/vllm.py, vllm/engine/arg_utils.py,
    vllm/distributed/kv_transfer/kv_connector/v1.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.planner.engines.common import (
    balanced,
    control_interface,
    kv_devices,
    low_latency,
    mean_load,
    notes_on_experts,
    quantization,
    refuse_hardware,
    step_rows,
)
from fourlane.planner.launch import Command, Commands, Expanded, Option, Variable, spare_experts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.planner.launch import Launch, PoolLayout
    from fourlane.spec.twin import TwinPool
    from fourlane.twin.times import Phase

__all__ = ["commands"]

TITLE = "vLLM 0.32.0"
IMAGE = "vllm/vllm-openai:v0.32.0"
HTTP_PORT = 8000
RPC_PORT = 13345
NIXL_PORT = 5600
BOOTSTRAP_PORT = 8998
ROUTER_PORT = 9000
ROUTER = "pd_router.py"
LEAST_OVERLAPPED = 2
"""Rows from which a step is cut in two where two streams are always wanted: one for each half."""
_CONNECTORS = {"nixl": "NixlConnector", "mooncake": "MooncakeConnector"}
_KV_DTYPES = {"bf16": "bfloat16", "fp8": "fp8"}
_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


def commands(launch: Launch) -> Commands:
    """Return what vLLM runs for a launch.

    Raises:
        SpecError: vLLM cannot do what the plan asks for.
    """
    refuse_hardware(launch, TITLE)
    router = resources.files("fourlane.planner").joinpath("files", ROUTER).read_text(encoding="utf-8")
    return Commands(
        engine=TITLE,
        image=IMAGE,
        phases={phase: _phase(launch, phase) for phase in launch.layouts},
        router=_router(launch),
        router_port=ROUTER_PORT,
        endpoints="servers",
        ports=dict.fromkeys(launch.layouts, HTTP_PORT),
        benchmark=_benchmark(launch),
        carriers=(
            ("deepep-v1",) if launch.rdma else ("nccl",),
            ("ucx",) if launch.connector == "nixl" else ("mooncake",),
        ),
        files={ROUTER: router},
        notes=tuple(_notes(launch)),
    )


def _phase(launch: Launch, phase: Phase) -> Command:
    layout, pool = launch.layouts[phase], launch.pool(phase)
    options = [
        Option.of("--host", "0.0.0.0", why="the router is on another server"),  # noqa: S104
        Option.of("--port", Expanded(f"$(({HTTP_PORT} + SLOT))"), why="units that share a server differ"),
        Option.of("--served-model-name", launch.twin.model, why="what clients ask for"),
        *_parallel(launch, layout),
        *_exchange(launch, phase, pool),
        *_balance(launch, phase),
        *_batches(launch, phase, pool),
        *_memory(launch, phase, pool),
        *_kv_transfer(launch, phase),
    ]
    return Command(("vllm", "serve", Expanded("$MODEL")), tuple(options), tuple(_environment(launch, layout)))


def _parallel(launch: Launch, layout: PoolLayout) -> Iterator[Option]:
    yield Option.of("--tensor-parallel-size", 1, why="attention is data-parallel: each rank has its own sequences")
    yield Option.of("--data-parallel-size", layout.ranks, why="ranks of a unit")
    if layout.servers > 1:
        yield Option.of("--data-parallel-size-local", layout.gpus, why="of them on this server")
        start = Expanded(f"$((NODE * {layout.gpus}))")
        yield Option.of("--data-parallel-start-rank", start, why="the first of them")
        yield Option.of("--data-parallel-address", Expanded("$HEAD"), why="the unit's first server")
        port = Expanded(f"$(({RPC_PORT} + SLOT))")
        yield Option.of("--data-parallel-rpc-port", port, why="where its ranks meet")
        yield Option.of("--data-parallel-hybrid-lb", why="every server answers HTTP for its own ranks")
    if launch.architecture.name.startswith("kimi"):
        yield Option.of("--trust-remote-code", why="its tokenizer is code of the checkpoint")


def _exchange(launch: Launch, phase: Phase, pool: TwinPool) -> Iterator[Option]:
    if pool.ranks == 1:
        return
    yield Option.of("--enable-expert-parallel", why=f"each rank holds 1/{pool.ranks} of the experts")
    if not launch.rdma:
        why = "DeepEP's kernels need RoCE or InfiniBand"
        yield Option.of("--all2all-backend", "allgather_reducescatter", why=why)
        return
    if low_latency(launch, phase):
        why = "kernels for few tokens a rank"
        yield Option.of("--all2all-backend", "deepep_low_latency", why=why)
    else:
        why = "kernels for many tokens a rank"
        yield Option.of("--all2all-backend", "deepep_high_throughput", why=why)
    if pool.overlap == "never":
        return
    yield Option.of("--enable-dbo", why="two micro-batches in turn: one computes while the other travels")
    if pool.overlap == "always":
        name = "--dbo-prefill-token-threshold" if phase == "prefill" else "--dbo-decode-token-threshold"
        yield Option.of(name, LEAST_OVERLAPPED, why="from so many tokens on")


def _balance(launch: Launch, phase: Phase) -> Iterator[Option]:
    if not balanced(launch, phase):
        return
    pool = launch.pool(phase)
    spare = spare_experts(launch.architecture, pool)
    yield Option.of("--enable-eplb", why="experts are placed by their load")
    config = json.dumps({"num_redundant_experts": spare, "window_size": 1000, "step_interval": 3000})
    slots = (launch.architecture.experts + spare) // pool.ranks
    yield Option.of("--eplb-config", config, why=f"{slots} physical experts a rank and layer")


def _batches(launch: Launch, phase: Phase, pool: TwinPool) -> Iterator[Option]:
    rows = step_rows(launch, phase)
    yield Option.of("--max-num-seqs", pool.max_running, why="sequences a rank")
    yield Option.of("--max-num-batched-tokens", rows, why="tokens a rank computes in a step")
    if phase == "decode":
        yield Option.of("--max-cudagraph-capture-size", rows, why="graphs up to a full batch")
    if launch.twin.assumptions.mtp_tokens:
        drafts = {"method": "mtp", "num_speculative_tokens": launch.twin.assumptions.mtp_tokens}
        yield Option.of("--speculative-config", json.dumps(drafts), why="multi-token prediction")


def _memory(launch: Launch, phase: Phase, pool: TwinPool) -> Iterator[Option]:
    if wanted := quantization(launch, TITLE):
        yield Option.of("--quantization", wanted, why="the checkpoint is in another form")
    yield Option.of("--kv-cache-dtype", _kv_dtype(launch), why="as the plan counts KV cache")
    yield Option.of("--block-size", launch.twin.block_size, why="tokens of a KV block")
    if size := launch.kv_bytes(phase):
        yield Option.of("--kv-cache-memory-bytes", size, why="KV cache of a rank, as planned")
    if pool.prefix_cache:
        yield Option.of("--enable-prefix-caching", why="prompts that begin alike are computed once")
    else:
        yield Option.of("--no-enable-prefix-caching", why="as planned")


def _kv_dtype(launch: Launch) -> str:
    wanted = launch.twin.assumptions.kv
    if wanted == "fp32":
        raise SpecError(f'assumptions.kv: {TITLE} holds KV cache as "bf16" or "fp8", got "fp32"')
    return _KV_DTYPES[wanted]


def _kv_transfer(launch: Launch, phase: Phase) -> Iterator[Option]:
    config: dict[str, object] = {"kv_connector": _CONNECTORS[launch.connector], "kv_role": _ROLES[phase]}
    if launch.connector == "mooncake" and (devices := kv_devices(launch)):
        config["kv_connector_extra_config"] = {"mooncake_protocol": "rdma", "device_name": ",".join(devices)}
    elif launch.connector == "mooncake":
        config["kv_connector_extra_config"] = {"mooncake_protocol": "tcp"}
    why = "KV cache goes from prefill to decode ranks"
    yield Option.of("--kv-transfer-config", json.dumps(config), why=why)


def _environment(launch: Launch, layout: PoolLayout) -> Iterator[Variable]:
    yield Variable("GLOO_SOCKET_IFNAME", control_interface(launch), "where ranks meet and agree")
    if launch.connector == "nixl":
        yield Variable("VLLM_NIXL_SIDE_CHANNEL_HOST", Expanded("$HOST"), "where NIXL agents shake hands")
        port = Expanded(f"$(({NIXL_PORT} + SLOT * {layout.ranks}))")
        yield Variable("VLLM_NIXL_SIDE_CHANNEL_PORT", port, "of the unit's rank 0; a rank's is its number on")
    else:
        port = Expanded(f"$(({BOOTSTRAP_PORT} + SLOT))")
        yield Variable("VLLM_MOONCAKE_BOOTSTRAP_PORT", port, "where the router asks for prefill ranks")
    if launch.balancer == "fourlane":
        yield Variable("FOURLANE_VLLM_EPLB", "1", "fourlane's placement in place of vLLM's")


def _router(launch: Launch) -> Command:
    options = [
        Option.of("--host", "0.0.0.0", why="clients are elsewhere"),  # noqa: S104
        Option.of("--port", ROUTER_PORT, why="where they find it"),
        Option.of("--connector", launch.connector, why="what moves KV cache"),
    ]
    prefill = f'arguments+=(--prefill "http://${{place%:*}}:$(({HTTP_PORT} + ${{place##*:}}))")'
    if launch.connector == "mooncake":
        prefill += f'; arguments+=(--bootstrap "http://${{place%:*}}:$(({BOOTSTRAP_PORT} + ${{place##*:}}))")'
    decode = f'arguments+=(--decode "http://${{place%:*}}:$(({HTTP_PORT} + ${{place##*:}}))")'
    prepare = [f"for place in $PREFILL; do {prefill}; done", f"for place in $DECODE; do {decode}; done"]
    return Command(("python3", ROUTER), tuple(options), prepare=tuple(prepare))


def _benchmark(launch: Launch) -> Command:
    load = mean_load(launch.twin.workload)
    options = [
        Option.of("--backend", "openai", why="completions, by HTTP"),
        Option.of("--base-url", Expanded("$URL"), why="the router"),
        Option.of("--model", Expanded("$MODEL"), why="whose tokenizer is used"),
        Option.of("--served-model-name", launch.twin.model, why="what is asked for"),
        Option.of("--dataset-name", "random", why="drawn prompts"),
        Option.of("--random-input-len", load.inputs, why="mean of the plan's prompts"),
        Option.of("--random-output-len", load.outputs, why="mean of its answers"),
        Option.of("--num-prompts", load.requests, why="requests"),
        Option.of("--ignore-eos", why="answers have their planned length"),
    ]
    if prefix := launch.twin.workload.shared_prefix:
        options.append(Option.of("--random-prefix-len", prefix, why="what all prompts begin with"))
    if load.rate is not None:
        options.append(Option.of("--request-rate", f"{load.rate:g}", why="a second"))
        burstiness = 1 / load.burstiness**2 if load.burstiness else None
        if burstiness not in (None, 1.0):
            why = "vLLM's is a shape: 1 / variation^2"
            options.append(Option.of("--burstiness", f"{burstiness:g}", why=why))
    if load.concurrency is not None:
        options.append(Option.of("--max-concurrency", load.concurrency, why="requests under way"))
    goals = launch.twin.slo
    bounds = [
        f"{name}:{limit.seconds * 1000:g}" for name, limit in (("ttft", goals.ttft), ("tpot", goals.tpot)) if limit
    ]
    if bounds:
        options.append(Option.of("--goodput", *bounds, why="the plan's SLO, in ms"))
    return Command(("vllm", "bench", "serve"), tuple(options))


def _notes(launch: Launch) -> Iterator[str]:
    yield from notes_on_experts(launch, TITLE, switch="FOURLANE_VLLM_EPLB=1")
    if launch.rdma:
        yield "DeepEP and NVSHMEM must be installed beside vLLM on every server; they are no part of its package."
    if not launch.rdma and any(launch.pool(phase).overlap != "never" for phase in launch.layouts):
        yield "Two streams were planned; vLLM overlaps with DeepEP's kernels only, which this network cannot carry."
    if launch.connector == "nixl":
        yield "NIXL reads its devices and marks from UCX's variables, which the lane plan's environment sets."
    yield (
        "vLLM sends KV cache when a prompt is done, not layer by layer as the plan assumes: time to first token on the "
        "decode side is longer by the transfer."
    )
