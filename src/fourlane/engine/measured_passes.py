"""How long whole forward passes of a model take, its exchange in one stream or in two, and how much of that is waiting.

Every rank of a group has as many tokens as every other; passes of all ways take turns, and a pass takes as long as on
the rank that took longest. What of a pass is communication follows from passes without any, by ranks that compute as
many rows each alone. Imports no torch; what a rank does is in `measured_pass`.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.engine.measured_ranks import Seats, heard
from fourlane.errors import CheckFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.engine.measured_ranks import Source

__all__ = ["TARGET", "MeasuredWay", "PassPlan", "Passes", "RankSpan", "RankTrace", "Way", "collect", "collect_traces"]

TARGET = "fourlane.engine.measured_pass:run_rank"
"""What each rank runs."""

ALONE = "alone"
"""The implementation by which no row leaves its rank; the experts computed are others, as many rows."""

Phase = Literal["prefill", "decode"]
Mode = Literal["single", "dual", "auto"]


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a pass: over which exchange, as how many streams; "auto": as the rule decides, pass by pass."""

    implementation: str
    mode: Mode


class PassPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks of one group compute, and how.

    `model`: a checkpoint folder, or "bundled". `phase`: prompts of at most `context` tokens are prefilled, or one token
    of each sequence is decoded after `context` of them. `order`: in which two streams take turns, by name. `trace`: at
    the end a pass of the last way of each mode is recorded stage by stage, with the last number of tokens.

    Units:
        tokens: of a rank's step; seconds: of passes of each way, in each round.
    """

    seats: Seats
    model: str
    phase: Phase
    tokens: tuple[int, ...]
    context: int
    ways: tuple[Way, ...]
    order: str
    seconds: float = 1.0
    rounds: int = 3
    trace: bool = False

    def steps(self) -> list[tuple[int, Way]]:
        """Return what is measured, in order; ways take turns."""
        return [(tokens, way) for tokens in self.tokens for _ in range(self.rounds) for way in self.ways]


class Passes(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank says of passes of one way.

    `chosen`: the likeliest token after each sequence, as they were in the last. With the rule on: how many passes ran
    in two streams, and what gain it predicted in the end.

    Units:
        seconds: each pass's.
    """

    seconds: list[float]
    chosen: list[int]
    dual_passes: int = 0
    predicted: float | None = None


class MeasuredWay(msgspec.Struct, frozen=True, kw_only=True):
    """Passes of one way with so many tokens a rank, all rounds together; see `Passes`.

    Units:
        seconds: each pass's on the rank that took longest.
    """

    tokens: int
    way: Way
    seconds: list[float]
    dual_passes: int = 0
    predicted: float | None = None

    @property
    def median_s(self) -> float:
        """Return how long a pass takes."""
        return statistics.median(self.seconds)


class RankSpan(msgspec.Struct, frozen=True, kw_only=True):
    """Something a rank did; see `engine.stage_trace`."""

    kind: Literal["compute", "wait", "communicate"]
    stream: int
    layer: int
    name: str
    begin_s: float
    end_s: float


class RankTrace(msgspec.Struct, frozen=True, kw_only=True):
    """A pass of one rank, stage by stage."""

    mode: Mode
    spans: list[RankSpan]


def collect(plan: PassPlan, sources: Sequence[Source], show: Callable[[int, Way], None]) -> list[MeasuredWay]:
    """Hear all ranks out.

    Args:
        plan: what they measure.
        sources: one a rank, in order.
        show: told of each step before it is heard.

    Raises:
        EngineError: a rank failed.
        CheckFailed: ways chose different tokens.
    """
    found: dict[tuple[int, Way], MeasuredWay] = {}
    chosen: dict[int, list[list[int]]] = {}
    for tokens, way in plan.steps():
        show(tokens, way)
        said = [heard(source, rank, Passes) for rank, source in enumerate(sources)]
        before = found.get((tokens, way), MeasuredWay(tokens=tokens, way=way, seconds=[]))
        found[tokens, way] = _more(before, said)
        tokens_chosen = [each.chosen for each in said]
        if way.implementation != ALONE and chosen.setdefault(tokens, tokens_chosen) != tokens_chosen:
            raise CheckFailed(
                f"{way.mode} over {way.implementation}: other tokens than {plan.ways[0].mode} over "
                f"{plan.ways[0].implementation}, with {tokens} tokens a rank"
            )
    return list(found.values())


def _more(before: MeasuredWay, said: Sequence[Passes]) -> MeasuredWay:
    """Return what was measured before and, as all ranks say, now."""
    seconds = [max(each) for each in zip(*(passes.seconds for passes in said), strict=True)]
    return msgspec.structs.replace(
        before,
        seconds=before.seconds + seconds,
        dual_passes=before.dual_passes + said[0].dual_passes,
        predicted=said[0].predicted,
    )


def collect_traces(plan: PassPlan, sources: Sequence[Source]) -> list[list[RankTrace]]:
    """Hear what was recorded, a list a rank; nothing unless the plan says that passes are."""
    if not plan.trace:
        return []
    return [heard(source, rank, list[RankTrace]) for rank, source in enumerate(sources)]
