"""Operations run on a thread in the order they were asked for, fail alike, and never hold `close` up."""

from __future__ import annotations

import os
import select
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.contract import Received
from fourlane.engine.exchange.counters import ExchangeCounters
from fourlane.engine.exchange.group_exchange import SteppedExchange
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.exchange.meeting import GroupAddress
from fourlane.engine.stage_trace import StageTrace
from fourlane.errors import PeerLost
from fourlane.policy.placement import linear_placement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CPU = torch.device("cpu")
PLACEMENT = linear_placement(layers=2, experts=4, ranks=1)


@dataclass
class Slow:
    """Something under way that takes its time."""

    act: Callable[[], Any]

    def wait(self) -> Any:
        return self.act()


@dataclass
class ScriptedExchange:
    """An exchange of another rank's pace: what it does takes as long as told, or fails, or waits for a release."""

    takes_s: float = 0.0
    fails_at: int = -1
    log: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    blocks: bool = False
    closed: bool = False
    spins: bool = False
    rank: int = 0
    ranks: int = 2

    def __post_init__(self) -> None:
        self.counters = ExchangeCounters(layers=2, experts=4)

    def dispatch(self, x_TD: torch.Tensor, *_: Any, layer: int, **__: Any) -> Slow:
        self.log.append(f"begin dispatch {layer}")
        return Slow(lambda: self._through(f"dispatch {layer}", Received(x_TD, [0], np.zeros((2, 4)), handle=layer)))

    def combine(self, y_RD: torch.Tensor, received: Received) -> Slow:
        self.log.append(f"begin combine {received.handle}")
        return Slow(lambda: self._through(f"combine {received.handle}", y_RD))

    def interrupt(self) -> None:
        self.released.set()

    def close(self) -> None:
        self.closed = True

    def _through(self, name: str, result: Any) -> Any:
        began = time.perf_counter()
        if self.blocks and not self.released.wait(20):
            raise AssertionError("nobody released it")
        time.sleep(self.takes_s)
        self.counters.blocked(time.perf_counter() - began)
        if self.fails_at == sum(line.startswith("begin") for line in self.log):
            raise PeerLost(f"{name}: rank 1 died")
        self.log.append(f"end {name}")
        return result


class WakeableExchange(SteppedExchange):
    """An exchange whose rows arrive when told, and that can be woken from waiting for them."""

    def __init__(self, log: list[str], *, lost: bool = False) -> None:
        address = GroupAddress("nowhere", 0, 2, "127.0.0.1", join_s=1, step_s=5)
        super().__init__(address, linear_placement(layers=2, experts=4, ranks=2), marks=[])
        self.log, self.lost = log, lost
        self.rows_posted, self.begun_ahead, self.arrived = threading.Event(), threading.Event(), threading.Event()

    def _gather(self, mine: torch.Tensor, where: str) -> np.ndarray:
        raise AssertionError((mine, where))

    def dispatch(self, *_: Any, layer: int, **__: Any) -> Slow:
        if self.rows_posted.is_set():
            self.begun_ahead.set()
        self.log.append(f"begin {layer}")
        return Slow(lambda: self._rows(layer))

    def combine(self, y_RD: torch.Tensor, received: Received) -> Slow:
        raise AssertionError((y_RD, received))

    def close(self) -> None:
        self.arrived.set()

    def _rows(self, layer: int) -> Received:
        self.log.append(f"rows {layer}")
        self.rows_posted.set()
        meanwhile = self.meanwhile
        assert meanwhile is not None
        while not self.arrived.is_set():
            meanwhile.begin_next()
            select.select([meanwhile], [], [], 0.01)
        if self.lost:
            raise PeerLost(f"rows {layer}: rank 1 died")
        self.log.append(f"end {layer}")
        return Received(torch.zeros(1, 2), [0], np.zeros((2, 4)), handle=layer)


@pytest.fixture
def behind() -> Iterator[Callable[[ScriptedExchange], CommunicationThread]]:
    """Put exchanges behind threads, which are stopped at the end."""
    made: list[CommunicationThread] = []

    def put(exchange: ScriptedExchange) -> CommunicationThread:
        made.append(CommunicationThread(exchange, device=CPU, patience_s=5.0))  # type: ignore[arg-type]
        return made[-1]

    yield put
    for thread in made:
        thread.close()


