"""Forward passes are driven in order, in turn, and closed when something fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from fourlane.engine.exchange.contract import MIDWAY, TURN
from fourlane.engine.executor import run_dual_stream, run_single_stream
from fourlane.engine.stage_trace import StageTrace
from fourlane.errors import PeerLost
from fourlane.policy.overlap_order import DECODE_ORDER, EXPERTS_ORDER, ORDERS, PREFILL_ORDER

if TYPE_CHECKING:
    from collections.abc import Generator

    from fourlane.engine.exchange.contract import Pending
    from fourlane.policy.overlap_order import OverlapOrder


@dataclass
class Posted:
    """Something under way; waiting for it is noted."""

    name: str
    log: list[str]
    lost: bool = False

    def wait(self) -> str:
        if self.lost:
            raise PeerLost(f"{self.name}: a peer died")
        self.log.append(f"wait {self.name}")
        return self.name


def forward(
    name: str, log: list[str], *, layers: int = 2, lost: str = "", cut: bool = False
) -> Generator[Pending[str], str, str]:
    """A pass whose layers compute attention in two parts (a, b) and experts (e), which may be cut in two (e, f)."""
    try:
        for layer in range(layers):
            log.append(f"{name}a{layer}")
            assert (yield TURN) is None
            log.append(f"{name}b{layer}")
            for kind, computes in (("dispatch", f"{name}e{layer}"), ("combine", "")):
                operation = f"{kind} {name}{layer}"
                assert (yield Posted(operation, log, lost=operation == lost)) == operation
                log.extend([computes] if computes else [])
                if cut and computes:
                    assert (yield MIDWAY) is None
                    log.append(f"{name}f{layer}")
        return f"logits of {name}"
    finally:
        log.append(f"{name} closed")


def told(log: list[str]) -> str:
    return " ".join(line for line in log if not line.startswith("wait") and "closed" not in line)


def test_a_single_stream_waits_for_each_thing_in_turn() -> None:
    log: list[str] = []
    assert run_single_stream(forward("A", log, layers=1)) == "logits of A"
    assert log == ["Aa0", "Ab0", "wait dispatch A0", "Ae0", "wait combine A0", "A closed"]


def test_prefill_passes_over_mere_turns() -> None:
    log: list[str] = []
    assert run_dual_stream(forward("A", log), forward("B", log), PREFILL_ORDER) == ("logits of A", "logits of B")
    assert told(log) == "Aa0 Ab0 Ba0 Bb0 Ae0 Be0 Aa1 Ab1 Ba1 Bb1 Ae1 Be1"


def test_decode_has_the_published_five_stages() -> None:
    log: list[str] = []
    run_dual_stream(forward("A", log), forward("B", log), DECODE_ORDER)
    assert told(log) == "Aa0 Ab0 Ba0 Ae0 Bb0 Aa1 Be0 Ab1 Ba1 Ae1 Bb1 Be1"


def test_experts_cut_in_two_make_room_for_the_other_streams_attention() -> None:
    log: list[str] = []
    run_dual_stream(forward("A", log, cut=True), forward("B", log, cut=True), EXPERTS_ORDER)
    assert told(log) == "Aa0 Ab0 Ba0 Bb0 Ae0 Af0 Be0 Aa1 Ab1 Bf0 Ae1 Ba1 Bb1 Af1 Be1 Bf1"


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_nothing_is_waited_for_before_the_other_stream_had_its_turn(order: OverlapOrder) -> None:
    log: list[str] = []
    cut = order.cut_experts
    run_dual_stream(forward("A", log, cut=cut), forward("B", log, cut=cut), order)
    for operation in ("dispatch A0", "combine A0", "dispatch B0", "combine B0", "dispatch A1"):
        before = log[: log.index(f"wait {operation}")]
        mine = max(index for index, line in enumerate(before) if line[:1] == operation[-2])
        others = {"A": "B", "B": "A"}[operation[-2]]
        assert any(line[:1] == others for line in before[mine + 1 :]), operation


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("lost", ["dispatch A0", "combine B0", "dispatch B1", "combine A1"])
def test_a_stage_that_fails_closes_both_passes(order: OverlapOrder, lost: str) -> None:
    log: list[str] = []
    with pytest.raises(PeerLost, match=f"{lost}: a peer died"):
        run_dual_stream(forward("A", log, lost=lost), forward("B", log, lost=lost), order)
    assert {"A closed", "B closed"} <= set(log)


def test_a_pass_that_raises_itself_closes_the_other() -> None:
    log: list[str] = []

    def faulty() -> Generator[Pending[str], str, str]:
        yield TURN
        raise ValueError("no such token")

    with pytest.raises(ValueError, match="no such token"):
        run_dual_stream(forward("A", log), faulty(), DECODE_ORDER)
    assert log[-1] == "A closed"


def test_a_pass_may_end_before_the_other() -> None:
    log: list[str] = []
    done = run_dual_stream(forward("A", log, layers=1), forward("B", log, layers=3), DECODE_ORDER)
    assert done == ("logits of A", "logits of B")
    assert told(log).endswith("Bb1 Be1 Ba2 Bb2 Be2")


@dataclass(frozen=True)
class Stage:
    layer: int
    computes: str


def test_a_trace_tells_what_each_stream_computed_and_waited_for() -> None:
    stages = [Stage(layer, name) for layer in range(2) for name in ("attention 0", "attention 1", "experts")]
    trace = StageTrace([*stages, Stage(2, "head")], moe_layers=[0, 1])
    log: list[str] = []
    for _ in range(2):
        trace.begin_step()
        run_dual_stream(forward("A", log), forward("B", log), PREFILL_ORDER, trace=trace)
    for stream in range(2):
        mine = [span for span in trace.spans if span.stream == stream]
        computed = [(span.layer, span.name) for span in mine if span.kind == "compute"]
        assert computed == [(stage.layer, stage.computes) for stage in [*stages, Stage(2, "head")]] * 2
        assert sum(span.kind == "wait" for span in mine) == 2 * len(stages)
        assert all(span.begin_s <= span.end_s for span in mine)
