"""What a rank announces about its steps, and that it runs them as its group has decided."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fourlane.engine.exchange.contract import OUTLOOK, Agreement
from fourlane.engine.exchange.counters import ExchangeCounters
from fourlane.engine.overlap import Overlapping
from fourlane.engine.rank_config import RankConfig, RankOverlap
from fourlane.engine.scheduler import Step
from fourlane.policy.overlap import Outlook

EMPTY = Step([], more=False)


def spin(seconds: float) -> None:
    busy_until = time.thread_time() + seconds
    while time.thread_time() < busy_until:
        pass


def model_on(device: str) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device), config=SimpleNamespace(experts_to_attention=1.0))


@dataclass
class TimedRunner:
    """Runs nothing, but takes its time: computing; in the exchange, carrying bytes itself; waiting there."""

    computing_s: float = 0.0
    carrying_s: float = 0.0
    waiting_s: float = 0.0
    communicating_s: float = 0.0
    orders: list[str | None] = field(default_factory=list)
    model: Any = field(default_factory=lambda: model_on("cpu"))

    def run(self, _step: Step, exchange: Any, _placement: object, *, order: Any, on_kv: object) -> torch.Tensor:
        assert on_kv is None
        self.orders.append(order and order.name)
        spin(self.computing_s)
        began = time.perf_counter()
        spin(self.carrying_s)
        time.sleep(self.waiting_s)
        exchange.counters.wait_s += time.perf_counter() - began
        exchange.counters.communication_s += self.communicating_s
        return torch.empty(0, 1)


class Idle:
    """A scheduler with nothing in it."""

    def expected_after(self, _step: Step) -> tuple[int, int]:
        return 30, 4


def overlapping(runner: TimedRunner, *, ranks: int = 2, **wanted: Any) -> Overlapping:
    config = RankConfig(
        role="decode", rank=0, ranks=ranks, group_size=ranks, model_path="", control_endpoint="", secret_file="",
        run_dir="", overlap=RankOverlap(**wanted),
    )  # fmt: skip
    return Overlapping(config, runner, layers=2)


@pytest.fixture
def exchange() -> Any:
    return SimpleNamespace(counters=ExchangeCounters(layers=2, experts=4))


def agreed(*outlooks: Outlook) -> Agreement:
    return Agreement(step=0, more=True, outlook_GO=torch.tensor(outlooks, dtype=torch.int64).numpy())


def test_an_outlook_fits_what_an_exchange_carries() -> None:
    assert len(Outlook()) == OUTLOOK


def test_a_step_is_announced_with_what_it_took_and_what_part_of_it_the_rank_was_idle(exchange: Any) -> None:
    overlap = overlapping(TimedRunner(computing_s=0.01, waiting_s=0.02))
    overlap.run(EMPTY, exchange, None, on_kv=None)
    outlook = overlap.outlook(Idle(), EMPTY)
    assert (outlook.prefill_next, outlook.decode_next, outlook.mode) == (30, 4, 1)
    assert outlook.wall_us >= 30_000
    assert 20_000 <= outlook.idle_us <= outlook.exchange_us <= outlook.wall_us - 9_000


def test_waiting_with_the_processor_is_nothing_to_hide(exchange: Any) -> None:
    overlap = overlapping(TimedRunner(computing_s=0.002, carrying_s=0.03, waiting_s=0.001))
    overlap.run(EMPTY, exchange, None, on_kv=None)
    outlook = overlap.outlook(Idle(), EMPTY)
    assert outlook.exchange_us >= 31_000
    assert outlook.idle_us <= outlook.wall_us - 32_000


@pytest.mark.parametrize(("device", "decode"), [("cpu", "prefill"), ("cuda", "decode")])
def test_steps_run_in_the_order_of_phase_and_device_when_two_streams_are_always_wanted(
    exchange: Any, device: str, decode: str
) -> None:
    runner = TimedRunner(communicating_s=0.5, waiting_s=0.01, model=model_on(device))
    overlap = overlapping(runner, mode="always")
    for outlook in (Outlook(decode_next=8), Outlook(prefill_next=8)):
        overlap.run(EMPTY, exchange, None, on_kv=None)
        overlap.end_step(agreed(outlook, outlook))
    overlap.run(EMPTY, exchange, None, on_kv=None)
    assert runner.orders == ["prefill", decode, "prefill"]
    assert overlap.stats.steps == {"single": 0, "dual": 3}
    assert overlap.stats.communication_s == pytest.approx(1.5)
    assert 0 < overlap.stats.hidden_s < 1.48


def test_a_group_formed_anew_announces_no_step_of_the_old_one(exchange: Any) -> None:
    overlap = overlapping(TimedRunner(waiting_s=0.001))
    overlap.run(EMPTY, exchange, None, on_kv=None)
    overlap.reset()
    assert overlap.outlook(Idle(), EMPTY) == Outlook(prefill_next=30, decode_next=4)
    assert overlap.decision.mode == "single"


def test_a_rank_alone_runs_one_stream_even_if_two_are_always_wanted(exchange: Any) -> None:
    runner = TimedRunner()
    overlap = overlapping(runner, ranks=1, mode="always")
    for _ in range(2):
        overlap.run(EMPTY, exchange, None, on_kv=None)
        overlap.end_step(agreed(Outlook(decode_next=100)))
    assert runner.orders == [None, None]
    assert overlap.stats.why == "one rank"