def dispatch(exchange: CommunicationThread, layer: int) -> Any:
    tokens = torch.full((3, 2), float(layer)), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    return exchange.dispatch(*tokens, PLACEMENT, layer=layer)


Behind = "Callable[[ScriptedExchange], CommunicationThread]"


def test_operations_run_to_their_end_in_the_order_they_were_asked_for(behind: Behind) -> None:
    inner = ScriptedExchange(takes_s=0.01)
    exchange = behind(inner)
    first, second = dispatch(exchange, 0), dispatch(exchange, 1)
    later = exchange.combine(torch.ones(1, 2), second.wait())
    earlier = exchange.combine(torch.zeros(1, 2), first.wait())
    assert (earlier.wait().sum(), later.wait().sum()) == (0, 2)
    names = ["dispatch 0", "dispatch 1", "combine 1", "combine 0"]
    assert inner.log == [f"{what} {name}" for name in names for what in ("begin", "end")]


def test_what_is_under_way_while_the_model_computes_is_not_waited_for(behind: Behind) -> None:
    inner = ScriptedExchange(takes_s=0.1)
    exchange = behind(inner)
    pending = dispatch(exchange, 0)
    time.sleep(0.3)  # the model computes
    pending.wait()
    assert inner.counters.wait_s < 0.05
    assert 0.1 <= inner.counters.communication_s < 0.3
    dispatch(exchange, 1).wait()
    assert inner.counters.wait_s >= 0.09, "nothing was computed meanwhile"


def test_the_next_operation_begins_while_rows_of_the_one_before_are_on_their_way() -> None:
    log: list[str] = []
    inner = WakeableExchange(log)
    exchange = CommunicationThread(inner, device=CPU, patience_s=5.0)
    first = dispatch(exchange, 0)
    inner.rows_posted.wait(5)
    second = dispatch(exchange, 1)
    assert inner.begun_ahead.wait(5), "the thread was not woken"
    third = dispatch(exchange, 1)
    inner.arrived.set()
    assert [pending.wait().handle for pending in (first, second, third)] == [0, 1, 1]
    exchange.close()
    # one ahead, no more: what the third sends comes behind what the second sends
    assert log == ["begin 0", "rows 0", "begin 1", "end 0", "rows 1", "end 1", "begin 1", "rows 1", "end 1"]
    assert inner.meanwhile is None


def test_what_began_ahead_fails_with_what_it_waited_behind() -> None:
    inner = WakeableExchange([], lost=True)
    exchange = CommunicationThread(inner, device=CPU, patience_s=5.0)
    first = dispatch(exchange, 0)
    inner.rows_posted.wait(5)
    second = dispatch(exchange, 1)
    assert inner.begun_ahead.wait(5)
    inner.arrived.set()
    for pending in (first, second):
        with pytest.raises(PeerLost, match="rows 0: rank 1 died"):
            pending.wait()
    exchange.close()


@pytest.mark.parametrize("spins", [False, True])
def test_the_thread_comes_before_computing_ones_unless_it_would_spin(behind: Behind, *, spins: bool) -> None:
    exchange = behind(ScriptedExchange(spins=spins))
    dispatch(exchange, 0).wait()
    assert exchange._thread is not None
    policy = os.sched_getscheduler(exchange._thread.native_id or 0) & ~os.SCHED_RESET_ON_FORK
    assert policy == (os.SCHED_RR if may_come_first() and not spins else os.SCHED_OTHER)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "the computing thread stays as it is"


def may_come_first() -> bool:
    """Try it in a thread, as the exchange does."""
    found: list[bool] = []

    def attempt() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except PermissionError:
            found.append(False)
        else:
            found.append(True)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return found[0]


