"""Drive a forward pass, which is a generator that yields each `Pending` it needs.

Here: one stream, which waits at each. Two streams in turn come with dual-stream execution; the
model knows of neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

    from fourlane.engine.exchange.contract import Pending

__all__ = ["run_single_stream"]

T = TypeVar("T")


def run_single_stream(stages: Generator[Pending[Any], Any, T]) -> T:
    """Run a forward pass to its end, waiting at each stage, and return its result.

    Raises:
        PeerLost: from the stage that could not complete; the generator is closed.
    """
    try:
        pending = next(stages)
        while True:
            pending = stages.send(pending.wait())
    except StopIteration as finished:
        return finished.value
    finally:
        stages.close()
