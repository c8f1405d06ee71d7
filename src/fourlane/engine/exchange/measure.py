"""How fast the ranks of a group exchange bytes and tokens, over each implementation, beside memcpy and gloo.

Two ways are measured. *plain*: an all-to-all of equal blocks, one a pair of ranks, that of `torch.distributed`
(gloo) among them, as the baseline. *pair*: dispatch, an expert's work and combine, again and again, each on what the
one before returned; the experts multiply by numbers of their own, so that what comes back in the end is what went out,
bit for bit, only if every row was at its expert. An operation takes as long as on the rank that took longest.

All ranks of a group measure the same steps in the same order; implementations take turns.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from fourlane.engine.nursery import die_with_parent
from fourlane.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

__all__ = [
    "IMPLEMENTATIONS",
    "MEMCPY",
    "ROW_BYTES",
    "ExchangePlan",
    "Measured",
    "Source",
    "Step",
    "collect",
    "local_ranks",
    "meeting_place",
    "needs_no_link",
    "ranks_in_host",
]

IMPLEMENTATIONS = ("torch_all_to_all", "tcp")
MEMCPY = ("memcpy", "memcpy alone")
"""As many bytes copied within each rank: by all ranks at once, and by one while the others rest."""
ROW_BYTES = 2048
"""Bytes of a token's activations: 512 float32."""
_PATIENCE_S = 120.0
_MODULE = "fourlane.engine.exchange.measured_rank"

Way = Literal["plain", "pair"]


def needs_no_link(implementation: str) -> bool:
    """Tell whether an implementation works within one host only."""
    return implementation == "shared_memory"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: of which way, over what, with how many bytes a pair of ranks."""

    way: Way
    implementation: str
    size: int


class ExchangePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks of one group measure.

    `addresses`: of each rank, on `interface`. `folder`: where they meet. `linked`: ranks are behind links, beside
    which memcpy says nothing. `pace`: bit/s that the sockets of one rank may send together, None: as fast as they go.

    Units:
        sizes: bytes a pair of ranks, multiples of `ROW_BYTES`; seconds: of each step of each round.
    """

    addresses: tuple[str, ...]
    implementations: tuple[str, ...]
    sizes: tuple[int, ...]
    folder: str
    interface: str = "lo"
    ways: tuple[Way, ...] = ("plain", "pair")
    seconds: float = 0.5
    rounds: int = 3
    linked: bool = False
    pace: int | None = None

    @property
    def ranks(self) -> int:
        """Return how many ranks there are."""
        return len(self.addresses)

    def steps(self) -> list[Step]:
        """Return what is measured, in order; implementations take turns."""
        found: list[Step] = []
        for way in self.ways:
            over = (*MEMCPY, *self.implementations) if way == "plain" and not self.linked else self.implementations
            for size in self.sizes:
                turn = [Step(way=way, implementation=name, size=size) for name in over]
                found += turn * self.rounds
        return found


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank says of one step, or why it could not go on.

    Units:
        seconds: each operation's.
    """

    seconds: list[float] = []
    failure: str = ""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Operations of one kind among the ranks of a group.

    Units:
        size: bytes a pair of ranks; seconds: each operation's, on the rank that took longest.
    """

    ranks: int
    way: Way
    implementation: str
    size: int
    seconds: list[float]

    @property
    def bytes_per_rank(self) -> int:
        """Return the bytes a rank gives away in one direction, what it keeps included."""
        return self.size * self.ranks


class Source(Protocol):
    """Where a rank is heard."""

    def __call__(self, timeout_s: float, /) -> Any:
        """Return the next thing a rank says, as plain data.

        Raises:
            FourlaneError: it died or is silent.
        """
        ...


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
    for step in plan.steps():
        show(step)
        said = [_heard(source, rank) for rank, source in enumerate(sources)]
        slowest.setdefault(step, []).extend(map(max, zip(*(each.seconds for each in said), strict=True)))
    return [
        Measured(ranks=plan.ranks, way=step.way, implementation=step.implementation, size=step.size, seconds=seconds)
        for step, seconds in slowest.items()
    ]


def _heard(source: Source, rank: int) -> Said:
    said = msgspec.convert(source(_PATIENCE_S), Said)
    if said.failure:
        raise EngineError(f"bench: rank {rank}: {said.failure}")
    return said


@contextmanager
def local_ranks(plan: ExchangePlan) -> Iterator[list[Source]]:
    """Start the ranks of a plan on this host; yields where they are heard. They end with the context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_MODULE])  # imports torch once, however many ranks there are
    with ExitStack() as stack:
        sources: list[Source] = []
        for rank in range(plan.ranks):
            ours, theirs = context.Pipe(duplex=False)
            stack.enter_context(ours)
            process = context.Process(target=_local_rank, args=(msgspec.json.encode(plan), rank, theirs), daemon=True)
            with _ctrl_c_later():
                process.start()
                stack.callback(_end, process)
            theirs.close()
            sources.append(_Pipe(ours, process, rank))
        yield sources


@contextmanager
def meeting_place() -> Iterator[str]:
    """Make a folder where the ranks of a group may meet."""
    with tempfile.TemporaryDirectory(prefix="fourlane-bench-") as folder:
        yield folder


def ranks_in_host(channel: Any, *, plan: dict[str, Any], rank: int) -> None:
    """Be a rank inside a host of the lab, where `channel.say` is heard."""
    from fourlane.engine.exchange.measured_rank import run_rank

    read = msgspec.convert(plan, ExchangePlan)
    run_rank(read, rank, lambda said: channel.say(msgspec.to_builtins(said)))


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
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join(5)


def _local_rank(plan: bytes, rank: int, pipe: Connection) -> None:
    """Be a rank; runs in a process forked from the one that has torch."""
    die_with_parent(os.getppid())
    from fourlane.engine.exchange.measured_rank import run_rank

    run_rank(
        msgspec.json.decode(plan, type=ExchangePlan), rank, lambda said: pipe.send_bytes(msgspec.json.encode(said))
    )
