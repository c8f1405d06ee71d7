"""How fast the ranks of a group exchange bytes and tokens, over each implementation, beside memcpy and gloo.

Two ways are measured. *plain*: an all-to-all of equal blocks, one a pair of ranks, that of `torch.distributed`
(gloo) among them, as the baseline. *pair*: dispatch, an expert's work and combine, again and again, each on what the
one before returned; the experts multiply by numbers of their own, so that what comes back in the end is what went out,
bit for bit, only if every row was at its expert. An operation takes as long as on the rank that took longest.

All ranks of a group measure the same steps in the same order; implementations take turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.engine.measured_ranks import Seats, heard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.engine.measured_ranks import Source

__all__ = [
    "IMPLEMENTATIONS",
    "MEMCPY",
    "ROW_BYTES",
    "TARGET",
    "Dispatch",
    "ExchangePlan",
    "Measured",
    "Said",
    "Step",
    "collect",
    "needs_no_link",
]

IMPLEMENTATIONS = ("torch_all_to_all", "tcp", "shared_memory")
MEMCPY = ("memcpy", "memcpy alone")
"""As many bytes copied within each rank: by all ranks at once, and by one while the others rest."""
ROW_BYTES = 2048
"""Bytes of a token's activations: 512 float32."""
TARGET = "fourlane.engine.exchange.measured_rank:run_rank"
"""What each rank runs."""

_FLOAT8_ROW_BYTES = 528
"""The same as float8 with a scale for each 128."""

Way = Literal["plain", "pair"]
Dispatch = Literal["activations", "float8"]


def needs_no_link(implementation: str) -> bool:
    """Tell whether an implementation works within one host only."""
    return implementation == "shared_memory"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: of which way, over what, with how many bytes a pair of ranks."""

    way: Way
    implementation: str
    size: int


class ExchangePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks of one group measure. `dispatch`: as what tokens travel to their experts.

    Units:
        sizes: bytes a pair of ranks, multiples of `ROW_BYTES`; seconds: of each step of each round.
    """

    seats: Seats
    implementations: tuple[str, ...]
    sizes: tuple[int, ...]
    ways: tuple[Way, ...] = ("plain", "pair")
    seconds: float = 0.5
    rounds: int = 3
    dispatch: Dispatch = "activations"

    def steps(self) -> list[Step]:
        """Return what is measured, in order; implementations take turns."""
        found: list[Step] = []
        for way in self.ways:
            over = (
                (*MEMCPY, *self.implementations) if way == "plain" and not self.seats.linked else self.implementations
            )
            for size in self.sizes:
                turn = [Step(way=way, implementation=name, size=size) for name in over]
                found += turn * self.rounds
        return found


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank says of one step.

    Units:
        seconds: each operation's; waited_s: for each rank, how long an operation waited for what was due from it, on
        average; none where the implementation does not know.
    """

    seconds: list[float]
    waited_s: list[float] = []


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Operations of one kind among the ranks of a group.

    Units:
        size: bytes a pair of ranks, as activations; travels: bytes a pair in the whole operation, as they travel;
        seconds: each operation's, on the rank that took longest; waited_s: of each rank, for each rank, how long its
        operations waited for what was due from there, on average over the last round; none where that is not known.
    """

    ranks: int
    way: Way
    implementation: str
    size: int
    travels: int
    seconds: list[float]
    waited_s: list[list[float]] = []


def collect(plan: ExchangePlan, sources: Sequence[Source], show: Callable[[Step], None]) -> list[Measured]:
    """Hear all ranks out.

    Args:
        plan: what they measure.
        sources: one a rank, in order.
        show: told of each step before it is heard.

    Returns:
        The operations of every way, implementation and size, all rounds together.

    Raises:
        EngineError: a rank failed.
    """
    slowest: dict[Step, list[float]] = {}
    waited: dict[Step, list[list[float]]] = {}
    for step in plan.steps():
        show(step)
        said = [heard(source, rank, Said) for rank, source in enumerate(sources)]
        slowest.setdefault(step, []).extend(map(max, zip(*(each.seconds for each in said), strict=True)))
        waited[step] = [each.waited_s for each in said if each.waited_s]
    return [_measured(plan, step, seconds, waited[step]) for step, seconds in slowest.items()]


def _measured(plan: ExchangePlan, step: Step, seconds: list[float], waited_s: list[list[float]]) -> Measured:
    travels = step.size
    if step.way == "pair":  # to the experts, and back as activations
        row_bytes = _FLOAT8_ROW_BYTES if plan.dispatch == "float8" else ROW_BYTES
        travels += step.size // ROW_BYTES * row_bytes
    return Measured(
        ranks=plan.seats.ranks,
        way=step.way,
        implementation=step.implementation,
        size=step.size,
        travels=travels,
        seconds=seconds,
        waited_s=waited_s,
    )
