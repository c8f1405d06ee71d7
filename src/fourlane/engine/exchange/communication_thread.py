"""Run an exchange's operations on a thread of their own, so that they go on while the model computes.

Operations run to their end one after the other, in the order in which they were asked for: all ranks
begin the same ones in the same order, whatever the threads' timing. The thread needs the interpreter
only between the native parts. Not for steps with one stream: those use the exchange directly.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from fourlane.engine.exchange.contract import GroupExchange, Received
from fourlane.engine.exchange.cuda_streams import CudaStreams
from fourlane.errors import PeerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fourlane.engine.exchange.contract import Agreement, Pending
    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.exchange.group_exchange import SteppedExchange
    from fourlane.engine.exchange.local import LocalExchange
    from fourlane.engine.stage_trace import StageTrace
    from fourlane.policy.placement import Placement

__all__ = ["CommunicationThread"]

T = TypeVar("T")

_SPARE_S = 5.0
"""How much longer than an operation may take `close` waits for it."""


class _Operation(Generic[T]):
    """Something queued, under way or through; what is pending for the computing thread."""

    __slots__ = (
        "_done",
        "_error",
        "_finished",
        "_owner",
        "_result",
        "_run",
        "layer",
        "name",
        "posted",
        "stream",
        "through",
    )

    def __init__(self, owner: CommunicationThread, run: Callable[[], T], name: str, layer: int) -> None:
        self._run: Callable[[], T] | None = run
        self.name = name
        self.layer = layer
        self.stream = 0 if owner.trace is None else owner.trace.stream
        self.posted: torch.cuda.Event | None = None
        self.through: torch.cuda.Event | None = None
        self._owner = owner
        self._finished = False
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> T:
        """Do it, on the communicating thread, and let go of what it holds on to."""
        run, self._run = self._run, None
        assert run is not None, "it runs once"
        return run()

    def finish(self, result: list[T], error: BaseException | None) -> None:
        """Wake who waits."""
        self._result, self._error = result, error
        self._finished = True
        self._done.release()

    def wait(self) -> T:
        """Block until it is through, and return its result or raise what it raised."""
        if not self._finished:
            began = time.perf_counter()
            with self._done:
                self._owner.counters.wait_s += time.perf_counter() - began
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
        self._streams = CudaStreams(device) if device.type == "cuda" else None
        self._operations: queue.SimpleQueue[_Operation[Any] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
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

        def run() -> Received:
            pending = self.exchange.dispatch(x_TD, topk_TK, weights_TK, placement, layer=layer, decode_rows=decode_rows)
            received = pending.wait()
            if self.trace is not None:
                self._layer_of[id(received.handle)] = layer
            return received

        return self._queue(run, "dispatch", layer, (x_TD, topk_TK, weights_TK))

    def combine(self, y_RD: Tensor, received: Received) -> Pending[Tensor]:
        """Queue a combine. See the contract."""
        layer = self._layer_of.pop(id(received.handle), 0)
        return self._queue(lambda: self.exchange.combine(y_RD, received).wait(), "combine", layer, (y_RD,))

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

    def take_over(self, through: torch.cuda.Event, result: object) -> None:
        """Let the computing stream wait for an operation's end, and use what it made."""
        assert self._streams is not None, "events are a GPU's"
        self._streams.take_over(through, _tensors_of(result))

    def _queue(self, run: Callable[[], T], name: str, layer: int, used: tuple[Tensor, ...]) -> _Operation[T]:
        operation = _Operation(self, run, name, layer)
        if self._closed:
            operation.finish([], self._error)
            return operation
        if self._streams is not None:
            operation.posted = self._streams.post(used)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="exchange", daemon=True)
            self._thread.start()
        self._operations.put(operation)
        return operation

    # the thread

    def _serve(self) -> None:
        while (operation := self._operations.get()) is not None:
            result = list[Any]()
            if self._error is None:
                began = time.perf_counter()
                try:
                    result.append(self._run(operation))
                except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                    self._error = self._error or error
                self._count(operation, began, time.perf_counter())
            operation.finish(result, self._error)

    def _run(self, operation: _Operation[T]) -> T:
        self.counters.overlapped = True
        try:
            if self._streams is None or operation.posted is None:
                return operation.run()
            with self._streams.communicating(operation.posted):
                result = operation.run()
                operation.through = self._streams.mark()
            return result
        finally:
            self.counters.overlapped = False

    def _count(self, operation: _Operation[Any], began: float, ended: float) -> None:
        self.counters.communication_s += ended - began
        if self.trace is not None:
            self.trace.communicated(operation.stream, operation.layer, operation.name, began, ended)


def _tensors_of(result: object) -> tuple[Tensor, ...]:
    if isinstance(result, Received):
        return (result.x_RD,)
    assert isinstance(result, torch.Tensor), "an exchange returns rows"
    return (result,)
