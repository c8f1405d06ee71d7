"""Run independent scenarios side by side over processes; results come in the order of the scenarios.

Workers are fresh interpreters, not forks and not re-runs of the caller's script: `run_many` needs no `__main__` guard
and works from any thread. What goes to a worker is a scenario, what comes back are results; both are pickled, between
processes of one user on one machine. What a worker does is in `fourlane.twin.fabric.worker`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from fourlane.errors import FourlaneError, SimulationError, SpecError, WorkerDied
from fourlane.twin.fabric.simulator import INTERRUPTED, Progress, Simulator
from fourlane.twin.fabric.worker import compiled, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.twin.fabric.results import Results
    from fourlane.twin.fabric.worker import Runnable

__all__ = ["ManyProgress", "available_processors", "run_many"]

_SERVE = "from fourlane.twin.fabric.worker import serve; serve({})"
_TELL_S = 0.2
_STOP_S = 10.0


class ManyProgress(NamedTuple):
    """How far a set of scenarios is. `running` has what is known of those under way, by their place."""

    done: int
    total: int
    share: float
    elapsed_s: float
    eta_s: float | None
    running: dict[int, Progress]


def run_many(
    scenarios: Sequence[Runnable],
    *,
    processes: int | None = None,
    progress: Callable[[ManyProgress], object] | None = None,
    partial: bool = False,
    engine: str = "native",
) -> list[Results]:
    """Simulate each scenario; all are run, whatever becomes of the others.

    Ctrl-C ends those under way with what is known of them; those not begun have results without a single event.

    Args:
        scenarios: what to simulate; those not compiled yet are compiled where they run.
        processes: how many at once; None for as many as there are processors. With one, all run in this process.
        progress: called some five times a second.
        partial: take what is known of those that did not end by themselves, instead of raising.
        engine: as for `Simulator`.

    Returns:
        The results in the order of the scenarios.

    Raises:
        SimulationError: the first that did not end or whose process died, all others having been run; its `results`
            are those of all scenarios, None where there are none.
        SpecError: a scenario is faulty, or `processes`.
    """
    if processes is not None and processes < 1:
        raise SpecError(f"processes: expected at least 1, got {processes}")
    at_once = min(processes or available_processors(), len(scenarios))
    book = _Book(scenarios, progress)
    if at_once > 1:
        _run_over_processes(book, at_once, {"partial": partial, "engine": engine})
    else:
        _run_here(book, {"partial": partial, "engine": engine})
    return book.closed(engine)


def available_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


class _Book:
    """Where each scenario is, and what came of it."""

    def __init__(self, scenarios: Sequence[Runnable], progress: Callable[[ManyProgress], object] | None) -> None:
        self.scenarios = scenarios
        self.outcomes: list[Results | FourlaneError | None] = [None] * len(scenarios)
        self.waiting = list(range(len(scenarios)))
        self.running: dict[int, Progress] = {}
        self._progress = progress
        self._began = self._told = time.perf_counter()

    def record(self, place: int, outcome: Results | FourlaneError) -> None:
        """Take down what came of a scenario."""
        self.running.pop(place, None)
        self.outcomes[place] = outcome
        self.tell(at_once=True)

    def tell(self, *, at_once: bool = False) -> None:
        """Call the caller's `progress`, if it is time."""
        now = time.perf_counter()
        if self._progress is None or (now - self._told < _TELL_S and not at_once):
            return
        self._told = now
        total, done = len(self.scenarios), sum(outcome is not None for outcome in self.outcomes)
        share = (done + sum(each.share for each in self.running.values())) / total
        elapsed = now - self._began
        eta = elapsed * (1 - share) / share if share > 0 else None
        self._progress(ManyProgress(done, total, share, elapsed, eta, dict(self.running)))

    def closed(self, engine: str) -> list[Results]:
        """Return the results of all.

        Raises:
            FourlaneError: what came of the first scenario that failed.
        """
        results: list[Results | None] = []
        for place, outcome in enumerate(self.outcomes):
            if isinstance(outcome, FourlaneError):
                known = outcome.results if isinstance(outcome, SimulationError) else None
            else:
                known = outcome or Simulator(compiled(self.scenarios[place]), engine=engine).results()
            results.append(known)
        for place, outcome in enumerate(self.outcomes):
            if isinstance(outcome, SimulationError):
                raise type(outcome)(f"scenario {place}: {outcome}", results) from outcome
            if isinstance(outcome, FourlaneError):
                raise outcome
        return [each for each in results if each is not None]


def _run_here(book: _Book, how: dict[str, Any]) -> None:
    while book.waiting:
        place = book.waiting.pop(0)

        def show(now: Progress, place: int = place) -> None:
            book.running[place] = now
            book.tell()

        outcome = simulate(book.scenarios[place], show, **how)
        book.record(place, outcome)
        if not isinstance(outcome, FourlaneError) and outcome.status == INTERRUPTED:
            return


class _Worker:
    """A process that simulates one scenario after the other."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # A process group of its own: a terminal's Ctrl-C is handled here, and reaches it through the connection.
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE.format(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.connection = Connection(ours.detach())
        self.place = -1

    def give(self, place: int, scenario: Runnable, how: dict[str, Any]) -> None:
        """Hand it a scenario."""
        self.place = place
        self._send((scenario, how))

    def stop(self) -> None:
        """Ask it to end the scenario under way with what is known."""
        self._send(None)

    def _send(self, message: object) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return  # it is dead, which reading from it tells

    def end(self, *, within_s: float = _STOP_S) -> int:
        """End the process and return its exit status."""
        self.connection.close()
        try:
            return self.process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _run_over_processes(book: _Book, at_once: int, how: dict[str, Any]) -> None:
    workers: list[_Worker] = []
    stopping = False
    try:
        for _ in range(at_once):
            workers.append(_Worker())
            _next(book, workers[-1], how)
        while any(worker.place >= 0 for worker in workers):
            try:
                _turn(book, workers, how)
            except KeyboardInterrupt:
                if stopping:
                    raise
                stopping = True
                book.waiting.clear()
                for worker in workers:
                    worker.stop()
    finally:
        for worker in workers:
            worker.end(within_s=_STOP_S if worker.place < 0 else 0.0)


def _turn(book: _Book, workers: list[_Worker], how: dict[str, Any]) -> None:
    """Wait for messages of workers and act on them."""
    by_connection = {worker.connection: worker for worker in workers if worker.place >= 0}
    for connection in wait(list(by_connection), timeout=_TELL_S):
        worker = by_connection[connection]  # type: ignore[index]
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            book.record(worker.place, _death(worker))
            worker.place = -1
            workers.remove(worker)
            if book.waiting:
                workers.append(_Worker())
                _next(book, workers[-1], how)
            continue
        if isinstance(message, Progress):
            book.running[worker.place] = message
        else:
            place, worker.place = worker.place, -1
            _next(book, worker, how)
            book.record(place, message)
    book.tell()


def _next(book: _Book, worker: _Worker, how: dict[str, Any]) -> None:
    """Give a worker the next scenario, if there is one."""
    if book.waiting:
        place = book.waiting.pop(0)
        worker.give(place, book.scenarios[place], how)


def _death(worker: _Worker) -> WorkerDied:
    status = worker.end()
    if status < 0:
        how = f"killed by {signal.Signals(-status).name}"
        hint = " (out of memory? run fewer at once: processes=1)" if -status == signal.SIGKILL else ""
    else:
        how, hint = f"exit status {status}", " (what it printed is above)"
    return WorkerDied(f"the process that simulated it died: {how}{hint}")
