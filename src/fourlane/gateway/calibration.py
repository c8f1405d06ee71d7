"""Measure what the twin has to know of this machine: passes, exchange and KV path of its ranks, steps of its service.

    profile = calibrate(deployment)

Passes are measured part by part on ranks of their own, with nothing beside them; then the deployment is brought up and
sent small loads, which say what its steps take beyond that, and how units of both phases slow each other down where
they share cores. Not for judging how good a service is (`fourlane bench`).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from fourlane import __version__
from fourlane.engine.calibration import CalibrationPlan, PassCase, machine_name, measure_alone, measured_phase
from fourlane.engine.measured_ranks import Seats, meeting_place
from fourlane.engine.model.config import resolve_model_path
from fourlane.engine.rank_config import exchange_of
from fourlane.errors import EngineError, SpecError
from fourlane.gateway.live_steps import LiveService
from fourlane.gateway.mixed_loads import fitted, mixed_loads
from fourlane.gateway.processor_use import ProcessorUse
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.hardware_profile import (
    Crowding,
    HardwareProfile,
    MeasuredKv,
    MeasuredOverheads,
    MeasuredPart,
    MeasuredPhase,
)
from fourlane.twin.assembly_parts import DISPATCHED
from fourlane.twin.measured_times import PassLoad, pass_seconds, seconds_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from fourlane.gateway.live_steps import Gap
    from fourlane.gateway.mixed_loads import MixedLoad, Pace
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.deployment import Deployment, Pool

__all__ = ["Effort", "calibrate"]

Phase = Literal["prefill", "decode"]
_NOTHING = MeasuredPart(rows=(1.0,), seconds=(0.0,))
_BURSTS = 6
_DISTURBED = 0.06
"""Share of the processors that others may use while something is measured."""
_PATIENCE = 3
K = TypeVar("K")
V = TypeVar("V")
_STEPS = 109
"""About as many as there are with two ranks a unit."""
_SHORT, _LONG = 96, 480
"""Tokens that decoding sequences have when their passes are measured."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long it is measured.

    Args:
        pass_s: of passes of each load, in each round; pass_rounds: of which the quickest counts.
        rounds: of each load of the running service in which others use hardly any of the processors; the median counts.
        Disturbed ones are taken again, up to so many times as many; where all are, the quickest counts.
        output: tokens of each decoding sequence in the running service.
        prompts: of each length.
        crowded_s: of prompts beside decoding sequences.
    """

    pass_s: float = 0.1
    rounds: int = 3
    pass_rounds: int = 5
    output: int = 64
    prompts: int = 8
    crowded_s: float = 1.0


def calibrate(
    deployment: Deployment, *, effort: Effort | None = None, show: Callable[[int, int, str], None] | None = None
) -> HardwareProfile:
    """Measure this machine by a deployment, and return its profile.

    Args:
        deployment: prefill and decode pools of one group each, of as many ranks, on this host.
        effort: how long it is measured; None: about a minute for the bundled model.
        show: told how many steps of measuring are done, of how many, and what is measured now.

    Raises:
        SpecError: the deployment cannot be measured.
        CheckFailed, EngineError: something failed while it was.
    """
    effort = effort or Effort()
    pools = _pools(deployment)
    steps = _Steps(show)
    model = str(resolve_model_path(deployment.model.path))
    architecture = load_architecture(deployment.model.path)
    longest = deployment.model.max_length or _max_positions(model)
    phases = {
        phase: _measure_passes(phase, deployment, pool, model, longest, effort, steps) for phase, pool in pools.items()
    }
    kv = _measure_kv(deployment, steps)
    live = asyncio.run(_Live(deployment, architecture, phases, longest, effort, steps).measure())
    profile = HardwareProfile(
        name=f"{os.cpu_count()}-cores" if pools["decode"].device == "cpu" else pools["decode"].device,
        machine=machine_name(pools["decode"].device),
        device=pools["decode"].device,
        cores=os.cpu_count() if pools["decode"].device == "cpu" else None,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        source="fourlane twin calibrate"
        + (f" ({live.disturbed} of its loads always disturbed by other work)" if live.disturbed else ""),
        fitted="what steps take beside their passes, and what decoding loses to prompts and to sequences that join: "
        "steps and mixed loads of the running service, of calibration's own",
        versions=_versions(),
        model=deployment.model.path,
        architecture=architecture,
        ranks=pools["decode"].ranks,
        exchange=exchange_of(deployment, pools["decode"]) if pools["decode"].ranks > 1 else "local",
        prefill=live.prefill,
        decode=live.decode,
        kv=MeasuredKv(transport=kv[0], bytes_per_s=kv[1], latency_s=live.hand_off_s),
        overheads=live.overheads,
        crowding=live.crowding,
    )
    if live.mixed:
        steps("the twin is fitted to mixed loads")
        profile = fitted(profile, deployment, live.mixed)
    return profile


class _Steps:
    """Steps of measuring, counted; how many there will be is known from their kinds."""

    def __init__(self, show: Callable[[int, int, str], None] | None) -> None:
        self._show = show
        self._done = 0

    def __call__(self, text: str) -> None:
        """Begin another step."""
        if self._show is not None:
            self._show(self._done, max(_STEPS, self._done + 1), text)
        self._done += 1


def _pools(deployment: Deployment) -> dict[Phase, Pool]:
    """Return both pools.

    Raises:
        SpecError: they are not of the kind that can be measured here.
    """
    prefill, decode = deployment.prefill, deployment.decode
    if prefill is None or decode is None:
        raise SpecError("expected a deployment with [prefill] and [decode]: the twin simulates both phases apart")
    faults = [
        f"{role}.{name}: {message}"
        for role, pool in (("prefill", prefill), ("decode", decode))
        for name, message in _pool_faults(pool)
    ]
    if prefill.ranks != decode.ranks:
        faults.append(f"decode.ranks: expected {prefill.ranks} as prefill.ranks is, got {decode.ranks}")
    if faults:
        raise SpecError(*faults)
    return {"prefill": prefill, "decode": decode}


def _pool_faults(pool: Pool) -> list[tuple[str, str]]:
    faults = []
    if pool.launch != "local":
        faults.append(("launch", f'expected "local": ranks are measured on this host, got "{pool.launch}"'))
    if (pool.expert_parallel or pool.ranks) != pool.ranks:
        faults.append(("expert_parallel", f"expected {pool.ranks}, one group a pool, got {pool.expert_parallel}"))
    if pool.device != "cpu" and pool.ranks > 1:
        faults.append(("ranks", f"expected 1 on a GPU: passes of groups are measured on CPUs, got {pool.ranks}"))
    return faults


# passes


def _measure_passes(
    phase: Phase,
    deployment: Deployment,
    pool: Pool,
    model: str,
    longest: int,
    effort: Effort,
    show: _Steps,
) -> MeasuredPhase:
    cases = _decode_cases(pool, longest) if phase == "decode" else _prefill_cases(pool, longest)
    with meeting_place() as folder:
        plan = CalibrationPlan(
            seats=Seats(addresses=(deployment.exchange.address,) * pool.ranks, folder=folder),
            model=model,
            device=pool.device,
            exchange=exchange_of(deployment, pool) if pool.ranks > 1 else "local",
            threads=pool.threads,
            cases=tuple(cases),
            seconds=effort.pass_s,
            rounds=effort.pass_rounds,
        )
        times = measure_alone(plan, lambda case: show(f"passes: {phase}, {case.rows} rows a rank"))
    top_k = load_architecture(deployment.model.path).top_k
    return measured_phase(times, top_k=top_k, ranks=pool.ranks, beside=_NOTHING)


def _decode_cases(pool: Pool, longest: int) -> list[PassCase]:
    long, short = min(_LONG, longest - 2), min(_SHORT, longest // 4)
    rows = [rows for rows in (1, 2, 4, 8, 16, 32) if rows <= pool.max_running]
    cases = [PassCase(phase="decode", rows=each, context=short) for each in rows]
    cases.append(PassCase(phase="decode", rows=rows[len(rows) // 2], context=long))
    if pool.ranks > 1:
        cases.insert(0, PassCase(phase="decode", rows=1, context=short, lone=True))
    return cases


def _prefill_cases(pool: Pool, longest: int) -> list[PassCase]:
    most = min(pool.chunk_tokens, longest - 1)
    sizes = sorted({most, *(size for size in (16, 64, 128, 256, 512, 2048, 8192) if size < most)})
    cases = [PassCase(phase="prefill", rows=size, context=size) for size in sizes]
    cases.append(PassCase(phase="prefill", rows=most, context=max(1, most // 4)))
    if pool.ranks > 1:
        cases += [PassCase(phase="prefill", rows=size, context=size, lone=True) for size in sizes]
    return cases


def _measure_kv(deployment: Deployment, show: _Steps) -> tuple[str, float]:
    """Return the transport of KV inside this host, and its bytes a second."""
    from fourlane.engine.kv_transfer.measure import GRAIN, Sending

    show("KV transfer")
    wanted = deployment.kv_transfer.transport
    transport = "shared_memory" if wanted == "auto" else wanted
    size = 256 * GRAIN
    with Sending(deployment.kv_transfer, largest=size) as sending, sending.open(transport) as time_series:
        series = time_series(size, 15)
    return transport, size / statistics.median(series.seconds)


# the running service


@dataclass(frozen=True, slots=True)
class _Found:
    """What the running service showed."""

    prefill: MeasuredPhase
    decode: MeasuredPhase
    overheads: MeasuredOverheads
    hand_off_s: float
    crowding: Crowding | None
    mixed: dict[MixedLoad, Pace]
    disturbed: int


class _Live:
    """A deployment that is brought up and sent loads, whose steps are compared with passes measured alone."""

    def __init__(
        self,
        deployment: Deployment,
        architecture: Architecture,
        phases: dict[Phase, MeasuredPhase],
        longest: int,
        effort: Effort,
        show: _Steps,
    ) -> None:
        self._deployment, self._architecture, self._phases = deployment, architecture, phases
        self._ranks = _pools(deployment)["decode"].ranks
        self._longest, self._effort, self._show = longest, effort, show
        self._pids: list[int] = []
        self._disturbed = 0
        """Loads that others disturbed every time."""

    async def _in_turn(
        self, measures: Mapping[K, Callable[[], Awaitable[V]]], text: str, cost: Callable[[V], float]
    ) -> dict[K, V]:
        """Measure things in turn, each until enough rounds were undisturbed; return of each what usually comes.

        Args:
            measures: what measures each.
            text: says what is measured, with its key.
            cost: of what was measured, by which one is usual or quickest.
        """
        clean: dict[K, list[V]] = {key: [] for key in measures}
        disturbed: dict[K, list[V]] = {key: [] for key in measures}
        for _ in range(self._effort.rounds * _PATIENCE):
            for key, measure in measures.items():
                if len(clean[key]) == self._effort.rounds:
                    continue
                self._show(text.format(key))
                use = ProcessorUse(self._pids)
                found = await measure()
                (clean if use.others() < _DISTURBED else disturbed)[key].append(found)
        self._disturbed += sum(not found for found in clean.values())
        return {
            key: sorted(clean[key], key=cost)[len(clean[key]) // 2] if clean[key] else min(disturbed[key], key=cost)
            for key in measures
        }

    async def measure(self) -> _Found:
        """Bring the service up, send all loads, take it down."""
        from fourlane.gateway.load import Client
        from fourlane.gateway.service import running_service

        gateway = msgspec.structs.replace(self._deployment.gateway, port=0)
        self._show("the service starts")
        async with running_service(msgspec.structs.replace(self._deployment, gateway=gateway)) as service:
            client = Client(service.base_url, api_key=service.api_key)
            vocabulary = self._architecture.vocabulary
            live = LiveService(client, service.state.model.name, range(vocabulary // 10, vocabulary * 9 // 10))
            self._pids = [rank.hello.pid for rank in service.router.ranks.values() if rank.hello is not None]
            live.longest = self._longest
            try:
                return await self._all(live)
            finally:
                client.close()

    async def _all(self, live: LiveService) -> _Found:
        await live.decoding(2 * self._ranks, prompt=24, output=16)  # warms everything up
        decode, hand_off_s = await self._decode(live)
        prefill, overheads = await self._prefill(live)
        overheads = msgspec.structs.replace(overheads, wake_s=await self._wake(live, overheads))
        crowding: Crowding | None = None
        mixed: dict[MixedLoad, Pace] = {}
        if _pools(self._deployment)["decode"].device == "cpu":
            crowding = await self._crowding(live, prefill, decode)
            mixed = await self._mixed(live)
        return _Found(prefill, decode, overheads, hand_off_s, crowding, mixed, self._disturbed)

    async def _mixed(self, live: LiveService) -> dict[MixedLoad, Pace]:
        """Return what requests see that begin and end while others decode."""
        measures = {load: partial(live.mixed, load) for load in mixed_loads(self._ranks, self._longest)}
        text = "the service gets a mixed load: {0.concurrency} at a time, prompts of {0.prompt} tokens"
        return await self._in_turn(measures, text, lambda pace: pace.tpot_s)

    def _decode_load(self, sequences: int, context: float) -> PassLoad:
        fullest = -(-sequences // self._ranks)
        return PassLoad(fullest, fullest * (context + 1), fullest, sequences / self._ranks)

    def _beyond(self, phase: MeasuredPhase, sequences: int, gaps: Sequence[Gap]) -> float:
        """Return what steps of so many sequences took beyond their passes, on average."""
        passes = [pass_seconds(phase, self._architecture, self._decode_load(sequences, gap.context)) for gap in gaps]
        return statistics.fmean(gap.seconds for gap in gaps) - statistics.fmean(passes)

    async def _decode(self, live: LiveService) -> tuple[MeasuredPhase, float]:
        """Return decode's times with what its steps take beyond passes, and what a hand-off takes."""
        phase, most = self._phases["decode"], self._deployment.decode.max_running if self._deployment.decode else 1
        counts = [1, *(self._ranks * each for each in (1, 3, 6, 12, 20) if each <= most)]
        if self._ranks == 1:
            counts = counts[1:]

        async def measure(sequences: int) -> tuple[float, float]:
            gaps = await live.decoding(sequences, prompt=32, output=self._effort.output)
            hand_off_s = live.first_gap_s - statistics.fmean(gap.seconds for gap in gaps)
            return self._beyond(phase, sequences, gaps), hand_off_s

        text = "the service decodes {} sequences"
        found = await self._in_turn({count: partial(measure, count) for count in counts}, text, lambda pair: pair[0])
        seconds = tuple(max(0.0, beyond) for beyond, _ in found.values())
        beside = MeasuredPart(rows=tuple(map(float, counts)), seconds=seconds)
        return msgspec.structs.replace(phase, beside=beside), max(0.0, found[counts[0]][1])

    async def _prefill(self, live: LiveService) -> tuple[MeasuredPhase, MeasuredOverheads]:
        """Return prefill's times with what its steps take beyond passes, and what a request waits for besides."""
        phase = self._phases["prefill"]
        most = min(self._deployment.prefill.chunk_tokens if self._deployment.prefill else 1, self._longest - 2)
        sizes = sorted({most, *(size for size in (16, 48, 192, 384, 1536) if size < most)})
        measures = {size: partial(live.prompts, size, self._effort.prompts) for size in sizes}
        usual = await self._in_turn(measures, "the service computes prompts of {} tokens", lambda run: run.ttft_s)
        seconds = tuple(max(0.0, run.step_s - self._prompts_alone(phase, size, 1)) for size, run in usual.items())
        beside = MeasuredPart(rows=tuple(map(float, sizes)), seconds=seconds)
        overheads = MeasuredOverheads(
            arrive_s=statistics.median(run.ttft_s - run.step_s for run in usual.values()),
            request_host_s=statistics.median(run.host_s for run in usual.values()),
        )
        return msgspec.structs.replace(phase, beside=beside), overheads

    async def _wake(self, live: LiveService, overheads: MeasuredOverheads) -> float:
        """Return from when an idle unit gets a prompt until its step begins, from how many of a burst are in it."""
        self._show("the service gets prompts in bursts")
        counts = [await live.burst(4 * self._ranks, tokens=32) for _ in range(_BURSTS)]
        apart_s = overheads.request_host_s * DISPATCHED
        return max(0.0, min(statistics.fmean(counts) - 0.9, 4 * self._ranks - 1) * apart_s)

    async def _crowding(self, live: LiveService, prefill: MeasuredPhase, decode: MeasuredPhase) -> Crowding:
        """Return how many times as long steps of either phase take beside steps of the other."""
        all_ranks = 2 * self._ranks  # prompts wait for every rank, so that none has a step without one
        measures = {at_once: partial(self._crowded, live, prefill, decode, at_once) for at_once in (1, all_ranks)}
        text = "the service decodes beside prompts, {} at a time"
        found = await self._in_turn(measures, text, lambda pair: pair[0] * pair[1])
        lone, both = found[1], found[all_ranks]
        return Crowding(prefill=both[0], decode=both[1], prefill_lone=lone[0], decode_lone=lone[1])

    async def _crowded(
        self, live: LiveService, prefill: MeasuredPhase, decode: MeasuredPhase, at_once: int
    ) -> tuple[float, float]:
        sequences, tokens = 3 * self._ranks, min(160, self._longest // 4)
        crowded = await live.crowded(sequences, at_once, prompt=tokens, context=32, seconds=self._effort.crowded_s)
        if not (crowded.steps and crowded.alone and crowded.beside):
            raise EngineError("calibration: too few steps in the time given; is the machine busy? run it again")
        each_s = crowded.step_s / crowded.steps
        alone_s = self._prompts_alone(prefill, tokens, crowded.prompts / crowded.steps)
        stepping = min(1.0, crowded.step_s / crowded.seconds)
        alone, beside = (self._pace(decode, sequences, gaps) for gaps in (crowded.alone, crowded.beside))
        while_stepping = (beside / alone - (1 - stepping)) / stepping
        return max(1.0, each_s / alone_s), max(1.0, 1 / max(0.05, while_stepping))

    def _prompts_alone(self, phase: MeasuredPhase, tokens: int, prompts: float) -> float:
        """Return what a step of so many prompts takes by itself, spread over the ranks."""
        fullest = max(1.0, prompts / self._ranks)
        rows, attended = fullest * tokens, fullest * tokens * (tokens + 1) / 2
        load = PassLoad(rows, attended, fullest, prompts * tokens / self._ranks)
        return pass_seconds(phase, self._architecture, load) + seconds_of(phase.beside, rows)

    def _pace(self, decode: MeasuredPhase, sequences: int, gaps: Sequence[Gap]) -> float:
        """Return how quick steps were, against what they take with nothing beside them."""
        expected = [pass_seconds(decode, self._architecture, self._decode_load(sequences, gap.context)) for gap in gaps]
        beside_s = seconds_of(decode.beside, sequences)
        return (statistics.fmean(expected) + beside_s) / statistics.fmean(gap.seconds for gap in gaps)


# this machine


def _max_positions(model: str) -> int:
    from fourlane.engine.model.config import read_config

    return read_config(Path(model)).max_positions


def _versions() -> dict[str, str]:
    names = {"torch": "torch", "numpy": "numpy", "uvicorn": "uvicorn"}
    return {"fourlane": __version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(package) for name, package in names.items()
    }
