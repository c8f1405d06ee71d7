"""Work out operating points of many twins, over processes where that pays.

Workers are fresh interpreters, so that no caller needs a `__main__` guard. What goes to a worker are twins, what comes
back are points; both are pickled, between processes of one user on one machine.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from fourlane.errors import SpecError, WorkerDied
from fourlane.twin.assembly import assemble
from fourlane.twin.fabric.parallel import available_processors
from fourlane.twin.operating_point import operating_point

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.spec.twin import Twin
    from fourlane.twin.point_values import OperatingPoint

    Outcome = OperatingPoint | str

__all__ = ["points_of", "serve"]

FEW = 16
"""Points that are worked out here, before a worker would have begun."""
_SERVE = "from fourlane.planner.points import serve; serve()"


def points_of(
    twins: Sequence[Twin],
    *,
    processes: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Outcome]:
    """Return the operating point of each twin: at its rate, or at the greatest that meets its SLO.

    Args:
        twins: in any order.
        processes: at once; None: as many as there are processors, where there is enough to do.
        progress: called with how many are done, of how many.

    Returns:
        In the order of the twins; of a twin that cannot be, why not.

    Raises:
        WorkerDied: a process ended before its work.
    """
    at_once = min(processes or available_processors(), len(twins))
    if at_once <= 1 or (processes is None and len(twins) < FEW):
        return _here(twins, progress)
    return _over_processes(twins, at_once, progress)


def _here(twins: Sequence[Twin], progress: Callable[[int, int], object] | None) -> list[Outcome]:
    found: list[Outcome] = []
    for twin in twins:
        found.append(_point(twin))
        if progress is not None:
            progress(len(found), len(twins))
    return found


def _point(twin: Twin) -> Outcome:
    try:
        return operating_point(assemble(twin, processes=1))
    except SpecError as error:
        return str(error)


def _over_processes(
    twins: Sequence[Twin], at_once: int, progress: Callable[[int, int], object] | None
) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    told: queue.Queue[tuple[int, Outcome] | None] = queue.Queue()
    workers: list[tuple[subprocess.Popen[bytes], threading.Thread]] = []
    try:
        for first in range(at_once):
            share = [(place, twins[place]) for place in range(first, len(twins), at_once)]
            workers.append(_worker(share, told))
        running = len(workers)
        while running:
            entry = told.get()
            if entry is None:
                running -= 1
                continue
            found[entry[0]] = entry[1]
            if progress is not None:
                progress(len(found), len(twins))
    finally:
        for worker, listener in workers:
            worker.kill()
            listener.join()
            worker.wait()
    if len(found) < len(twins):
        raise WorkerDied(f"a process that worked out operating points ended after {len(found)} of {len(twins)} of them")
    return [found[place] for place in range(len(twins))]


def _worker(
    share: list[tuple[int, Twin]], told: queue.Queue[tuple[int, Outcome] | None]
) -> tuple[subprocess.Popen[bytes], threading.Thread]:
    """Start a process with its share of the work, and a thread that hears it out."""
    worker = subprocess.Popen([sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def hear() -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        with worker.stdout as answers, contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            with worker.stdin as questions:
                pickle.dump(share, questions)
            for _ in share:
                told.put(pickle.load(answers))  # noqa: S301 - our own process
        told.put(None)

    listener = threading.Thread(target=hear, daemon=True)
    listener.start()
    return worker, listener


def serve() -> None:
    """Be a worker: read twins, answer points one by one."""
    out = sys.stdout.buffer
    sys.stdout = sys.stderr
    share: list[tuple[int, Any]] = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    for place, twin in share:
        pickle.dump((place, _point(twin)), out)
        out.flush()
