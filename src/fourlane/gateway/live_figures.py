"""What a running service shows beyond passes measured alone: steps, requests, units beside each other.

    figures = pooled([await ServiceCalibration(...).measure() for _ in range(5)])

No two services are equally quick, though all is the same: ranks come to lie otherwise in memory and on cores. So of
several the median counts. Not for how loads are sent (`live_steps`).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from fourlane.errors import EngineError
from fourlane.gateway.live_steps import LiveService
from fourlane.gateway.mixed_loads import Pace, mixed_loads
from fourlane.gateway.processor_use import ProcessorUse
from fourlane.spec.hardware_profile import Crowding, MeasuredOverheads, MeasuredPart, MeasuredPhase
from fourlane.twin.assembly_parts import COLD_IDLE_S, DISPATCHED, cold
from fourlane.twin.measured_times import PassLoad, pass_seconds, seconds_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from fourlane.gateway.calibration_effort import Effort, Steps
    from fourlane.gateway.live_steps import Gap, Lone
    from fourlane.gateway.mixed_loads import MixedLoad
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.deployment import Deployment, Pool

__all__ = ["LiveFigures", "ServiceCalibration", "pooled"]

Phase = Literal["prefill", "decode"]
_BURSTS = 6
_TOLD_APART = 0.2
"""By how much colder a unit has to be after a pause than without one, for what that costs to be told from noise."""
_COLD_GAPS = 12
"""Between tokens, in which what a pause costs decoding shows."""
_DISTURBED = 0.06
"""Share of the processors that others may use while something is measured."""
_PATIENCE = 3
_WARM_UPS = 8
K = TypeVar("K")
V = TypeVar("V")
S = TypeVar("S", MeasuredOverheads, Crowding)


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """What the running service showed."""

    prefill: MeasuredPhase
    decode: MeasuredPhase
    overheads: MeasuredOverheads
    hand_off_s: float
    crowding: Crowding | None
    mixed: dict[MixedLoad, Pace]
    disturbed: int


def pooled(services: Sequence[LiveFigures]) -> LiveFigures:
    """Return what services showed, of each figure the median."""

    def middle(values: Iterable[float]) -> float:
        return statistics.median(values)

    def fields(values: Sequence[S]) -> S:
        names = [field.name for field in msgspec.structs.fields(values[0])]
        return type(values[0])(**{name: middle(getattr(each, name) for each in values) for name in names})

    def beside(phases: Sequence[MeasuredPhase]) -> MeasuredPhase:
        seconds = tuple(middle(row) for row in zip(*(phase.beside.seconds for phase in phases), strict=True))
        return msgspec.structs.replace(phases[0], beside=msgspec.structs.replace(phases[0].beside, seconds=seconds))

    crowding = [each.crowding for each in services if each.crowding is not None]
    mixed = {load: [each.mixed[load] for each in services] for load in services[0].mixed}
    return LiveFigures(
        prefill=beside([each.prefill for each in services]),
        decode=beside([each.decode for each in services]),
        overheads=fields([each.overheads for each in services]),
        hand_off_s=middle(each.hand_off_s for each in services),
        crowding=fields(crowding) if crowding else None,
        mixed={
            load: Pace(middle(pace.ttft_s for pace in paces), middle(pace.tpot_s for pace in paces))
            for load, paces in mixed.items()
        },
        disturbed=sum(each.disturbed for each in services),
    )


class ServiceCalibration:
    """A deployment that is brought up and sent loads, whose steps are compared with passes measured alone."""

    def __init__(
        self,
        deployment: Deployment,
        pools: Mapping[Phase, Pool],
        architecture: Architecture,
        phases: dict[Phase, MeasuredPhase],
        longest: int,
        effort: Effort,
        show: Steps,
    ) -> None:
        self._deployment, self._architecture, self._phases = deployment, architecture, phases
        self._prefill_pool, self._decode_pool = pools["prefill"], pools["decode"]
        self._ranks = self._decode_pool.ranks
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

    async def measure(self) -> LiveFigures:
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

    async def _all(self, live: LiveService) -> LiveFigures:
        await self._warm_up(live)
        decode, hand_off_s = await self._decode(live)
        prefill, overheads = await self._prefill(live)
        wake_s, lost = await self._wake(live, overheads), await self._cold(live)
        overheads = msgspec.structs.replace(overheads, wake_s=wake_s, **lost)
        crowding: Crowding | None = None
        mixed: dict[MixedLoad, Pace] = {}
        if self._decode_pool.device == "cpu":
            crowding = await self._crowding(live, prefill, decode)
            mixed = await self._mixed(live)
        return LiveFigures(prefill, decode, overheads, hand_off_s, crowding, mixed, self._disturbed)

    async def _warm_up(self, live: LiveService) -> None:
        """Decode, again and again, until it gets no quicker."""
        self._show("the service warms up")
        before_s = math.inf
        for _ in range(_WARM_UPS):
            gaps = await live.decoding(2 * self._ranks, prompt=24, output=32)
            now_s = statistics.fmean(gap.seconds for gap in gaps)
            if now_s > 0.95 * before_s:
                return
            before_s = now_s

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
        phase, most = self._phases["decode"], self._decode_pool.max_running
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
        most = min(self._prefill_pool.chunk_tokens, self._longest - 2)
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

    async def _cold(self, live: LiveService) -> dict[str, float]:
        """Return what units lose at first that did nothing for a while."""
        self._show("the service gets prompts after a pause")
        tokens, output = min(96, self._longest // 4), min(_COLD_GAPS + 8, self._longest // 4)
        later, at_once = await live.after_pauses(self._effort.pauses, 1.2 * COLD_IDLE_S, prompt=tokens, output=output)

        def lost(seconds: Callable[[Lone], float], idle_s: Callable[[Lone], float]) -> float:
            later_s, at_once_s = (statistics.median(map(seconds, each)) for each in (later, at_once))
            colder, warmer = (statistics.median(cold(idle_s(one)) for one in each) for each in (later, at_once))
            if colder - warmer < _TOLD_APART:  # answers take so long that a unit rests between any two requests
                return 0.0
            return max(0.0, (later_s - at_once_s) / (colder - warmer))

        return {
            "cold_prefill_s": lost(lambda each: each.ttft_s, lambda each: each.prefill_idle_s),
            "cold_decode_s": lost(lambda each: sum(each.gaps_s[:_COLD_GAPS]), lambda each: each.decode_idle_s),
        }

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
