"""Launch a plan on SGLang: attention data-parallel, experts parallel over a unit, KV by Mooncake or NIXL.

Options are those of `sglang.toml` beside this module, which holds them to SGLang's own parser.

Source: sglang 0.5.23, sglang/srt/arg_groups (parallel_hook.py, moe_hook.py, pd_disaggregation_hook.py),
    sglang/srt/environ.py; sglang-router 0.3.2.
"""

from __future__ import annotations

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

TITLE = "SGLang 0.5.23"
IMAGE = "lmsysorg/sglang:v0.5.23"
HTTP_PORT = 30000
MEETING_PORT = 20000
BOOTSTRAP_PORT = 8998
ROUTER_PORT = 9000
MOST_PREFILL_TOKENS = 16384
"""SGLang's default of --max-prefill-tokens, beyond which a longer chunk would not be filled."""
_KV_DTYPES = {"bf16": "bf16", "fp8": "fp8_e4m3"}


def commands(launch: Launch) -> Commands:
    """Return what SGLang runs for a launch.

    Raises:
        SpecError: SGLang cannot do what the plan asks for.
    """
    refuse_hardware(launch, TITLE)
    _refuse_pages(launch)
    return Commands(
        engine=TITLE,
        image=IMAGE,
        phases={phase: _phase(launch, phase) for phase in launch.layouts},
        router=_router(launch),
        router_port=ROUTER_PORT,
        endpoints="heads",
        ports=dict.fromkeys(launch.layouts, HTTP_PORT),
        benchmark=_benchmark(launch),
        carriers=(
            ("deepep-v1",) if launch.rdma else ("nccl",),
            ("ucx",) if launch.connector == "nixl" else ("mooncake",),
        ),
        notes=tuple(_notes(launch)),
        token_ids=False,
    )


def _refuse_pages(launch: Launch) -> None:
    chunk, block = launch.pool("prefill").chunk_tokens, launch.twin.block_size
    if chunk % block:
        raise SpecError(
            f"prefill.chunk_tokens: {TITLE} cuts prompts in whole blocks of block_size = {block} tokens, got {chunk}; "
            f"use {chunk // block * block or block}"
        )


def _phase(launch: Launch, phase: Phase) -> Command:
    layout, pool = launch.layouts[phase], launch.pool(phase)
    options = [
        Option.of("--model-path", Expanded("$MODEL"), why="what is served"),
        Option.of("--served-model-name", launch.twin.model, why="what clients ask for"),
        Option.of("--host", Expanded("$HOST"), why="this server, as the router and other ranks reach it"),
        Option.of("--port", Expanded(f"$(({HTTP_PORT} + SLOT))"), why="units that share a server differ"),
        Option.of("--enable-metrics", why="for Prometheus"),
        *_parallel(launch, layout),
        *_exchange(launch, phase, pool),
        *_balance(launch, phase),
        *_batches(launch, phase, pool),
        *_memory(launch, phase, pool),
        *_disaggregation(launch, phase),
    ]
    program = ("python3", "-m", "sglang.launch_server")
    return Command(program, tuple(options), tuple(_environment(launch, phase)))


def _parallel(launch: Launch, layout: PoolLayout) -> Iterator[Option]:
    yield Option.of("--tp-size", layout.ranks, why="ranks of a unit")
    if layout.ranks > 1:
        yield Option.of("--attn-dp-size", layout.ranks, why="attention is data-parallel: a rank has its own sequences")
        yield Option.of("--enable-dp-lm-head", why="so is the output layer")
        if launch.architecture.dense_layers:
            yield Option.of("--moe-dense-tp-size", 1, why="and so are layers without experts")
    if layout.servers > 1:
        yield Option.of("--nnodes", layout.servers, why="servers of a unit")
        yield Option.of("--node-rank", Expanded("$NODE"), why="this one's number")
        address = Expanded(f"$HEAD:$(({MEETING_PORT} + SLOT))")
        yield Option.of("--dist-init-addr", address, why="where its ranks meet")
    if launch.architecture.name.startswith("kimi"):
        yield Option.of("--trust-remote-code", why="its tokenizer is code of the checkpoint")


