"""Run an exchange's operations on a thread of their own, so that they go on while the model computes.

Operations begin in the order in which they were asked for, and what they send never changes places: all
ranks send the same in the same order, whatever the threads' timing. The next one may begin while the rows
of the one before are still on their way, so that the line is not idle between them. The thread needs the
interpreter only between the native parts. Not for steps with one stream: those use the exchange directly.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from fourlane.engine.exchange.contract import GroupExchange, Received
from fourlane.engine.exchange.cuda_streams import CudaStreams
from fourlane.engine.exchange.group_exchange import SteppedExchange
from fourlane.errors import PeerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from fourlane.engine.exchange.contract import Agreement, Pending
    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.exchange.local import LocalExchange
    from fourlane.engine.stage_trace import StageTrace
    from fourlane.policy.placement import Placement

__all__ = ["CommunicationThread"]

T = TypeVar("T")

_SPARE_S = 5.0
"""How much longer than an operation may take `close` waits for it."""
_QUEUED = 10
"""How many times as long as an operation may take a stream waits for one: its own parts, and those queued before."""


class _Operation(Generic[T]):
    """Something queued, begun or through; what is pending for the computing thread."""

    __slots__ = (
        "_call",
        "_done",
        "_error",
        "_finished",
        "_owner",
        "_pending",
        "_result",
        "began_s",
        "layer",
        "name",
        "posted",
        "stream",
        "through",
    )

    def __init__(self, owner: CommunicationThread, call: Callable[[], Pending[T]], name: str, layer: int) -> None:
        self.name = name
        self.layer = layer
        self.stream = 0 if owner.trace is None else owner.trace.stream
        self.began_s = 0.0
        self.posted: torch.cuda.Event | None = None
        self.through: torch.cuda.Event | None = None
        self._owner = owner
        self._call: Callable[[], Pending[T]] | None = call
        self._pending: Pending[T] | None = None
        self._finished = False
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def begin(self) -> None:
        """Post what it sends first, on the communicating thread, and let go of what it holds on to."""
        assert self._call is not None, "it begins once"
        self.began_s = time.perf_counter()
        call, self._call = self._call, None
        self._pending = call()

    def complete(self) -> T:
        """Wait for the exchange, on the communicating thread."""
        assert self._pending is not None, "it has begun"
        return self._pending.wait()

    def finish(self, result: list[T], error: BaseException | None) -> None:
        """Wake who waits."""
        self._result, self._error, self._pending = result, error, None
        self._finished = True
        self._done.release()

    def wait(self) -> T:
        """Block until it is through, and return its result or raise what it raised."""
        if not self._finished:
            began = time.perf_counter()
            longest_s = self._owner.longest_wait_s
            came = self._done.acquire(timeout=longest_s)
            self._owner.counters.wait_s += time.perf_counter() - began
            if not came:
                raise PeerLost(
                    f"layer {self.layer}, {self.name}: rank {self._owner.rank} of {self._owner.ranks} heard nothing "
                    f"from its exchange's thread for {longest_s:g} s; it had {'begun' if self.began_s else 'not begun'}"
                )
            self._done.release()
        if self._error is not None:
            raise self._error
        if self.through is not None:
            self._owner.take_over(self.through, self._result[0])
        return self._result[0]


class CommunicationThread(GroupExchange):
    """An exchange behind a thread, with the same face; used by one computing thread.

    Steps that wait for all they posted leave the thread idle: then the exchange itself may be used.
    An operation that failed makes all later ones fail alike.

    Args:
        exchange: does the work.
        device: of the activations. On a GPU the thread uses a stream of its own, and events order it
            with the computing one.
        patience_s: how long one operation may take; `close` waits no longer than that.
    """

    def __init__(
        self, exchange: LocalExchange | SteppedExchange, *, device: torch.device, patience_s: float = 30.0
    ) -> None:
        self.rank = exchange.rank
        self.ranks = exchange.ranks
        self.exchange = exchange
        self.trace: StageTrace | None = None
        self._patience_s = patience_s
        self.longest_wait_s = _QUEUED * patience_s + _SPARE_S
        self._streams = CudaStreams(device) if device.type == "cuda" else None
        self._operations: queue.SimpleQueue[_Operation[Any] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._wake = _Wake()
        self._ahead: deque[_Operation[Any] | None] = deque()
        """Taken from the queue while another was waited for: begun, or the end."""
        self._through_s = 0.0
        self._layer_of: dict[int, int] = {}

    @property
    def counters(self) -> ExchangeCounters:
        """Return the exchange's."""
        return self.exchange.counters

    def begin_step(
        self, step: int, *, more: bool, staged: int = 0, refused: int = 0, outlook: Sequence[int] = ()
    ) -> None:
        """Attach this rank's announcement to the first counts of the coming forward pass. See the contract."""
        self.exchange.begin_step(step, more=more, staged=staged, refused=refused, outlook=outlook)

    def agreement(self) -> Agreement:
        """Return what the group agreed on in the step that has just run."""
        return self.exchange.agreement()

    def dispatch(
        self,
        x_TD: Tensor,
        topk_TK: Tensor,
        weights_TK: Tensor,
        placement: Placement,
        *,
        layer: int,
        decode_rows: Tensor | None = None,
    ) -> Pending[Received]:
        """Queue a dispatch. See the contract."""
        call = partial(
            self.exchange.dispatch, x_TD, topk_TK, weights_TK, placement, layer=layer, decode_rows=decode_rows
        )
        return self._queue(call, "dispatch", layer, (x_TD, topk_TK, weights_TK))

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Queue a combine. See the contract."""
        layer = self._layer_of.pop(id(received.handle), 0)
        return self._queue(partial(self.exchange.combine, y_RD, received), "combine", layer, (y_RD,))

    def close(self) -> None:
        """Stop the thread and leave the group; what is queued fails, what is under way is not waited for long."""
        if self._closed:
            return
        self._closed = True
        self._error = self._error or PeerLost(f"rank {self.rank} of {self.ranks} has left the group")
        if self._thread is not None:
            self._operations.put(None)
            self._thread.join(0.0)
            if self._thread.is_alive():
                self.exchange.interrupt()
                self._thread.join(self._patience_s + _SPARE_S)
        self.exchange.close()
        if self._thread is None or not self._thread.is_alive():
            self._wake.close()

    def take_over(self, through: torch.cuda.Event, result: object) -> None:
        """Let the computing stream wait for an operation's end, and use what it made."""
        assert self._streams is not None, "events are a GPU's"
        self._streams.take_over(through, _tensors_of(result))

    def _queue(self, call: Callable[[], Pending[T]], name: str, layer: int, used: tuple[Tensor, ...]) -> _Operation[T]:
        operation = _Operation(self, call, name, layer)
        if self._closed:
            operation.finish([], self._error)
            return operation
        if self._streams is not None:
            operation.posted = self._streams.post(used)
        if self._thread is None:
            self._start()
        self._operations.put(operation)
        self._wake.ring()
        return operation

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="exchange", daemon=True)
        self._thread.start()

    # the thread

    def fileno(self) -> int:
        """Return what becomes readable when something is queued; see `Meanwhile`."""
        return self._wake.fileno()

    def begin_next(self) -> None:
        """Begin the next operation, unless one is ahead already; see `Meanwhile`."""
        self._wake.hush()
        if self._ahead or self._error is not None:
            return
        with suppress(queue.Empty):
            self._ahead.append(self._begun(self._operations.get_nowait()))

    def _serve(self) -> None:
        if self._streams is None and not self.exchange.spins:
            _come_first()
        while (operation := self._next()) is not None:
            result = list[Any]()
            if self._error is None:
                try:
                    result.append(self._complete(operation))
                except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                    self._fail(error)
                self._count(operation)
            operation.finish(result, self._error)

    def _next(self) -> _Operation[Any] | None:
        return self._ahead.popleft() if self._ahead else self._begun(self._operations.get())

    def _begun(self, operation: _Operation[Any] | None) -> _Operation[Any] | None:
        if operation is not None and self._error is None:
            try:
                with self._working(operation.posted):
                    operation.begin()
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                self._fail(error)
        return operation

    def _complete(self, operation: _Operation[T]) -> T:
        with self._working(None), self._beginning_next():
            result = operation.complete()
            if self._streams is not None:
                operation.through = self._streams.mark()
        if self.trace is not None and isinstance(result, Received):
            self._layer_of[id(result.handle)] = operation.layer
        return result

    @contextmanager
    def _working(self, posted: torch.cuda.Event | None) -> Iterator[None]:
        """Count what is waited for as hidden; on a GPU work on its communicating stream, behind what was posted."""
        outer, self.counters.overlapped = self.counters.overlapped, True
        try:
            if self._streams is None:
                yield
            else:
                with self._streams.communicating(posted):
                    yield
        finally:
            self.counters.overlapped = outer

    @contextmanager
    def _beginning_next(self) -> Iterator[None]:
        """Let the next operation begin while this one's rows are on their way."""
        if not isinstance(self.exchange, SteppedExchange):
            yield
            return
        self.exchange.meanwhile = self
        try:
            yield
        finally:
            self.exchange.meanwhile = None

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error

    def _count(self, operation: _Operation[Any]) -> None:
        """Add an operation's time, less what it shared with the one before."""
        began, self._through_s = max(operation.began_s, self._through_s), time.perf_counter()
        self.counters.communication_s += self._through_s - began
        if self.trace is not None:
            self.trace.communicated(operation.stream, operation.layer, operation.name, began, self._through_s)


def _come_first() -> None:
    """Let this thread come before those that compute, if this user may say so: it does little, and others wait for it.

    Real-time, since a processor's share does not matter but how soon it is to be had. Only for what blocks while it
    waits: what spins would keep computing threads from their processor.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


class _Wake:
    """A descriptor that is readable from `ring` until `hush`."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def hush(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _tensors_of(result: object) -> tuple[Tensor, ...]:
    if isinstance(result, Received):
        return (result.x_RD,)
    assert isinstance(result, torch.Tensor), "an exchange returns rows"
    return (result,)
