"""In which order two micro-batches take turns, so that what one sends travels while the other computes.

A forward pass is a row of stretches of computing, each followed by something it waits for: a dispatch, a
combine, or nothing (a turn). Pure: the executor follows an order with tensors, a simulation with times.
Which order pays, and whether any does, is `policy.overlap`'s to decide.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "DECODE_ORDER",
    "EXPERTS_ORDER",
    "ORDERS",
    "PREFILL_ORDER",
    "Interval",
    "OverlapOrder",
    "Stretch",
    "timeline",
]

FIRST, SECOND = 0, 1
_EXPERTS_RULE = 3.0


@dataclass(frozen=True, slots=True)
class OverlapOrder:
    """The first micro-batch goes ahead, then both take turns.

    The first is ahead of the second at every layer, always: the second may attend to what the first
    has just written to the cache.

    Args:
        name: what traces and metrics call it.
        opening: whose turn it is at first; then the second's and the first's in turn.
        at_turns: change over between the parts of attention, too; else only where something travels.
        cut_experts: compute experts in two halves, and change over between them.
    """

    name: str
    opening: tuple[int, ...]
    at_turns: bool = False
    cut_experts: bool = False

    def turns(self) -> Iterator[int]:
        """Yield whose turn it is, 0 or 1, without end; who has finished is passed over."""
        yield from self.opening
        yield from itertools.cycle((SECOND, FIRST))


PREFILL_ORDER = OverlapOrder("prefill", opening=(FIRST,))
"""A layer of both, as DeepSeek-V3 runs prefill (technical report, section 3.4.1):

    | step | computes                  | travels meanwhile |
    |------|---------------------------|-------------------|
    | 1    | first: attention, router  | second's combine  |
    | 2    | second: attention, router | first's dispatch  |
    | 3    | first: experts            | second's dispatch |
    | 4    | second: experts           | first's combine   |
"""

DECODE_ORDER = OverlapOrder("decode", opening=(FIRST, FIRST), at_turns=True)
"""A layer of both, as DeepSeek runs decode (five stages: shared expert and attention 0, dispatch, experts,
attention 1, combine; "DeepSeek-V3/R1 inference system overview", 2025). Attention 0 ends with K and V in
the cache; attention 1 begins with the scores and ends with the router:

    | step | computes                            | travels meanwhile |
    |------|-------------------------------------|-------------------|
    | 1    | first: attention 1, shared expert   | second's combine  |
    | 2    | second: attention 0                 | first's dispatch  |
    | 3    | first: experts                      |                   |
    | 4    | second: attention 1, shared expert  | first's combine   |
    | 5    | first: attention 0 (next layer)     | second's dispatch |
    | 6    | second: experts                     |                   |
"""

EXPERTS_ORDER = OverlapOrder("experts", opening=(FIRST, SECOND, FIRST, FIRST), cut_experts=True)
"""A layer of both where experts take longer than attention does, as on CPUs: decode's order turned round. What is
cut in two is what there is most of, so that every transfer has a half of it to travel under:

    | step | computes                               | travels meanwhile |
    |------|----------------------------------------|-------------------|
    | 1    | second: experts, first half            | first's combine   |
    | 2    | first: attention, router (next layer)  |                   |
    | 3    | second: experts, second half           | first's dispatch  |
    | 4    | first: experts, first half             | second's combine  |
    | 5    | second: attention, router              |                   |
    | 6    | first: experts, second half            | second's dispatch |
"""

ORDERS = {order.name: order for order in (PREFILL_ORDER, DECODE_ORDER, EXPERTS_ORDER)}


def order_for(phase: Literal["prefill", "decode"], *, gpu: bool, experts_to_attention: float) -> OverlapOrder:
    """Return the order to take for steps of mostly one phase.

    On GPUs those published. On CPUs attention is short next to experts in decode too, and half of it hides little:
    there it is prefill's, or, where experts take three times as long as attention or more, the one that cuts them.
    (With transfers as long as computing, m = (a + e) / 2, the time of the latter is the shorter one from e = 3 a on.)

    Args:
        phase: of most tokens.
        gpu: where it is computed.
        experts_to_attention: how much longer a token's experts take than its attention.
    """
    if gpu:
        return DECODE_ORDER if phase == "decode" else PREFILL_ORDER
    return EXPERTS_ORDER if experts_to_attention >= _EXPERTS_RULE else PREFILL_ORDER


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of computing and what follows it.

    Args:
        computes_s: how long it computes.
        then: what it ends with; "midway" is a turn amid experts.
        travels_s: how long that is on its way, 0 for turns and the end.
        posted_s: how long before the end of computing it is posted: a shared expert is computed after that.
    """

    computes_s: float
    then: Literal["turn", "dispatch", "midway", "combine", "end"]
    travels_s: float = 0.0
    posted_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """Something that takes from `begin_s` to `end_s`: the stretch at `index` of a stream, or what follows it."""

    stream: int
    index: int
    travels: bool
    begin_s: float
    end_s: float


def timeline(streams: Sequence[Sequence[Stretch]], order: OverlapOrder) -> list[Interval]:
    """Return when what happens if two micro-batches take turns in this order.

    One thing is computed at a time and one travels at a time, in the order in which they were posted.

    Args:
        streams: the stretches of both, equally many.
        order: to follow.
    """
    intervals: list[Interval] = []
    reached, ready_s = [0, 0], [0.0, 0.0]
    now_s = line_s = 0.0
    for stream in order.turns():
        stretches = streams[stream]
        while reached[stream] < len(stretches):
            index, stretch = reached[stream], stretches[reached[stream]]
            reached[stream] += 1
            begin_s = max(now_s, ready_s[stream])
            now_s = begin_s + stretch.computes_s
            intervals.append(Interval(stream, index, travels=False, begin_s=begin_s, end_s=now_s))
            if stretch.then in ("dispatch", "combine"):
                sent_s = max(now_s - stretch.posted_s, line_s)
                ready_s[stream] = line_s = sent_s + stretch.travels_s
                intervals.append(Interval(stream, index, travels=True, begin_s=sent_s, end_s=line_s))
            if stretch.then != "turn" or order.at_turns:
                break
        if all(done == len(held) for done, held in zip(reached, streams, strict=True)):
            return intervals
    raise AssertionError("turns have no end")
