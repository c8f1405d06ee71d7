"""What the ladder showed: for each step the medians of its repetitions, and their ratios to step 1."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from fourlane import __version__
from fourlane.lab.ladder import LadderSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.lab.ladder import LadderStep

__all__ = ["FIGURES", "LadderResult", "Machine", "Sample", "StepResult", "doubts", "sum_up", "this_machine"]

MOST_STRETCH = 1.10
MOST_LATENESS_S = 0.010
LEAST_IDLE = 0.02


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one step showed in one repetition.

    `draws` says how often the leaves drew their hash anew; `uplink_share` is the busier uplink's part of the bytes
    that leaf 0 sent up, over all draws; `marked` the part of the expert lane's packets that switches marked, None
    when they did not look; `idle` the part of the processors' time.

    Units:
        ttft_s, tpot_s: seconds, of each request. exchange_s, prefill_exchange_s: p50 and p99 of the seconds that a
        step of the decode (prefill) pool waited for the exchange. kv_share: bits of each KV object over the time
        it took, over the line's rate. kv_sent_of_offered: bytes that arrived, of those that came up.
        lateness_s: p99 of how late timers rang.
    """

    step: str
    repeat: int
    ttft_s: list[float]
    tpot_s: list[float]
    failed: int
    exchange_s: tuple[float, float]
    prefill_exchange_s: tuple[float, float]
    kv_share: list[float]
    kv_sent_of_offered: float
    draws: int
    uplink_share: float
    dropped: int
    marked: float | None
    idle: float
    lateness_s: float


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when it was measured."""

    date: str
    processors: int
    model: str
    kernel: str
    fourlane: str


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """One step.

    `figures` are medians over the repetitions, `ratios` those of the repetitions' ratios to step 1; `lowest` and
    `highest` are the extremes among them, by the names of `FIGURES`.
    """

    name: str
    title: str
    change: str
    figures: dict[str, float]
    ratios: dict[str, float]
    lowest: dict[str, float]
    highest: dict[str, float]
    draws: int
    uplink_share: float
    kv_sent_of_offered: float
    marked: float | None
    dropped: float
    failed: int
    idle: float
    lateness_s: float


class LadderResult(msgspec.Struct, frozen=True, kw_only=True):
    """The whole climb.

    `skipped` says why a step was not taken, `doubts` why the run is not valid; `stretch` is how much longer than
    its ideal time a KV object took across the idle network.
    """

    machine: Machine
    settings: LadderSettings
    steps: list[StepResult]
    skipped: dict[str, str]
    stretch: float
    doubts: list[str]
    samples: list[Sample]

    @property
    def valid(self) -> bool:
        """Tell whether the network was measured and not the processor."""
        return not self.doubts

    def step(self, name: str) -> StepResult:
        """Return a step by its name."""
        return next(step for step in self.steps if step.name == name)


def _share(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie, interpolated; 0 without values."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    position = (len(ordered) - 1) * share
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


FIGURES: dict[str, Callable[[Sample], float]] = {
    "ttft_p50_s": lambda sample: _share(sample.ttft_s, 0.50),
    "ttft_p99_s": lambda sample: _share(sample.ttft_s, 0.99),
    "tpot_p50_s": lambda sample: _share(sample.tpot_s, 0.50),
    "tpot_p99_s": lambda sample: _share(sample.tpot_s, 0.99),
    "exchange_p50_s": lambda sample: sample.exchange_s[0],
    "exchange_p99_s": lambda sample: sample.exchange_s[1],
    "kv_share": lambda sample: _share(sample.kv_share, 0.50),
}
"""Each figure of a repetition, by name. `kv_share`: the median KV object's bandwidth over the line's rate."""


def sum_up(steps: Sequence[LadderStep], samples: Sequence[Sample]) -> list[StepResult]:
    """Return the results of the steps that have samples, in their order.

    A ratio is taken within each repetition, so that what the machine did meanwhile falls on both sides of it.
    """
    first = {sample.repeat: sample for sample in samples if sample.step == steps[0].name}
    results = []
    for step in steps:
        own = [sample for sample in samples if sample.step == step.name]
        if own:
            results.append(_result(step, own, first))
    return results


def _result(step: LadderStep, own: Sequence[Sample], first: dict[int, Sample]) -> StepResult:
    values = {name: [figure(sample) for sample in own] for name, figure in FIGURES.items()}
    ratios = {}
    for name, figure in FIGURES.items():
        bases = [(figure(sample), figure(first[sample.repeat])) for sample in own if sample.repeat in first]
        ratios[name] = median([value / base for value, base in bases if base] or [0.0])
    marked = [sample.marked for sample in own if sample.marked is not None]
    return StepResult(
        name=step.name,
        title=step.title,
        change=step.change,
        figures={name: median(several) for name, several in values.items()},
        ratios=ratios,
        lowest={name: min(several) for name, several in values.items()},
        highest={name: max(several) for name, several in values.items()},
        draws=sum(sample.draws for sample in own),
        uplink_share=median(sample.uplink_share for sample in own),
        kv_sent_of_offered=median(sample.kv_sent_of_offered for sample in own),
        marked=median(marked) if marked else None,
        dropped=median(sample.dropped for sample in own),
        failed=sum(sample.failed for sample in own),
        idle=median(sample.idle for sample in own),
        lateness_s=median(sample.lateness_s for sample in own),
    )


def doubts(results: Sequence[StepResult], *, stretch: float) -> list[str]:
    """Return why the figures may be the processor's and not the network's; empty if nothing speaks for that."""
    found = []
    if stretch > MOST_STRETCH:
        found.append(
            f"an object took {stretch:.2f} times its ideal time across the idle network, more than {MOST_STRETCH}: "
            "lower the rate, or leave the machine alone"
        )
    found += [
        f"step {step.name}: timers rang up to {step.lateness_s * 1e3:.1f} ms late (p99), more than "
        f"{MOST_LATENESS_S * 1e3:.0f} ms: the processors were too busy"
        for step in results
        if step.lateness_s > MOST_LATENESS_S
    ]
    found += [
        f"step {step.name}: the processors were idle {step.idle:.1%} of the time, less than {LEAST_IDLE:.0%}: they may "
        "be the bottleneck, not the network"
        for step in results
        if step.idle < LEAST_IDLE
    ]
    found += [f"step {step.name}: {step.failed} requests failed" for step in results if step.failed]
    return found


def this_machine() -> Machine:
    """Describe this machine and this moment."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    model = next((line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    return Machine(
        date=datetime.now(tz=UTC).date().isoformat(),
        processors=len(os.sched_getaffinity(0)),
        model=model or platform.machine(),
        kernel=platform.release(),
        fourlane=__version__,
    )