def test_a_user_who_may_not_come_first_is_served_all_the_same(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not this user")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert dispatch(behind(ScriptedExchange()), 1).wait().handle == 1


def test_waiting_twice_gives_the_same(behind: Behind) -> None:
    pending = dispatch(behind(ScriptedExchange(takes_s=0.01)), 1)
    assert pending.wait() is pending.wait()


def test_after_an_error_all_later_operations_raise_it(behind: Behind) -> None:
    inner = ScriptedExchange(takes_s=0.01, fails_at=2)
    exchange = behind(inner)
    pendings = [dispatch(exchange, layer) for layer in range(4)]
    assert pendings[0].wait().handle == 0
    for pending in (*pendings[1:], dispatch(exchange, 5)):
        with pytest.raises(PeerLost, match="dispatch 1: rank 1 died"):
            pending.wait()
    assert inner.log[-1] == "begin dispatch 1", "nothing began after what failed"
    with pytest.raises(PeerLost, match="dispatch 1: rank 1 died"):
        exchange.combine(torch.ones(1, 2), pendings[0].wait()).wait()


def test_close_does_not_wait_for_what_hangs_and_fails_what_is_queued(behind: Behind) -> None:
    inner = ScriptedExchange(blocks=True)
    exchange = behind(inner)
    pendings = [dispatch(exchange, layer) for layer in range(3)]
    while not inner.log:
        time.sleep(0.001)
    began = time.monotonic()
    exchange.close()
    assert time.monotonic() - began < 2
    assert inner.closed
    for pending in (*pendings[1:], dispatch(exchange, 3)):
        with pytest.raises(PeerLost, match="rank 0 of 2 has left the group"):
            pending.wait()
    assert len(inner.log) <= 2, "nothing began after the end"
    exchange.close()


def test_a_stream_does_not_wait_without_end_for_a_thread_that_tells_nothing(behind: Behind) -> None:
    inner = ScriptedExchange(blocks=True)
    exchange = behind(inner)
    exchange.longest_wait_s = 0.1
    under_way = dispatch(exchange, 1)
    with pytest.raises(PeerLost, match=r"layer 1, dispatch: rank 0 of 2 heard nothing .* for 0.1 s; it had begun"):
        under_way.wait()
    inner.released.set()
    exchange.longest_wait_s = 20.0
    assert under_way.wait().handle == 1, "what came late is not lost"


def test_a_thread_that_was_never_needed_is_never_started() -> None:
    before = threading.active_count()
    inner = ScriptedExchange()
    exchange = CommunicationThread(inner, device=CPU)  # type: ignore[arg-type]
    assert threading.active_count() == before
    exchange.close()
    assert inner.closed


def test_a_real_exchange_gives_the_same_behind_a_thread() -> None:
    direct, threaded = LocalExchange(PLACEMENT), CommunicationThread(LocalExchange(PLACEMENT), device=CPU)
    generator = torch.Generator().manual_seed(1)
    x_TD = torch.randn(20, 8, generator=generator)
    topk_TK = torch.rand(20, 4, generator=generator).topk(2).indices
    weights_TK = torch.rand(20, 2, generator=generator)
    results = []
    for exchange in (direct, threaded):
        exchange.begin_step(3, more=True, staged=2, outlook=[5])
        received = exchange.dispatch(x_TD, topk_TK, weights_TK, PLACEMENT, layer=1).wait()
        results.append(exchange.combine(received.x_RD * 2, received).wait())
        assert (exchange.agreement().step, exchange.agreement().staged) == (3, 2)
        assert exchange.agreement().outlook_GO[0, 0] == 5
    assert torch.equal(*results)
    assert (direct.counters.load_LE == threaded.counters.load_LE).all()
    threaded.close()


def test_a_trace_tells_whose_operation_of_which_layer_was_under_way_when(behind: Behind) -> None:
    exchange = behind(ScriptedExchange(takes_s=0.01))
    exchange.trace = trace = StageTrace([], moe_layers=[4, 7])
    for stream in range(2):
        trace.enter(stream)
        received = dispatch(exchange, 1).wait()
        exchange.combine(torch.ones(1, 2), received).wait()
    assert [(s.kind, s.stream, s.layer, s.name) for s in trace.spans] == [
        ("communicate", stream, 7, name) for stream in range(2) for name in ("dispatch", "combine")
    ]
    assert all(span.end_s - span.begin_s >= 0.01 for span in trace.spans)
