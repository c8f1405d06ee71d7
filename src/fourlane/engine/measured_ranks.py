"""Ranks of a group that exist to be measured: where they sit, starting them on this host, hearing them out.

A rank runs a function "module:function", called with the plan as plain data, its number, and what takes what it
says. Which plan that is, and what the ranks do, is for those who measure (`exchange.measure`). Imports no torch.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import tempfile
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from fourlane.engine.nursery import die_with_parent
from fourlane.errors import EngineError, FourlaneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

__all__ = ["Seats", "Source", "heard", "local_ranks", "meeting_place", "run_in_host"]

T = TypeVar("T")

_PATIENCE_S = 120.0


class Seats(msgspec.Struct, frozen=True, kw_only=True):
    """Where the ranks of a group sit.

    `addresses`: of each rank, on `interface`. `folder`: where they meet. `linked`: they are behind links, whose rate
    their sockets keep themselves to if there is a `pace`: bit/s that one rank may send.
    """

    addresses: tuple[str, ...]
    folder: str
    interface: str = "lo"
    linked: bool = False
    pace: int | None = None

    @property
    def ranks(self) -> int:
        """Return how many ranks there are."""
        return len(self.addresses)


class Source(Protocol):
    """Where a rank is heard."""

    def __call__(self, timeout_s: float, /) -> Any:
        """Return the next thing a rank says, as plain data.

        Raises:
            FourlaneError: it died or is silent.
        """
        ...


class _Failed(msgspec.Struct, frozen=True, kw_only=True):
    failure: str


def heard(source: Source, rank: int, kind: type[T]) -> T:
    """Return the next thing a rank says.

    Raises:
        EngineError: it could not go on, and why.
    """
    said = source(_PATIENCE_S)
    if isinstance(said, dict) and "failure" in said:
        raise EngineError(f"bench: rank {rank}: {said['failure']}")
    return msgspec.convert(said, kind)


@contextmanager
def meeting_place() -> Iterator[str]:
    """Make a folder where the ranks of a group may meet."""
    with tempfile.TemporaryDirectory(prefix="fourlane-bench-") as folder:
        yield folder


@contextmanager
def local_ranks(target: str, plan: msgspec.Struct, ranks: int) -> Iterator[list[Source]]:
    """Start ranks on this host; yields where they are heard. They end with the context.

    Args:
        target: "module:function" that each runs; its module is imported once, however many ranks there are.
        plan: what it is called with.
        ranks: how many.
    """
    resource_tracker.ensure_running()  # starting it lets Ctrl-C through
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([target.partition(":")[0]])
    sent = msgspec.json.encode(plan)
    with ExitStack() as stack:
        sources: list[Source] = []
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            stack.enter_context(ours)
            process = context.Process(target=_local_rank, args=(target, sent, rank, theirs), daemon=True)
            with _ctrl_c_later():
                process.start()
                stack.callback(_end, process)
            theirs.close()
            sources.append(_Pipe(ours, process, rank))
        yield sources


def run_in_host(channel: Any, *, run: str, plan: dict[str, Any], rank: int) -> None:
    """Be a rank inside a host of the lab, where `channel.say` is heard."""
    _run(run, plan, rank, channel.say)


def _run(target: str, plan: dict[str, Any], rank: int, say: Callable[[object], None]) -> None:
    def say_plainly(said: object) -> None:
        say(msgspec.to_builtins(said))

    module, _, name = target.partition(":")
    try:
        getattr(importlib.import_module(module), name)(plan, rank, say_plainly)
    except FourlaneError as error:
        say_plainly(_Failed(failure=str(error)))


def _local_rank(target: str, plan: bytes, rank: int, pipe: Connection) -> None:
    """Be a rank, in a process forked from the one that has imported everything."""
    die_with_parent(os.getppid())
    logging.getLogger("fourlane").addHandler(logging.NullHandler())  # what matters is said, or ends the run
    _run(target, msgspec.json.decode(plan), rank, lambda said: pipe.send_bytes(msgspec.json.encode(said)))


class _Pipe:
    """A rank heard over a pipe."""

    def __init__(self, pipe: Connection, process: BaseProcess, rank: int) -> None:
        self._pipe, self._process, self._rank = pipe, process, rank

    def __call__(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise EngineError(f"bench: rank {self._rank}: nothing heard for {timeout_s:g} s")
        try:
            return msgspec.json.decode(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            self._process.join(1)
            raise EngineError(f"bench: rank {self._rank} ended with status {self._process.exitcode}") from error


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Let Ctrl-C wait: no process shall be started that nobody knows of. Those started never hear of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join(5)
