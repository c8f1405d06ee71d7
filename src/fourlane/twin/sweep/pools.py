"""Where tasks of a sweep run: in this process, over processes of this machine, or over machines by Ray.

A pool takes tasks as text and hands back answers as text, in whatever order they come.
"""

from __future__ import annotations

import importlib
import os
import selectors
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Protocol

from fourlane.errors import EnvironmentMissing, WorkerDied
from fourlane.twin.sweep.worker import answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Here", "OverProcesses", "OverRay", "Pool"]

_SERVE = "from fourlane.twin.sweep.worker import serve; serve()"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_TURN_S = 0.2
_END_S = 5.0
_AHEAD = 2
"""Tasks that Ray holds for each of its processors, so that none waits for this process."""


class Pool(Protocol):
    """Something that works tasks out."""

    def run(self, tasks: Sequence[str]) -> Iterator[str]:
        """Yield the answer to every task as it comes; "" now and then, so that the caller can look about."""
        ...

    @property
    def name(self) -> str:
        """Return what it is, in words."""
        ...


class Here:
    """This process."""

    name = "one process"

    def run(self, tasks: Sequence[str]) -> Iterator[str]:
        """Yield answers, one after the other."""
        for task in tasks:
            yield answer(task)


class OverProcesses:
    """Fresh interpreters on this machine, so that no script needs a `__main__` guard.

    Args:
        processes: how many at once.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self.name = f"{processes} processes"

    def run(self, tasks: Sequence[str]) -> Iterator[str]:
        """Yield answers as they come.

        Raises:
            WorkerDied: a process died; what it was at is told, all others' answers have been yielded.
        """
        waiting = list(reversed(tasks))
        workers = [_Process() for _ in range(min(self._processes, len(tasks)))]
        died = ""
        with selectors.DefaultSelector() as selector:
            try:
                for worker in workers:
                    worker.give(waiting.pop())
                    selector.register(worker.answers, selectors.EVENT_READ, worker)
                while any(worker.task for worker in workers):
                    ready = selector.select(timeout=_TURN_S)
                    if not ready:
                        yield ""
                    for key, _ in ready:
                        worker = key.data
                        line, task = worker.answers.readline(), worker.task
                        worker.task = ""
                        if not line:
                            selector.unregister(worker.answers)
                            died = died or worker.death(task)
                            waiting.clear()
                            continue
                        if waiting:
                            worker.give(waiting.pop())
                        yield line
            finally:
                for worker in workers:
                    worker.end()
        if died:
            raise WorkerDied(died)


class _Process:
    """A process that answers tasks."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        # A process group of its own: a terminal's Ctrl-C is handled in the process that sweeps.
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._tasks, self.answers = self._popen.stdin, self._popen.stdout
        self.task = ""

    def give(self, task: str) -> None:
        """Hand it a task."""
        self.task = task
        try:
            self._tasks.write(task + "\n")
            self._tasks.flush()
        except BrokenPipeError:
            return  # it is dead, which reading from it tells

    def death(self, task: str) -> str:
        """Return how it died, and at what."""
        status = self._popen.wait(timeout=_END_S)
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        hint = " (out of memory? sweep over fewer processes)" if status == -9 else ""
        return f"a process of the sweep died: {how}{hint}; it was at {task[:120]}"

    def end(self) -> None:
        """End it, whatever it is at."""
        if self.task:
            self._popen.kill()
        for pipe in (self._tasks, self.answers):
            try:
                pipe.close()
            except BrokenPipeError:
                continue
        try:
            self._popen.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


class OverRay:
    """The machines of a Ray cluster, each with fourlane and the files that the twin names under the same paths.

    Args:
        address: of the cluster; "auto": the one that runs here (`ray start`) or is in RAY_ADDRESS, else one is started.
        ray: the module; None: it is imported.

    Raises:
        EnvironmentMissing: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, address: str = "auto", *, ray: Any = None) -> None:
        self._ray = _imported() if ray is None else ray
        self._started = not self._ray.is_initialized()
        if self._started:
            self._connect(address)
        self._processors = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        machines = len([node for node in self._ray.nodes() if node.get("Alive", True)])
        self.name = f"Ray: {self._processors} processors of {machines} machine{'s' if machines != 1 else ''}"

    def run(self, tasks: Sequence[str]) -> Iterator[str]:
        """Yield answers as they come; a task whose machine is lost is given to another.

        Raises:
            WorkerDied: a task failed again and again.
        """
        ray = self._ray
        remote = ray.remote(num_cpus=1, max_retries=3)(answer)
        waiting = list(reversed(tasks))
        under_way: list[Any] = []
        try:
            while waiting or under_way:
                while waiting and len(under_way) < _AHEAD * self._processors:
                    under_way.append(remote.remote(waiting.pop()))
                done, under_way = ray.wait(under_way, num_returns=1, timeout=_TURN_S)
                if not done:
                    yield ""
                for each in done:
                    yield self._taken(each)
        finally:
            for each in under_way:
                ray.cancel(each, force=True)
            if self._started:
                ray.shutdown()

    def _taken(self, reference: Any) -> str:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(f"a task of the sweep failed on Ray: {error}") from error

    def _connect(self, address: str) -> None:
        given = {"log_to_driver": False, "include_dashboard": False, "configure_logging": False}
        try:
            self._ray.init(None if address == "auto" else address, **given if address == "auto" else {})
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EnvironmentMissing(
                f"Ray: no cluster answers at {address}: {error}; start one with `ray start --head`, or leave the "
                "address out to start one on this machine alone"
            ) from error


def _imported() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise EnvironmentMissing(
            'sweeps over several machines need Ray: pip install "fourlane[ray]", on each of them'
        ) from error
