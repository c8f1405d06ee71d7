"""What a worker process of `run_many` does: take a scenario, simulate it, send the results back; again and again."""

from __future__ import annotations

import signal
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from fourlane.errors import FourlaneError
from fourlane.twin.fabric.compiled import CompiledScenario
from fourlane.twin.fabric.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.simulator import Progress

    Runnable: TypeAlias = "CompiledScenario | Compiles"

__all__ = ["Compiles", "compiled", "serve", "simulate"]

_TELL_S = 0.2


class Compiles(Protocol):
    """A scenario as people write it."""

    def compile(self) -> CompiledScenario:
        """Return it as a simulator reads it."""
        ...


def compiled(scenario: Runnable) -> CompiledScenario:
    """Return a scenario as a simulator reads it."""
    return scenario if isinstance(scenario, CompiledScenario) else scenario.compile()


def simulate(
    scenario: Runnable, progress: Callable[[Progress], object], *, partial: bool, engine: str
) -> Results | FourlaneError:
    """Return what came of a scenario: results, or the error that ended it."""
    try:
        return Simulator(compiled(scenario), engine=engine).run(progress, partial=partial)
    except FourlaneError as error:
        return error


def serve(descriptor: int) -> None:
    """Simulate what comes over a connection until it closes.

    A message is (scenario, how), answered by `Progress` again and again and then by what came of it; None, or the
    connection's end, stops the scenario under way.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    while True:
        try:
            message: Any = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        if message is not None:
            scenario, how = message
            if not _answer(connection, scenario, how):
                return


def _answer(connection: Connection, scenario: Runnable, how: dict[str, Any]) -> bool:
    """Simulate one scenario; False when nobody is there to hear of it."""
    told = time.perf_counter()

    def show(now: Progress) -> None:
        nonlocal told
        if connection.poll():
            raise KeyboardInterrupt
        if time.perf_counter() - told >= _TELL_S:
            told = time.perf_counter()
            connection.send(now)

    try:
        connection.send(simulate(scenario, show, **how))
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True