def _exchange(launch: Launch, phase: Phase, pool: TwinPool) -> Iterator[Option]:
    if pool.ranks == 1:
        return
    yield Option.of("--ep-size", pool.ranks, why=f"each rank holds 1/{pool.ranks} of the experts")
    if not launch.rdma:
        yield Option.of("--moe-a2a-backend", "none", why="DeepEP's kernels need RoCE or InfiniBand")
    else:
        yield Option.of("--moe-a2a-backend", "deepep", why="expert dispatch and combine")
        few = low_latency(launch, phase)
        why = f"kernels for {'few' if few else 'many'} tokens a rank"
        yield Option.of("--deepep-mode", "low_latency" if few else "normal", why=why)
        if launch.twin.assumptions.dispatch == "bf16":
            yield Option.of("--deepep-dispatcher-output-dtype", "bf16", why="tokens travel as they are")
    if pool.overlap != "never":
        yield Option.of("--enable-two-batch-overlap", why="one half computes while the other travels")


def _balance(launch: Launch, phase: Phase) -> Iterator[Option]:
    if not balanced(launch, phase):
        return
    pool = launch.pool(phase)
    spare = spare_experts(launch.architecture, pool)
    yield Option.of("--enable-eplb", why="experts are placed by their load")
    algorithm = "fourlane" if launch.balancer == "fourlane" else "auto"
    yield Option.of("--eplb-algorithm", algorithm, why="who places them")
    slots = (launch.architecture.experts + spare) // pool.ranks
    yield Option.of("--ep-num-redundant-experts", spare, why=f"{slots} physical experts a rank and layer")
    yield Option.of("--ep-dispatch-algorithm", "dynamic", why="a token takes a random replica of its expert")


def _batches(launch: Launch, phase: Phase, pool: TwinPool) -> Iterator[Option]:
    why = f"{pool.max_running} sequences a rank: SGLang counts all ranks'"
    yield Option.of("--max-running-requests", pool.max_running * pool.ranks, why=why)
    if phase == "prefill":
        why = f"{pool.chunk_tokens} tokens a rank and step: SGLang divides by the ranks"
        yield Option.of("--chunked-prefill-size", pool.chunk_tokens * pool.ranks, why=why)
        if pool.chunk_tokens > MOST_PREFILL_TOKENS:
            yield Option.of("--max-prefill-tokens", pool.chunk_tokens, why="a step may hold a whole chunk")
    else:
        yield Option.of("--cuda-graph-max-bs-decode", pool.max_running, why="graphs up to a full batch")
    if drafts := launch.twin.assumptions.mtp_tokens:
        yield Option.of("--speculative-algorithm", "EAGLE", why="multi-token prediction")
        yield Option.of("--speculative-num-steps", drafts, why="drafted tokens")
        yield Option.of("--speculative-eagle-topk", 1, why="one draft, no tree")
        yield Option.of("--speculative-num-draft-tokens", drafts + 1, why="rows a sequence has in a step")


def _memory(launch: Launch, phase: Phase, pool: TwinPool) -> Iterator[Option]:
    if wanted := quantization(launch, TITLE):
        yield Option.of("--quantization", wanted, why="the checkpoint is in another form")
    if launch.twin.assumptions.kv == "fp32":
        raise SpecError(f'assumptions.kv: {TITLE} holds KV cache as "bf16" or "fp8", got "fp32"')
    yield Option.of("--kv-cache-dtype", _KV_DTYPES[launch.twin.assumptions.kv], why="as the plan counts KV cache")
    yield Option.of("--page-size", launch.twin.block_size, why="tokens of a KV block")
    if size := launch.kv_tokens(phase):
        yield Option.of("--max-total-tokens", size, why="KV cache of a rank in tokens, as planned")
    if phase == "prefill" and not pool.prefix_cache:
        yield Option.of("--disable-radix-cache", why="as planned")


