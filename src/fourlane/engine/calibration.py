"""What forward passes of a unit take part by part, alone on the machine and beside another unit.

Ranks of a group run passes of given loads and note when each stage began and ended; here that becomes times of parts,
of dispatch and combine. Imports no torch; what a rank does is in `calibration_rank`. Not for what a service does beside
passes (`gateway.live_overheads`).
"""

from __future__ import annotations

import os
import platform
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.engine.measured_ranks import Seats, heard, local_ranks
from fourlane.errors import EngineError
from fourlane.spec.hardware_profile import MeasuredPart, MeasuredPhase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.engine.measured_ranks import Source

__all__ = [
    "TARGET",
    "CalibrationPlan",
    "CasePasses",
    "CaseTimes",
    "PassCase",
    "StageName",
    "case_times",
    "machine_name",
    "measure_alone",
    "measure_beside",
    "measured_phase",
]

TARGET = "fourlane.engine.calibration_rank:run_rank"
"""What each rank runs."""

Phase = Literal["prefill", "decode"]


class PassCase(msgspec.Struct, frozen=True, kw_only=True):
    """The load of a pass: `rows` tokens of prompts of at most `context`, or as many sequences after `context` tokens.

    `lone`: only the first rank of the group has any, as with a single request.
    """

    phase: Phase
    rows: int
    context: int
    lone: bool = False

    @property
    def pairs(self) -> int:
        """Return the positions that a rank's rows attend to, summed."""
        if self.phase == "decode":
            return self.rows * (self.context + 1)
        lengths = [min(self.context, self.rows - start) for start in range(0, self.rows, self.context)]
        return sum(length * (length + 1) // 2 for length in lengths)

    @property
    def logits(self) -> int:
        """Return the sequences of a rank that get a token."""
        return self.rows if self.phase == "decode" else -(-self.rows // self.context)


class CalibrationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks of one group compute.

    `model`: a checkpoint folder. `exchange`: over what, "local" for a group of one. `seconds`: of passes of a case,
    `rounds` times over, all cases in turn.
    """

    seats: Seats
    model: str
    device: str
    exchange: str
    threads: int
    cases: tuple[PassCase, ...]
    seconds: float = 0.4
    rounds: int = 2

    def turns(self) -> list[PassCase]:
        """Return the cases in the order in which they are run."""
        return [case for _ in range(self.rounds) for case in self.cases]


class StageName(msgspec.Struct, frozen=True, kw_only=True):
    """A stage of `policy.stages`, as ranks tell of it."""

    layer: int
    parts: tuple[str, ...]
    then: str


class CasePasses(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank says of the passes of a case, in seconds of a clock that all processes of a host share.

    `passes`: (begin, end) of whole passes. `stages`: of other passes, stage by stage, when it had what it waited for
    and when it had computed.
    """

    passes: list[tuple[float, float]]
    stages: list[list[tuple[float, float]]]
    names: list[StageName]


class CaseTimes(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass of a case takes: medians, in seconds; parts and exchange of one layer.

    `pass_s`: from the first rank's beginning to the last one's end. `parts`: by name of the stage's first
    part. `spread`: half the distance between the quartiles of `pass_s`, as a share of it.
    """

    case: PassCase
    pass_s: float
    parts: dict[str, float]
    exchange: dict[str, float]
    spread: float
    passes: int


def measure_alone(plan: CalibrationPlan, show: Callable[[PassCase], None]) -> list[CaseTimes]:
    """Run a plan's cases with nothing beside them.

    Args:
        plan: for one group.
        show: told of each case before it is heard.

    Raises:
        EngineError: a rank failed.
    """
    said: dict[PassCase, list[list[CasePasses]]] = {case: [] for case in plan.cases}
    with local_ranks(TARGET, plan, plan.seats.ranks) as sources:
        for case in plan.turns():
            show(case)
            said[case].append(_hear(sources))
    return [case_times(case, rounds) for case, rounds in said.items()]


def measure_beside(first: CalibrationPlan, second: CalibrationPlan) -> tuple[float, float]:
    """Run the one case of each of two groups at the same time, and return the median seconds of a pass of each.

    Only passes that lie wholly in the time in which both run count.

    Raises:
        EngineError: a rank failed, or they did not run at the same time.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(local_ranks(TARGET, plan, plan.seats.ranks)) for plan in (first, second)]
        said = [[_hear(each) for _ in plan.turns()] for each, plan in zip(sources, (first, second), strict=True)]
    passes = [_slowest(rounds) for rounds in said]
    begin = max(each[0][0] for each in passes)
    end = min(each[-1][1] for each in passes)
    inside = [[finish - start for start, finish in each if begin <= start and finish <= end] for each in passes]
    if not all(inside):
        raise EngineError("calibration: two groups did not run at the same time; is the machine busy? run it again")
    return statistics.median(inside[0]), statistics.median(inside[1])


def _hear(sources: Sequence[Source]) -> list[CasePasses]:
    return [heard(source, rank, CasePasses) for rank, source in enumerate(sources)]


def _slowest(rounds: Sequence[list[CasePasses]]) -> list[tuple[float, float]]:
    """Return each pass from the first rank's beginning to the last one's end."""
    return [
        (min(begin for begin, _ in ranks), max(end for _, end in ranks))
        for said in rounds
        for ranks in zip(*(each.passes for each in said), strict=True)
    ]


def case_times(case: PassCase, rounds: Sequence[list[CasePasses]]) -> CaseTimes:
    """Make sense of what the ranks of a group said of a case; of several rounds the quickest counts.

    Whatever else the machine does can only make a round slower. A stage's computing is what it took on the rank that
    took longest, since the others wait for it; an exchange lasts from when the last rank had posted until ranks have
    what it brings. Both are scaled so that they add up to passes in which nothing was noted.
    """
    return min((_round_times(case, said) for said in rounds), key=lambda times: times.pass_s)


def _round_times(case: PassCase, said: Sequence[CasePasses]) -> CaseTimes:
    names = said[0].names
    walls = sorted(end - begin for begin, end in _slowest([list(said)]))
    pass_s = statistics.median(walls)
    runs = list(zip(*(each.stages for each in said), strict=True))
    traced_s = statistics.median(max(s[-1][1] for s in ranks) - min(s[0][0] for s in ranks) for ranks in runs)
    scale = pass_s / traced_s
    computing = [scale * statistics.median(_computing(ranks, at) for ranks in runs) for at in range(len(names))]
    travelling = [
        (name.then, scale * statistics.median(_travelling(ranks, at) for ranks in runs))
        for at, name in enumerate(names)
        if name.then in {"dispatch", "combine"} and len(said) > 1
    ]
    return CaseTimes(
        case=case,
        pass_s=pass_s,
        parts=_by_part(names, computing),
        exchange={
            then: statistics.fmean(seconds for each, seconds in travelling if each == then) for then in dict(travelling)
        },
        spread=(walls[3 * len(walls) // 4] - walls[len(walls) // 4]) / 2 / pass_s,
        passes=len(walls),
    )


def _computing(ranks: Sequence[list[tuple[float, float]]], at: int) -> float:
    """Return what a stage of one pass took on the rank that took longest."""
    return max(stages[at][1] - stages[at][0] for stages in ranks)


def _travelling(ranks: Sequence[list[tuple[float, float]]], at: int) -> float:
    """Return what the exchange after a stage of one pass took."""
    posted = max(stages[at][1] for stages in ranks)
    return max(0.0, statistics.fmean(stages[at + 1][0] for stages in ranks) - posted)


def _by_part(names: Sequence[StageName], computing: Sequence[float]) -> dict[str, float]:
    """Return seconds of a layer's stage by its first part; embedding and MLP apart from what is computed with them."""
    found: dict[str, list[float]] = {}
    for name, seconds in zip(names, computing, strict=True):
        found.setdefault("mlp" if "mlp" in name.parts else name.parts[0], []).append(seconds)
    parts = {part: statistics.fmean(seconds) for part, seconds in found.items()}
    for part, beside in (("embedding", "attention 0"), ("mlp", "attention 1")):
        if part in parts and beside in parts:
            parts[part] = max(0.0, parts[part] - parts[beside])
    return parts


def measured_phase(times: Sequence[CaseTimes], *, top_k: int, ranks: int, beside: MeasuredPart) -> MeasuredPhase:
    """Make tables of what cases of one phase took, as the twin reads them.

    Args:
        times: of all cases; two of as many rows that attend to unlike many positions say what those cost.
        top_k: experts a token.
        ranks: of the group.
        beside: what steps of the running service take beyond their passes.
    """
    attended_s = _attended_s(times)
    tables: dict[str, list[tuple[float, float]]] = {}
    exchange: dict[Literal["dispatch", "combine"], list[tuple[float, float]]] = {}
    for each in times:
        case = each.case
        mean = case.rows / ranks if case.lone else float(case.rows)
        rows = {"experts": mean * top_k, "output": float(case.logits)}
        for part, seconds in each.parts.items():
            less = attended_s * case.pairs if part == "attention 1" else 0.0
            tables.setdefault(part, []).append((rows.get(part, float(case.rows)), max(0.0, seconds - less)))
        for operation in ("dispatch", "combine"):
            if operation in each.exchange:
                exchange.setdefault(operation, []).append((mean, each.exchange[operation]))
    parts = {part: _table(points) for part, points in tables.items()}
    parts["attention 1"] = msgspec.structs.replace(parts["attention 1"], attended_s=attended_s)
    return MeasuredPhase(
        parts=parts,
        exchange={operation: _table(points) for operation, points in exchange.items()},
        beside=beside,
    )


def _attended_s(times: Sequence[CaseTimes]) -> float:
    """Return what attention takes for each position, from the two cases of as many rows that differ most in them."""
    pairs = [
        (after.case.pairs - before.case.pairs, after.parts["attention 1"] - before.parts["attention 1"])
        for before in times
        for after in times
        if (before.case.rows, before.case.lone) == (after.case.rows, after.case.lone)
    ]
    more, seconds = max(pairs)
    return max(0.0, seconds / more) if more else 0.0


def _table(points: Sequence[tuple[float, float]]) -> MeasuredPart:
    """Return points as a table, the mean of those with as many rows."""
    by_rows: dict[float, list[float]] = {}
    for rows, seconds in sorted(points):
        by_rows.setdefault(rows, []).append(seconds)
    return MeasuredPart(rows=tuple(by_rows), seconds=tuple(statistics.fmean(seconds) for seconds in by_rows.values()))


def machine_name(device: str) -> str:
    """Return what a device of this host is called: its GPU, or its processor and how many cores there are."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(torch.device(device))
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
