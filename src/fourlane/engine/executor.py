"""Drive a forward pass, which is a generator that yields each `Pending` it needs.

One stream waits at each. Two streams take turns: while one waits for what travels, the other
computes. The model knows of neither.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fourlane.engine.exchange.contract import TURN

if TYPE_CHECKING:
    from collections.abc import Generator

    from fourlane.engine.exchange.contract import Pending
    from fourlane.engine.stage_trace import StageTrace
    from fourlane.policy.overlap_order import OverlapOrder

__all__ = ["run_dual_stream", "run_single_stream"]

T = TypeVar("T")


def run_single_stream(stages: Generator[Pending[Any], Any, T], *, trace: StageTrace | None = None) -> T:
    """Run a forward pass to its end, waiting at each stage, and return its result.

    Args:
        stages: the pass.
        trace: records when what was computed; None: nothing does.

    Raises:
        PeerLost: from the stage that could not complete; the generator is closed.
    """
    stream = _Stream(stages, 0, trace)
    try:
        while stream.advance():
            pass
        return stream.result()
    finally:
        stages.close()


def run_dual_stream(
    first: Generator[Pending[Any], Any, T],
    second: Generator[Pending[Any], Any, T],
    order: OverlapOrder,
    *,
    trace: StageTrace | None = None,
) -> tuple[T, T]:
    """Run two forward passes in turn, each waiting only when its turn comes again; return both results.

    Args:
        first: the pass that is ahead at every layer.
        second: the other, over the same exchange, with as many stages.
        order: whose turn it is when.
        trace: records when what was computed; None: nothing does.

    Raises:
        PeerLost: from the stage that could not complete; both generators are closed.
    """
    streams = (_Stream(first, 0, trace), _Stream(second, 1, trace))
    running = 2
    try:
        for turn in order.turns():
            stream = streams[turn]
            while stream.runs:
                if not stream.advance():
                    running -= 1
                elif stream.at_turn and not order.at_turns:
                    continue
                break
            if not running:
                break
        return streams[0].result(), streams[1].result()
    finally:
        first.close()
        second.close()


class _Stream(Generic[T]):
    """A pass under way, and what it waits for."""

    def __init__(self, stages: Generator[Pending[Any], Any, T], number: int, trace: StageTrace | None) -> None:
        self.runs = True
        self._stages = stages
        self._number = number
        self._trace = trace
        self._pending: Pending[Any] | None = None
        self._result: list[T] = []

    @property
    def at_turn(self) -> bool:
        """Tell whether it waits for nothing: it only offers a turn."""
        return self._pending is TURN

    def result(self) -> T:
        """Return what the pass returned."""
        return self._result[0]

    def advance(self) -> bool:
        """Wait for what it waits for and compute up to the next; False if that was the end."""
        if self._trace is not None:
            return self._advance_traced(self._trace)
        return self._compute(None if self._pending is None else self._pending.wait())

    def _compute(self, awaited: object) -> bool:
        try:
            self._pending = self._stages.send(awaited)
        except StopIteration as finished:
            self._result.append(finished.value)
            self.runs = False
        return self.runs

    def _advance_traced(self, trace: StageTrace) -> bool:
        waits_s = time.perf_counter()
        awaited = None if self._pending is None else self._pending.wait()
        begin_s = time.perf_counter()
        trace.enter(self._number)
        goes_on = self._compute(awaited)
        trace.computed(self._number, waits_s, begin_s, time.perf_counter())
        return goes_on
