"""Fit what decoding loses to requests that begin and end meanwhile, on mixed loads of calibration's own.

    profile = fitted(profile, deployment, measured)

The twin goes through the same loads, with the profile so far, until it is as quick as the service was. Three figures
are fitted: how many times as long a decode step takes beside one busy prefill rank and beside all of them, and what
each sequence that joins costs the decode unit. Not for how the loads are sent (`live_steps`).
"""

from __future__ import annotations

import math
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fourlane.spec.twin import Workload
from fourlane.spec.writing import render
from fourlane.twin.assembly import assemble
from fourlane.twin.measured_times import MeasuredKvPath
from fourlane.twin.of_deployment import twin_of
from fourlane.twin.serving.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fourlane.spec.deployment import Deployment
    from fourlane.spec.hardware_profile import HardwareProfile
    from fourlane.twin.assembly_parts import Assembly

__all__ = ["MixedLoad", "Pace", "fitted", "least", "mixed_loads"]

_OUTPUT = "20..60"
_HALVINGS = 6
_MOST_LONE, _MOST_REST, _MOST_JOIN_S = 9.0, 9.0, 0.1


@dataclass(frozen=True, slots=True)
class MixedLoad:
    """A closed loop of requests: `concurrency` at a time, with prompts of so many tokens."""

    concurrency: int
    requests: int
    prompt: int
    output: str = _OUTPUT

    @property
    def workload(self) -> Workload:
        """Return it as a twin's workload, which draws the same answers' lengths."""
        return Workload(
            concurrency=self.concurrency, requests=self.requests, input_len=str(self.prompt), output_len=self.output
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """What requests of a load saw on average. Units: seconds."""

    ttft_s: float
    tpot_s: float


def mixed_loads(ranks: int, longest: int) -> list[MixedLoad]:
    """Return loads of few and of many requests at a time, of short and of long prompts, for units of so many ranks."""
    short, long = min(40, longest // 4), min(224, longest // 3)
    few, many = 1 + ranks, 5 * ranks
    return [MixedLoad(at_once, 5 * at_once + 10, prompt) for at_once in (few, many) for prompt in (short, long)]


@dataclass(frozen=True, slots=True)
class _Lost:
    """What is fitted: how many times as long steps take beyond once, and beyond that beside all ranks; joining."""

    lone: float
    rest: float
    join_s: float

    def on(self, profile: HardwareProfile) -> HardwareProfile:
        """Return a profile with these figures; what joining costs is part of a lone hand-off, too."""
        assert profile.crowding is not None
        lone = 1 + self.lone
        return msgspec.structs.replace(
            profile,
            crowding=msgspec.structs.replace(profile.crowding, decode_lone=lone, decode=lone + self.rest),
            overheads=msgspec.structs.replace(profile.overheads, join_s=self.join_s),
            kv=msgspec.structs.replace(profile.kv, latency_s=max(0.0, profile.kv.latency_s - self.join_s)),
        )


def fitted(profile: HardwareProfile, deployment: Deployment, measured: Mapping[MixedLoad, Pace]) -> HardwareProfile:
    """Return a profile with which the twin's TPOT under these loads is as near what was measured as it can be.

    Args:
        profile: all else measured.
        deployment: that was.
        measured: by load.
    """
    assemblies = _assemblies(profile, deployment, list(measured))

    def apart(values: Sequence[float]) -> float:
        trial = _Lost(*values).on(profile)
        paces = [_simulated(assembly, trial) for assembly in assemblies]
        return sum(
            math.log(pace.tpot_s / live.tpot_s) ** 2 for pace, live in zip(paces, measured.values(), strict=True)
        )

    assert profile.crowding is not None, "mixed loads are sent where crowding was measured"
    pooled = statistics.fmean((profile.crowding.decode, profile.crowding.decode_lone)) - 1
    found = least(apart, (pooled, 0.0, 0.0), (0.5, 0.5, 4e-3), (_MOST_LONE, _MOST_REST, _MOST_JOIN_S))
    return _Lost(*found).on(profile)


def least(
    cost: Callable[[Sequence[float]], float], start: Sequence[float], steps: Sequence[float], most: Sequence[float]
) -> tuple[float, ...]:
    """Return where a cost is least, going along one axis at a time from a start, by steps that halve; none below 0.

    Args:
        cost: to be made small.
        start: where to begin.
        steps: to go at first, by axis.
        most: how far to go, by axis.
    """
    at, best = tuple(start), cost(start)
    for halving in range(_HALVINGS):
        moved = True
        while moved:
            moved = False
            for axis, step in enumerate(steps):
                for way in (step, -step):
                    value = min(most[axis], max(0.0, at[axis] + way / 2**halving))
                    trial = (*at[:axis], value, *at[axis + 1 :])
                    if trial != at and (found := cost(trial)) < best - 1e-9:
                        at, best, moved = trial, found, True
                        break
    return at


def _assemblies(profile: HardwareProfile, deployment: Deployment, loads: Sequence[MixedLoad]) -> list[Assembly]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.toml"
        path.write_text(render(profile), encoding="utf-8")
        plain = msgspec.structs.replace(deployment, balance=None)
        return [assemble(twin_of(plain, path, workload=load.workload)) for load in loads]


def _simulated(assembly: Assembly, profile: HardwareProfile) -> Pace:
    overheads = replace(assembly.overheads, join_s=profile.overheads.join_s)
    trial = replace(assembly, crowding=profile.crowding, overheads=overheads, kv=MeasuredKvPath(profile))
    results = simulate(trial)
    return Pace(results.ttft.mean, results.tpot.mean)
