"""Run a compiled scenario: on the native core, or on the plain-Python reference that it equals bit for bit.

    results = Simulator(compiled).run(progress=print)

The native core works in chunks of about a tenth of a second without the interpreter's lock, so that threads run at the
same time, progress is told, and Ctrl-C ends a run with what is known so far. Not for several scenarios over
processes (`fourlane.twin.fabric.parallel`).
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fourlane.errors import LimitReached, SimulationStuck, SpecError
from fourlane.twin.fabric.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.twin.fabric.compiled import CompiledScenario

__all__ = ["ENGINES", "INTERRUPTED", "Engine", "Progress", "Simulator"]

ENGINES = ("native", "reference")
INTERRUPTED = "interrupted"
_CHUNK_S = 0.1
_FIRST_CHUNK = 2_000


class Engine(Protocol):
    """A simulation under way."""

    def advance(self, max_events: int, /) -> bool:
        """Handle up to so many events; True when it has ended."""
        ...

    def progress(self) -> tuple[int, ...]:
        """Return the simulated time in ps, flows done, events, payload bytes delivered."""
        ...

    def result(self) -> dict[str, Any]:
        """Return what is known so far."""
        ...


class Progress(NamedTuple):
    """How far a simulation is. `share` is of the payload delivered; `eta_s` is None while nothing is known of it."""

    flows_done: int
    flows: int
    simulated_us: float
    events: int
    events_per_s: float
    elapsed_s: float
    share: float
    eta_s: float | None


class Simulator:
    """A simulation of one scenario.

    Args:
        scenario: what to simulate; checked when it was compiled.
        engine: "native", or "reference" for the slow one.

    Raises:
        SpecError: there is no such engine.
    """

    def __init__(self, scenario: CompiledScenario, *, engine: str = "native") -> None:
        if engine not in ENGINES:
            raise SpecError(f'engine: expected one of {", ".join(ENGINES)}, got "{engine}"')
        self.scenario = scenario
        self._engine = _made(scenario, engine)
        self._payload = max(1, _payload_of(scenario))

    def run(self, progress: Callable[[Progress], object] | None = None, *, partial: bool = False) -> Results:
        """Simulate to the end.

        Ctrl-C (and a `progress` that raises KeyboardInterrupt) ends the run: the results then say "interrupted" and
        hold what is known; running again goes on from there.

        Args:
            progress: called some ten times a second.
            partial: return what is known where the run did not end by itself, instead of raising.

        Raises:
            SimulationStuck: nothing can happen any more, and flows are unfinished.
            LimitReached: the scenario's `max_events` or `max_time` came first.
        """
        try:
            self._advance(progress)
        except KeyboardInterrupt:
            return self._results(INTERRUPTED)
        results = self._results()
        if results.complete or partial:
            return results
        raise _error(self.scenario, results)

    def results(self) -> Results:
        """Return what is known so far."""
        return self._results(INTERRUPTED)

    def _advance(self, progress: Callable[[Progress], object] | None) -> None:
        began = then = time.perf_counter()
        before = self._engine.progress()[2]
        chunk, ended = _FIRST_CHUNK, False
        while not ended:
            ended = self._engine.advance(chunk)
            now = time.perf_counter()
            chunk = _next_chunk(chunk, now - then)
            then = now
            if progress is not None:
                progress(self._progress(now - began, before))

    def _progress(self, elapsed_s: float, events_before: int) -> Progress:
        simulated, done, events, payload = self._engine.progress()
        share = payload / self._payload
        return Progress(
            flows_done=done,
            flows=self.scenario.flows,
            simulated_us=simulated / 1e6,
            events=events,
            events_per_s=(events - events_before) / max(elapsed_s, 1e-9),
            elapsed_s=elapsed_s,
            share=share,
            eta_s=elapsed_s * (1 - share) / share if share > 0 else None,
        )

    def _results(self, unless_ended: str = "") -> Results:
        raw = self._engine.result()
        if raw["status"] == "running":
            raw = {**raw, "status": unless_ended}
        return Results(self.scenario, raw)


class _Reference:
    """The reference under way."""

    def __init__(self, scenario: CompiledScenario) -> None:
        from fourlane.twin.fabric.reference.simulation import Simulation

        self._simulation = Simulation(scenario)
        self._status = "running"

    def advance(self, max_events: int) -> bool:
        """Handle up to so many events; True when it has ended."""
        if self._status == "running":
            self._status = self._simulation.run(max_events)
        return self._status != "running"

    def progress(self) -> tuple[int, ...]:
        """Return the simulated time in ps, flows done, events, payload bytes delivered."""
        now = self._simulation
        return now.now, now.flows_done, now.events, now.delivered_payload

    def result(self) -> dict[str, Any]:
        """Return a copy of what is known so far."""
        return copy.deepcopy(self._simulation.result(self._status))


def _made(scenario: CompiledScenario, engine: str) -> Engine:
    if engine == "reference":
        return _Reference(scenario)
    from fourlane import _native

    return _native.FabricSimulation(scenario.flat())


def _payload_of(scenario: CompiledScenario) -> int:
    sizes = scenario.flow_size
    return int(sizes.sum()) if len(sizes) == scenario.flows else int(sizes[0]) * scenario.flows


def _next_chunk(chunk: int, taken_s: float) -> int:
    """Return how many events take about a tenth of a second, at most four times as many as before."""
    return max(1_000, int(chunk * min(4.0, _CHUNK_S / max(taken_s, 1e-6))))


def _error(scenario: CompiledScenario, results: Results) -> SimulationStuck | LimitReached:
    """Return the error that says why a run did not end, and what hangs."""
    from fourlane.twin.fabric.hang import hangs

    what = "\n".join(hangs(results))
    at = f"after {results.time_us:,.4f} us and {results.events:,} events"
    if results.status == "stuck":
        message = f"the simulation is stuck {at}: nothing can happen any more\n{what}"
        return SimulationStuck(f"{message}\nallow losses to be repaired (rto), or mend what is paused", results)
    limit, allowed = (
        ("max_events", f"{scenario.max_events:,} events")
        if results.status == "budget"
        else ("max_time", f"{scenario.max_time / 1e6:,.4f} us")
    )
    return LimitReached(f"{limit}: the limit of {allowed} was reached {at}\n{what}\nraise {limit} to go on", results)