def _disaggregation(launch: Launch, phase: Phase) -> Iterator[Option]:
    yield Option.of("--disaggregation-mode", phase, why="the other phase runs elsewhere")
    backend: str = launch.connector
    devices = kv_devices(launch)
    if backend == "mooncake" and not devices:
        backend = "mooncake_tcp"
    yield Option.of("--disaggregation-transfer-backend", backend, why="what moves KV cache")
    if backend == "mooncake":
        why = "of the network that KV cache travels on"
        yield Option.of("--disaggregation-ib-device", ",".join(devices), why=why)
    if phase == "prefill":
        port = Expanded(f"$(({BOOTSTRAP_PORT} + SLOT))")
        yield Option.of("--disaggregation-bootstrap-port", port, why="where decode ranks ask for prefill ranks")


def _environment(launch: Launch, phase: Phase) -> Iterator[Variable]:
    yield Variable("GLOO_SOCKET_IFNAME", control_interface(launch), "where ranks meet and agree")
    if launch.rdma and launch.pool(phase).ranks > 1 and low_latency(launch, phase):
        name = "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"
        yield Variable(name, str(step_rows(launch, phase)), "a full batch fits the low-latency kernels' buffers")


def _router(launch: Launch) -> Command:
    options = (
        Option.of("--pd-disaggregation", why="prefill and decode apart"),
        Option.of("--host", "0.0.0.0", why="clients are elsewhere"),  # noqa: S104
        Option.of("--port", ROUTER_PORT, why="where they find it"),
        Option.of("--prefill-policy", "cache_aware", why="prompts that begin alike go to the same unit"),
        _decode_policy(launch),
    )
    url = f'"http://${{place%:*}}:$(({HTTP_PORT} + ${{place##*:}}))"'
    bootstrap = f'"$(({BOOTSTRAP_PORT} + ${{place##*:}}))"'
    prepare = (
        f"for place in $PREFILL; do arguments+=(--prefill {url} {bootstrap}); done",
        f"for place in $DECODE; do arguments+=(--decode {url}); done",
    )
    return Command(("python3", "-m", "sglang_router.launch_router"), options, prepare=prepare)


def _decode_policy(launch: Launch) -> Option:
    if launch.layouts["decode"].units == 1:  # the router refuses to choose between fewer than two
        return Option.of("--decode-policy", "round_robin", why="there is one decode unit")
    return Option.of("--decode-policy", "power_of_two", why="the emptier of two")


def _benchmark(launch: Launch) -> Command:
    load = mean_load(launch.twin.workload)
    options = [
        Option.of("--backend", "sglang", why="its own API, through the router"),
        Option.of("--base-url", Expanded("$URL"), why="the router"),
        Option.of("--model", Expanded("$MODEL"), why="whose tokenizer is used"),
        Option.of("--served-model-name", launch.twin.model, why="what is asked for"),
        Option.of("--pd-separated", why="prefill and decode apart"),
        Option.of("--dataset-name", "random-ids", why="drawn prompts, no data set to fetch"),
        Option.of("--random-input-len", load.inputs, why="mean of the plan's prompts"),
        Option.of("--random-output-len", load.outputs, why="mean of its answers"),
        Option.of("--random-range-ratio", "1.0", why="all of that length"),
        Option.of("--num-prompts", load.requests, why="requests"),
    ]
    if load.rate is not None:
        options.append(Option.of("--request-rate", f"{load.rate:g}", why="a second"))
    if load.concurrency is not None:
        options.append(Option.of("--max-concurrency", load.concurrency, why="requests under way"))
    goals = launch.twin.slo
    bounds = [
        f"{name}:{limit.seconds * 1000:g}" for name, limit in (("ttft", goals.ttft), ("tpot", goals.tpot)) if limit
    ]
    if bounds:
        options.append(Option.of("--goodput", *bounds, why="the plan's SLO, in ms"))
    return Command(("python3", "-m", "sglang.bench_serving"), tuple(options))


def _notes(launch: Launch) -> Iterator[str]:
    yield "The router is a package of its own: pip install sglang-router==0.3.2."
    yield from notes_on_experts(launch, TITLE, switch="--eplb-algorithm fourlane")
    if launch.rdma:
        yield "DeepEP and NVSHMEM must be installed beside SGLang on every server, as they are in its image."
    else:
        yield "Without RDMA ranks exchange tokens by collectives, and two streams hide less than the plan assumes."
    yield "SGLang sends KV cache chunk by chunk, not layer by layer as the plan assumes."
