"""One rank of a group that is measured: what `measure` plans, this does. Imports torch.

Not for starting ranks or making sense of what they say.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from fourlane.engine.exchange.joining import STEP_S, join, pace_new_sockets
from fourlane.engine.exchange.lane import open_sockets
from fourlane.engine.exchange.measure import MEMCPY, ROW_BYTES, ExchangePlan, Said, Step
from fourlane.engine.exchange.payload import payload_of
from fourlane.errors import EngineError
from fourlane.policy.placement import linear_placement

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fourlane.engine.exchange.all_to_all import AllToAllExchange
    from fourlane.engine.exchange.contract import Exchange, Received
    from fourlane.engine.exchange.shared_memory import SharedMemoryExchange

__all__ = ["run_rank"]

_WARM_UP = 5
_FEWEST, _MOST = 8, 2000
"""Operations of a step, whatever they take."""
_HELD = (*MEMCPY, "shared_memory")
_EXPERTS_PER_RANK = 2
_ROUNDED = 1.01 / 16
"""By what part of itself a number may be rounded in float8, once; again and again it stays where it is."""


def run_rank(plan: dict[str, Any], rank: int, say: Callable[[Said], None]) -> None:
    """Meet the others, measure every step of the plan, and say how long each operation took."""
    torch.set_num_threads(1)
    read = msgspec.convert(plan, ExchangePlan)
    with ExitStack() as stack:
        group = stack.enter_context(_Group(read, rank))
        for step in read.steps():
            before = group.waited_for(step)
            seconds = group.measure(step)
            waits = zip(before or [0.0] * read.seats.ranks, group.waited_for(step), strict=False)
            say(Said(seconds=seconds, waited_s=[(after - earlier) / len(seconds) for earlier, after in waits]))


class _Group:
    """This rank's membership in the group, over every implementation at once."""

    def __init__(self, plan: ExchangePlan, rank: int) -> None:
        self._plan = plan
        self._rank = rank
        self._experts = _EXPERTS_PER_RANK * plan.seats.ranks
        self._placement = linear_placement(layers=1, experts=self._experts, ranks=plan.seats.ranks)
        self._processors = sorted(os.sched_getaffinity(0))
        self._exchanges: dict[str, AllToAllExchange | SharedMemoryExchange] = {}

    def __enter__(self) -> Self:
        self._open_baseline()
        for name in self._plan.implementations:
            payload = payload_of(self._plan.dispatch)
            exchange = join(name, self._plan.seats, self._rank, self._placement, payload=payload)
            exchange.begin_step(0, more=True)
            self._exchanges[name] = exchange
        return self

    def __exit__(self, *error: object) -> None:
        for exchange in self._exchanges.values():
            exchange.close()
        dist.destroy_process_group()

    def waited_for(self, step: Step) -> list[float]:
        """Return how long this rank has waited for each so far, in seconds; [] where a step's exchange cannot tell."""
        exchange = self._exchanges.get(step.implementation)
        return [] if exchange is None else list(getattr(exchange.counters, "waited_for_G", []))

    def measure(self, step: Step) -> list[float]:
        """Measure one step; all ranks do at once.

        Where there is a processor for each rank, it stays on its own if it waits by yielding: the scheduler may leave
        two that do on one. Those that sleep are placed well by it, and are slower if held.

        Raises:
            EngineError: what arrived was not what was sent.
        """
        held = step.implementation in _HELD and self._plan.seats.ranks <= len(self._processors)
        os.sched_setaffinity(0, {self._processors[self._rank]} if held else self._processors)
        if step.implementation.startswith("memcpy"):
            return self._time(_copying(step.size * self._plan.seats.ranks), alone=step.implementation != "memcpy")
        if step.way == "plain":
            blocks = _Blocks(self._rank, self._plan.seats.ranks, step.size)
            seconds = self._time(blocks.through(self._all_to_all(step.implementation)))
            blocks.check(step)
            return seconds
        tokens = _Tokens(self._plan.seats.ranks, self._rank, step.size // ROW_BYTES)
        exchange = self._exchanges[step.implementation]
        seconds = self._time(lambda: tokens.go_through(exchange, self._placement))
        tokens.check(step, exact=self._plan.dispatch == "activations")
        return seconds

    def _time(self, operation: Callable[[], object], *, alone: bool = False) -> list[float]:
        """Time an operation again and again, as often as all ranks agree on."""
        resting = alone and self._rank > 0
        if resting:
            operation = _nothing
        began = time.perf_counter()
        for _ in range(_WARM_UP):
            operation()
        each = torch.tensor([(time.perf_counter() - began) / _WARM_UP], dtype=torch.float64)
        dist.all_reduce(each, dist.ReduceOp.MAX)
        repeats = min(_MOST, max(_FEWEST, int(self._plan.seconds / max(float(each), 1e-7))))
        stamps = np.empty(repeats + 1)
        for index in range(repeats):
            stamps[index] = time.perf_counter()
            operation()
        stamps[repeats] = time.perf_counter()
        dist.barrier()  # who is through rests until all are
        return [0.0] * repeats if resting else np.diff(stamps).tolist()

    def _all_to_all(self, implementation: str) -> Callable[[Tensor], Tensor]:
        if implementation == "torch_all_to_all":
            return _all_to_all_single
        return self._exchanges[implementation].all_to_all

    def _open_baseline(self) -> None:
        seats, before = self._plan.seats, open_sockets()
        os.environ["GLOO_SOCKET_IFNAME"] = seats.interface
        store = dist.FileStore(str(Path(seats.folder, "baseline")), seats.ranks)
        timeout = timedelta(seconds=STEP_S)
        dist.init_process_group("gloo", store=store, rank=self._rank, world_size=seats.ranks, timeout=timeout)
        pace_new_sockets(before, seats)


class _Blocks:
    """Equal blocks for every rank, each with a number of its own in all its bytes."""

    def __init__(self, rank: int, ranks: int, size: int) -> None:
        self._sent = torch.empty((ranks, size), dtype=torch.uint8)
        self._due = torch.empty((ranks, size), dtype=torch.uint8)
        for peer in range(ranks):
            self._sent[peer] = _number_of(rank, peer)
            self._due[peer] = _number_of(peer, rank)
        self._came: Tensor | None = None

    def through(self, all_to_all: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        """Return the operation that exchanges them."""

        def exchange() -> None:
            self._came = all_to_all(self._sent)

        return exchange

    def check(self, step: Step) -> None:
        """See that what came last is what was sent."""
        if self._came is None or not torch.equal(self._came.view(-1), self._due.view(-1)):
            raise EngineError(f"{step.implementation}: blocks of {step.size} bytes did not arrive as they were sent")


class _Tokens:
    """Tokens whose experts are spread evenly: as many rows for each expert of each rank.

    Expert e multiplies by a power of two of its own and its weight divides by that: a token that was at its experts
    comes back as it was, to the bit, or as it was rounded on its way.
    """

    def __init__(self, ranks: int, rank: int, rows: int) -> None:
        top_k = 2 if ranks * rows % 2 == 0 else 1
        pair_N = torch.arange(ranks * rows)
        expert_N = pair_N % ranks * _EXPERTS_PER_RANK + pair_N // ranks % _EXPERTS_PER_RANK
        self._factor_E = 2.0 ** (torch.arange(_EXPERTS_PER_RANK * ranks) - ranks)
        self._topk_TK = expert_N.view(-1, top_k)
        self._weights_TK = 1 / (top_k * self._factor_E[self._topk_TK])
        generator = torch.Generator().manual_seed(rank)
        self._sent_TD = torch.randn(pair_N.numel() // top_k, ROW_BYTES // 4, generator=generator)
        self._x_TD = self._sent_TD
        self._held_E = slice(rank * _EXPERTS_PER_RANK, (rank + 1) * _EXPERTS_PER_RANK)
        self._factor_R1: Tensor | None = None
        self._y_RD: Tensor | None = None

    def go_through(self, exchange: Exchange, placement: Any) -> None:
        """Dispatch what came back last, let the experts work, combine."""
        received = exchange.dispatch(self._x_TD, self._topk_TK, self._weights_TK, placement, layer=0).wait()
        self._x_TD = exchange.combine(self._experts(received), received).wait()

    def _experts(self, received: Received) -> Tensor:
        if self._factor_R1 is None or self._y_RD is None:
            rows_S = torch.tensor(received.offset_S1).diff()
            self._factor_R1 = self._factor_E[self._held_E].repeat_interleave(rows_S)[:, None]
            self._y_RD = torch.empty_like(received.x_RD)
        return torch.mul(received.x_RD, self._factor_R1, out=self._y_RD)

    def check(self, step: Step, *, exact: bool) -> None:
        """See that the tokens have been at their experts each time."""
        due_TD, off_TD = self._sent_TD, (self._x_TD - self._sent_TD).abs()
        allowed_TD = 0.0 * due_TD if exact else _ROUNDED * torch.maximum(due_TD.abs(), due_TD.abs().max() * 2**-12)
        if not bool((off_TD <= allowed_TD).all()):
            raise EngineError(f"{step.implementation}: rows of {step.size} bytes a pair were not at their experts")


def _all_to_all_single(blocks_GB: Tensor) -> Tensor:
    came = torch.empty_like(blocks_GB)
    dist.all_to_all_single(came, blocks_GB)
    return came


def _number_of(source: int, target: int) -> int:
    return (source * 16 + target) % 251


def _copying(size: int) -> Callable[[], None]:
    source, target = np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    return lambda: np.copyto(target, source)


def _nothing() -> None:
    pass
