"""Work out operating points of many twins, over processes where that pays.

Workers are fresh interpreters, so that no caller needs a `__main__` guard. What goes to a worker are twins, what comes
back are points; both are pickled, between processes of one user on one machine.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

from fourlane.errors import SpecError, WorkerDied
from fourlane.planner.remembered import Memory
from fourlane.twin.assembly import assemble
from fourlane.twin.fabric.parallel import available_processors
from fourlane.twin.operating_point import operating_point

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.spec.twin import Twin
    from fourlane.twin.point_values import OperatingPoint

    Outcome = OperatingPoint | str

__all__ = ["Points", "points_of", "serve"]

FEW = 16
"""Points that are worked out here, before a worker would have begun."""
_SERVE = "from fourlane.planner.points import serve; serve()"


class Points:
    """Processes that work out operating points, kept from one lot of twins to the next.

    Args:
        processes: at once; None: as many as there are processors, where there is enough to do; 1: none but this one.
    """

    def __init__(self, processes: int | None = None) -> None:
        self._asked = processes
        self._workers: list[subprocess.Popen[bytes]] = []
        self._memory = Memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
            for stream in (worker.stdin, worker.stdout):
                with contextlib.suppress(OSError):
                    assert stream is not None
                    stream.close()
            worker.wait()

    def start(self, expected: int) -> None:
        """Start processes ahead of so many points, if they are worth it: they take a second to be ready."""
        at_once = min(self._asked or available_processors(), expected)
        if at_once <= 1 or (self._asked is None and expected < FEW):
            return
        while len(self._workers) < at_once:
            command = [sys.executable, "-c", _SERVE]
            self._workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    def of(self, twins: Sequence[Twin], *, progress: Callable[[int, int], object] | None = None) -> list[Outcome]:
        """Return the operating point of each twin: at its rate, or at the greatest that meets its SLO.

        Args:
            twins: in any order.
            progress: called with how many are done, of how many.

        Returns:
            In the order of the twins; of a twin that cannot be, why not.

        Raises:
            WorkerDied: a process ended before its work.
        """
        self.start(len(twins))
        if len(twins) > 1 and self._workers:
            return self._over_processes(twins, progress)
        found: list[Outcome] = []
        for twin in twins:
            found.append(_point(twin, self._memory))
            if progress is not None:
                progress(len(found), len(twins))
        return found

    def _over_processes(self, twins: Sequence[Twin], progress: Callable[[int, int], object] | None) -> list[Outcome]:
        found: dict[int, Outcome] = {}
        told: queue.Queue[tuple[int, Outcome] | None] = queue.Queue()
        running = 0
        for first, worker in enumerate(self._workers):
            share = [(place, twins[place]) for place in range(first, len(twins), len(self._workers))]
            if share:
                threading.Thread(target=_ask, args=(worker, share, told), daemon=True).start()
                running += 1
        while running:
            entry = told.get()
            if entry is None:
                running -= 1
                continue
            found[entry[0]] = entry[1]
            if progress is not None:
                progress(len(found), len(twins))
        if len(found) < len(twins):
            raise WorkerDied(f"a process that works out operating points ended after {len(found)} of {len(twins)}")
        return [found[place] for place in range(len(twins))]


def points_of(
    twins: Sequence[Twin],
    *,
    processes: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Outcome]:
    """Return the operating point of each twin; arguments and what is returned as of `Points`."""
    with Points(processes) as points:
        return points.of(twins, progress=progress)


def _ask(
    worker: subprocess.Popen[bytes],
    share: list[tuple[int, Twin]],
    told: queue.Queue[tuple[int, Outcome] | None],
) -> None:
    """Hand a process its share of the work, and hear it out."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    with contextlib.suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
        pickle.dump(share, worker.stdin)
        worker.stdin.flush()
        for _ in share:
            told.put(pickle.load(worker.stdout))  # noqa: S301 - our own process
    told.put(None)


def _point(twin: Twin, memory: Memory) -> Outcome:
    try:
        return operating_point(memory.of(assemble(twin, processes=1)))
    except SpecError as error:
        return str(error)


def serve() -> None:
    """Be a worker: read lots of twins, answer points one by one, until there are no more."""
    out = sys.stdout.buffer
    sys.stdout = sys.stderr
    memory = Memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    while True:
        try:
            share: list[tuple[int, Any]] = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
        except EOFError:
            return
        for place, twin in share:
            pickle.dump((place, _point(twin, memory)), out)
            out.flush()
