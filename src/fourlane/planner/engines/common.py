"""What launching on any engine takes: which kernels fit, what a step holds, what the engines cannot do, the load."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.planner.launch import Command, Expanded, Option, spare_experts
from fourlane.spec.deployment_rules import MOST_LOW_LATENCY_TOKENS
from fourlane.spec.request_load import Lengths
from fourlane.spec.request_traces import read_trace_rows
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.planner.launch import Launch
    from fourlane.spec.twin import Workload
    from fourlane.twin.times import Phase

__all__ = [
    "MeanLoad",
    "balanced",
    "control_interface",
    "kv_devices",
    "low_latency",
    "mean_load",
    "notes_on_experts",
    "own_benchmark",
    "quantization",
    "refuse_hardware",
    "step_rows",
]

USUAL_REQUESTS = 2000
_Z99 = 2.3263478740408408  # the 99th percentile of the standard normal distribution
_NOT_CUDA = ("ascend", "kunlun")


def refuse_hardware(launch: Launch, engine: str) -> None:
    """See that the engine's options, which are those of NVIDIA GPUs, fit the hardware.

    Raises:
        SpecError: they do not.
    """
    found = launch.gpu
    if found is None or found.startswith(_NOT_CUDA):
        what = "none" if found is None else found
        raise SpecError(
            f"--engine: {engine} is launched with options for NVIDIA GPUs, and cluster {launch.cluster.name} has "
            f'{what}; expected one of those as its "gpu" or as the twin\'s hardware, or --engine fourlane'
        )


def step_rows(launch: Launch, phase: Phase) -> int:
    """Return how many tokens a rank may compute in a step."""
    pool = launch.pool(phase)
    if phase == "prefill":
        return pool.chunk_tokens
    return pool.max_running * (1 + launch.twin.assumptions.mtp_tokens)


def low_latency(launch: Launch, phase: Phase) -> bool:
    """Tell whether DeepEP's low-latency kernels are meant: decoding, with no more tokens than their queues hold."""
    return phase == "decode" and step_rows(launch, phase) <= MOST_LOW_LATENCY_TOKENS


def balanced(launch: Launch, phase: Phase) -> bool:
    """Tell whether a phase's experts are placed by their load, rather than in order."""
    pool = launch.pool(phase)
    spare = spare_experts(launch.architecture, pool)
    return pool.ranks > 1 and (launch.twin.experts.placement == "balanced" or spare > 0)


def quantization(launch: Launch, engine: str) -> str | None:
    """Return in which form weights are to be loaded where the checkpoint has another; None: as they are.

    Raises:
        SpecError: the engine cannot turn one into the other.
    """
    wanted, found = launch.twin.assumptions.weights, launch.architecture.weights
    if wanted in (None, found):
        return None
    if wanted == "fp8" and found in ("bf16", "fp32"):
        return "fp8"
    raise SpecError(
        f"assumptions.weights: {engine} does not load {found} weights of {launch.architecture.name} as {wanted}; leave "
        f"it out to take them as they are{', or use fp8' if found != 'fp8' else ''}, and plan again"
    )


def kv_devices(launch: Launch) -> tuple[str, ...]:
    """Return the RDMA devices of the network that KV cache travels on."""
    network = launch.plan.classes[TrafficClass.KV].network
    return launch.cluster.networks()["hpn" if network == "both" else network].devices


def control_interface(launch: Launch) -> str:
    """Return the interface of control messages: the first of the network that is not for experts, if there is one."""
    return list(launch.cluster.networks().values())[-1].interfaces[0]


