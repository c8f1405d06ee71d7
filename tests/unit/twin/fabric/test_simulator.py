"""Running simulations: progress, Ctrl-C, limits, what hangs; several over processes, in threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fabric_cases import ring_of_switches, star

from fourlane import _native
from fourlane.errors import LimitReached, SimulationStuck, SpecError, WorkerDied
from fourlane.twin.fabric import simulator as simulator_module
from fourlane.twin.fabric.parallel import run_many
from fourlane.twin.fabric.simulator import Progress, Simulator

if TYPE_CHECKING:
    from fourlane.twin.fabric.compiled import CompiledScenario
    from fourlane.twin.fabric.parallel import ManyProgress


@pytest.fixture(params=["native", "reference"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def incast() -> CompiledScenario:
    """Three hosts send 400 packets each to host 0."""
    return star(4, [(1, 0, 400 * 4096), (2, 0, 400 * 4096), (3, 0, 400 * 4096)], class_names=("expert",))


def deadlock() -> CompiledScenario:
    """Three flows each go over two switches of a ring whose buffers they fill: all pause each other."""
    flows = [(0, 2, 1 << 20), (1, 0, 1 << 20), (2, 1, 1 << 20)]
    lossless: dict[str, Any] = {"queue_lossless": [1], "queue_alpha_q16": [1 << 14], "port_headroom": [60_000] * 12}
    return ring_of_switches(flows, **lossless, node_shared=[0, 0, 0, 40_000, 40_000, 40_000], port_prop=[100_000] * 12)


def test_a_run_ends_with_every_flow_finished(engine: str, incast: CompiledScenario) -> None:
    results = Simulator(incast, engine=engine).run()
    assert results.complete
    assert results.flows_finished == 3
    # 1,200 packets of 4,160 bytes at 20 ps a byte over one link, and a first one that had to come there.
    assert results.makespan_us == pytest.approx(1_201 * 0.0832, rel=0.001)
    assert results.goodput("expert") == pytest.approx(400e9 * 4096 / 4160, rel=0.01)


def test_progress_is_told_in_rising_shares(engine: str, incast: CompiledScenario) -> None:
    seen: list[Progress] = []
    Simulator(incast, engine=engine).run(seen.append)
    assert len(seen) > 1
    shares = [each.share for each in seen]
    assert shares == sorted(shares)
    assert seen[-1].share == 1.0
    assert seen[-1].flows_done == seen[-1].flows == 3
    assert all(each.eta_s is None or each.eta_s >= 0 for each in seen)
    assert seen[-1].eta_s == 0


def test_an_interrupted_run_returns_what_is_known_and_can_go_on(
    engine: str, incast: CompiledScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulator_module, "_CHUNK_S", 0.0)

    def interrupt(now: Progress) -> None:
        if now.share > 0.2:
            raise KeyboardInterrupt

    simulator = Simulator(incast, engine=engine)
    partial = simulator.run(interrupt)
    assert partial.status == "interrupted"
    assert not partial.complete
    assert 0.2 < partial.raw["delivered_payload"] / incast_bytes(incast) < 1
    assert "unfinished: 3 flows" in str(partial.summary())
    assert simulator.run().makespan_us == Simulator(incast, engine=engine).run().makespan_us


def incast_bytes(scenario: CompiledScenario) -> int:
    return int(scenario.flow_size.sum())


def test_a_budget_of_events_ends_a_run_with_an_error_that_holds_what_is_known(engine: str) -> None:
    short = star(4, [(1, 0, 400 * 4096)], max_events=500)
    with pytest.raises(LimitReached, match=r"max_events: the limit of 500 events .*\n.*unfinished: 1 flows") as caught:
        Simulator(short, engine=engine).run()
    assert caught.value.results.events == 500
    assert "raise max_events" in str(caught.value)
    assert Simulator(short, engine=engine).run(partial=True).status == "budget"


def test_a_limit_of_time_ends_a_run(engine: str) -> None:
    with pytest.raises(LimitReached, match=r"max_time: the limit of 1\.0000 us was reached after 1\.0000 us"):
        Simulator(star(2, [(1, 0, 1 << 20)], max_time=1_000_000), engine=engine).run()


def test_a_deadlock_of_pauses_is_named(engine: str) -> None:
    with pytest.raises(SimulationStuck, match="nothing can happen any more") as caught:
        Simulator(deadlock(), engine=engine).run()
    text = str(caught.value)
    assert "unfinished: 3 flows, of which 3 had begun" in text
    assert "PFC deadlock" in text
    assert not caught.value.results.complete


def test_an_unknown_engine_is_refused(incast: CompiledScenario) -> None:
    with pytest.raises(SpecError, match='engine: expected one of native, reference, got "fast"'):
        Simulator(incast, engine="fast")


def test_results_of_many_come_in_order_and_equal_those_of_one() -> None:
    scenarios = [star(3, [(1, 0, size), (2, 0, size)]) for size in (400_000, 4096, 40_000)]
    alone = [Simulator(each).run() for each in scenarios]
    seen: list[ManyProgress] = []
    together = run_many(scenarios, processes=2, progress=seen.append)
    assert [each.makespan_us for each in together] == [each.makespan_us for each in alone]
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(one.raw[name], other.raw[name]) for name in one.raw)
    assert [each.done for each in seen][-1] == 3
    assert seen[-1].share == 1.0


def test_of_many_one_that_gets_stuck_is_named_and_the_others_are_kept() -> None:
    with pytest.raises(SimulationStuck, match="scenario 1: the simulation is stuck") as caught:
        run_many([star(2, [(1, 0, 4096)]), deadlock(), star(2, [(1, 0, 4096)])], processes=2)
    first, second, third = caught.value.results
    assert first.complete
    assert second.status == "stuck"
    assert third.complete


class Fatal:
    """A scenario whose making kills the process."""

    def __init__(self, how: str) -> None:
        self.how = how

    def compile(self) -> CompiledScenario:
        os.kill(os.getpid(), signal.SIGKILL) if self.how == "kill" else os._exit(7)
        raise AssertionError


def test_a_worker_that_dies_is_reported_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers unpickle a scenario by its module: it must be one they can import.
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(Fatal, "__module__", "test_simulator")
    monkeypatch.setitem(sys.modules, "test_simulator", sys.modules[__name__])
    good = star(2, [(1, 0, 4096)])
    with pytest.raises(WorkerDied, match=r"scenario 0: .* killed by SIGKILL \(out of memory\?") as caught:
        run_many([Fatal("kill"), good, Fatal("exit"), good], processes=2)
    assert [each is not None for each in caught.value.results] == [False, True, False, True]


def test_an_interrupt_ends_those_under_way_and_keeps_those_done() -> None:
    long = star(4, [(1, 0, 1 << 36)])

    def interrupt(now: ManyProgress) -> None:
        if now.done == 1 and any(each.events > 0 for each in now.running.values()):
            raise KeyboardInterrupt

    done, running, waiting = run_many([star(2, [(1, 0, 4096)]), long, long], processes=2, progress=interrupt)
    assert done.complete
    assert running.status == "interrupted"
    assert running.events > 0
    assert waiting.status == "interrupted"


def test_no_processes_are_refused(incast: CompiledScenario) -> None:
    with pytest.raises(SpecError, match="processes: expected at least 1, got 0"):
        run_many([incast], processes=0)
    assert run_many([]) == []


def test_two_simulations_run_at_once_in_threads(engine: str, incast: CompiledScenario) -> None:
    scenarios = [incast, star(3, [(1, 0, 1 << 20), (2, 0, 1 << 19)])]
    alone = [Simulator(each, engine=engine).run() for each in scenarios]
    found: dict[int, Any] = {}
    both_run = threading.Barrier(2, timeout=20)

    def run(place: int) -> None:
        first = [both_run]
        found[place] = Simulator(scenarios[place], engine=engine).run(lambda _: first and first.pop().wait())

    threads = [threading.Thread(target=run, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for place, one in enumerate(alone):
        assert all(np.array_equal(one.raw[name], found[place].raw[name]) for name in one.raw)


INTERRUPTED = """
import sys; sys.path[:0] = {path!r}
from fabric_cases import star
from fourlane.twin.fabric.simulator import Simulator
simulator = Simulator(star(3, [(1, 0, 1 << 33), (2, 0, 1 << 33)]), engine={engine!r})
results = simulator.run(lambda now: print("on", flush=True))
print(results.status, results.events > 0, results.flows_finished)
"""


def test_ctrl_c_ends_a_run_with_what_is_known(engine: str) -> None:
    code = INTERRUPTED.format(path=[str(Path(__file__).parents[3] / "support")], engine=engine)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        last = process.communicate(timeout=20)[0].splitlines()[-1]
    assert last == "interrupted True 0"


def test_the_native_core_runs_without_the_interpreters_lock() -> None:
    simulation = _native.FabricSimulation(star(9, [(n, 0, 1 << 28) for n in range(1, 9)]).flat())
    thread = threading.Thread(target=lambda: simulation.advance(1_000_000))
    turns = 0
    thread.start()
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 20  # one or two, had advance() held the lock all along