def notes_on_experts(launch: Launch, engine: str, *, switch: str) -> Iterator[str]:
    """Say what another engine does with experts that the plan did not assume.

    Args:
        launch: the launch.
        engine: its name.
        switch: what switches fourlane's plug-in on.
    """
    spare = [phase for phase in launch.layouts if spare_experts(launch.architecture, launch.pool(phase))]
    if launch.twin.experts.split and spare and not launch.twin.experts.forced:
        yield (
            f"The plan splits each batch over an expert's replicas; {engine} shares tokens out blindly, so that the "
            "fullest rank has more to do. Plan with experts.split = false to see what that costs."
        )
    if launch.balancer == "fourlane":
        yield f"{switch} needs fourlane installed beside {engine} on every server (pip install fourlane)."
    elif any(balanced(launch, phase) for phase in launch.layouts):
        yield f"Experts are placed by {engine}'s own balancer; --balancer fourlane renders the plan's placement."
    for phase in launch.layouts:
        if launch.pool(phase).ranks > 1 and launch.rdma and phase == "decode" and not low_latency(launch, phase):
            yield (
                f"A decode step of up to {step_rows(launch, phase)} tokens a rank is more than the queues of DeepEP's "
                f"low-latency kernels hold ({MOST_LOW_LATENCY_TOKENS}); the normal ones are used."
            )


@dataclass(frozen=True, slots=True)
class MeanLoad:
    """A load as tools know it that draw all requests alike.

    Args:
        requests: to send.
        inputs, outputs: tokens of each prompt and answer.
        rate: requests a second; None in a closed loop.
        concurrency: requests under way, of a closed loop.
        burstiness: variation of the gaps.
    """

    requests: int
    inputs: int
    outputs: int
    rate: float | None
    concurrency: int | None
    burstiness: float


def mean_load(load: Workload) -> MeanLoad:
    """Return the means of drawn requests, or of a trace's.

    Raises:
        SpecError: the trace cannot be read.
    """
    if load.trace is not None:
        rows = read_trace_rows(Path(load.trace), limit=load.requests)
        lasts = max(rows[-1].at_s - rows[0].at_s, 1e-9) / load.speed
        inputs, outputs = (
            max(1, round(sum(lengths) / len(rows)))
            for lengths in ([row.input_length for row in rows], [row.output_length for row in rows])
        )
        return MeanLoad(len(rows), inputs, outputs, round(len(rows) / lasts, 3), None, 1.0)
    inputs, outputs = (
        _mean(Lengths.parse(text, name=f"workload.{name}"))
        for name, text in (("input_len", load.input_len), ("output_len", load.output_len))
    )
    return MeanLoad(load.requests or USUAL_REQUESTS, inputs, outputs, load.rate, load.concurrency, load.burstiness)


def _mean(lengths: Lengths) -> int:
    if lengths.kind == "lognormal":
        sigma = math.log(lengths.high / lengths.low) / _Z99
        return max(1, round(lengths.low * math.exp(sigma**2 / 2)))
    return max(1, round((lengths.low + lengths.high) / 2))


def own_benchmark(launch: Launch) -> Command:
    """Return the plan's load as `fourlane bench serve` sends it: the very lengths and arrivals, or the trace."""
    load, goals = launch.twin.workload, launch.twin.slo
    options = [Option.of("--url", Expanded("$URL"), why="the router"), *_requests(load)]
    if load.rate is not None:
        options.append(Option.of("--rate", f"{load.rate:g}", why="requests a second"))
        options.append(Option.of("--burstiness", f"{load.burstiness:g}", why="variation of the gaps"))
    elif load.trace is None:
        options.append(Option.of("--concurrency", load.concurrency or 1, why="requests under way"))
    if load.warmup:
        options.append(Option.of("--warmup", load.warmup, why="requests before measuring"))
    for name, limit in (("--slo-ttft", goals.ttft), ("--slo-tpot", goals.tpot)):
        if limit is not None:
            options.append(Option.of(name, limit, why="the plan's SLO"))
    options += [
        Option.of("--seed", launch.twin.seed, why="of lengths and arrivals"),
        Option.of("--json", "benchmark.json", why="every figure and request"),
        Option.of("--plot", "benchmark.png", why="distributions and a timeline"),
    ]
    return Command(("fourlane", "bench", "serve"), tuple(options))


def _requests(load: Workload) -> Iterator[Option]:
    if load.trace is not None:
        yield Option.of("--trace", Path(load.trace).absolute(), why="the plan's trace")
        yield Option.of("--speed", f"{load.speed:g}", why="times as fast")
    else:
        yield Option.of("--input-len", load.input_len, why="tokens of prompts")
        yield Option.of("--output-len", load.output_len, why="tokens of answers")
    if load.trace is None or load.requests is not None:
        yield Option.of("--requests", load.requests or USUAL_REQUESTS, why="requests")
