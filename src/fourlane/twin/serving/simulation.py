"""The simulated service put together: a request's way through gateway, prefill unit, KV transfer and decode unit.

The way is that of docs/architecture.md, "Life of a request": pages are reserved on the decode rank before a prompt is
computed, KV travels layer by layer while it is, the prefill rank answers the first token and keeps its pages until all
KV has arrived. What is lost is tried again as `gateway.router` does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from fourlane.policy.request_routing import retry_delay
from fourlane.spec.deployment import Gateway as GatewaySpec
from fourlane.twin.serving.clock import Clock
from fourlane.twin.serving.decode_unit import DecodeUnit
from fourlane.twin.serving.faults import plan_faults
from fourlane.twin.serving.gateway import Gateway
from fourlane.twin.serving.host import Host, Surroundings
from fourlane.twin.serving.kv_links import KvLinks
from fourlane.twin.serving.prefill_unit import PrefillUnit
from fourlane.twin.serving.records import Records
from fourlane.twin.serving.requests import request_load
from fourlane.twin.serving.results import ServingResults
from fourlane.twin.serving.sequence import Sequence
from fourlane.twin.serving.unit_times import UnitTimes

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Sequences

    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.serving.fast_steps import FastSteps
    from fourlane.twin.serving.prefill_unit import Part
    from fourlane.twin.times import Phase

__all__ = ["Service", "ServingProgress", "simulate"]

RETRY_S = 0.1
"""Wait before the first retry, as the gateway's `Limits` have it."""
_TELL_S = 0.2
_TELL_EVENTS = 512


@dataclass(frozen=True, slots=True)
class ServingProgress:
    """How far a simulation is: requests that have ended, of how many; seconds since it began, and still to go."""

    done: int
    total: int
    elapsed_s: float
    eta_s: float | None

    @property
    def share(self) -> float:
        """Return the share of requests that have ended."""
        return self.done / self.total


def simulate(assembly: Assembly, progress: Callable[[ServingProgress], object] | None = None) -> ServingResults:
    """Run a service under its load, request by request.

    Args:
        assembly: what `fourlane.twin.assembly.assemble` made of a twin.
        progress: called some five times a second.

    Raises:
        SpecError: its workload is wrong.
    """
    return Service(assembly).run(progress)


class Service:
    """A service at some moment of its simulated time."""

    def __init__(self, assembly: Assembly) -> None:
        twin = assembly.twin
        self.assembly = assembly
        self.load = request_load(twin.workload, block_size=twin.block_size, seed=twin.seed)
        self.clock, self.records, self.kv = Clock(), Records(), KvLinks(assembly)
        self.around = Surroundings(self.clock, Host(assembly.cores, assembly.crowding), self.records)
        self._times = {phase: UnitTimes(model) for phase, model in assembly.phases().items()}
        self.slower: dict[Phase, list[float]] = {
            phase: [1.0] * model.pool.units for phase, model in assembly.phases().items()
        }
        """How many times as long each unit's exchange takes: links and switches that are down."""
        self.gateway = Gateway(assembly, self.load.names, send=self._send, catch_up=self._catch_up)
        self.prefill = [self._prefill_unit(index) for index in range(assembly.prefill.pool.units)]
        self.decode = [self._decode_unit(index) for index in range(assembly.decode.pool.units)]
        self.around.host.watch([*self.prefill, *self.decode])
        self.sequences: list[Sequence] = []
        self.kv_cut: list[tuple[Phase, int]] = []
        """Units, by phase and number, whose KV path is cut; as often as it is."""
        self._outages: Counter[tuple[Phase, int]] = Counter()
        self._gateway_spec = GatewaySpec()
        self._next = 0
        self._over = 0
        self._pumping = False
        self._host_until = 0.0
        """When the gateway has seen to all requests that have come."""

    def _prefill_unit(self, index: int) -> PrefillUnit:
        return PrefillUnit(
            index,
            self.assembly.prefill,
            partial(self._unit_times, "prefill"),
            names=self.load.names,
            around=self.around,
            computed=self._computed,
            overheads=self.assembly.overheads,
        )

    def _decode_unit(self, index: int) -> DecodeUnit:
        return DecodeUnit(
            index,
            self.assembly,
            partial(self._unit_times, "decode"),
            around=self.around,
            gateway=self.gateway,
            listener=self,
        )

    def _unit_times(self, phase: Phase, unit: int) -> FastSteps:
        """Return what a unit's steps take at this moment."""
        rate = self.kv.rate(self.clock.now) / self.assembly.phases()[phase].ranks if self.kv.shared else 0.0
        background = self.assembly.kv.background(rate) if rate else 0.0
        return self._times[phase].at(background, self.slower[phase][unit])

    def run(self, progress: Callable[[ServingProgress], object] | None = None) -> ServingResults:
        """Go through all requests."""
        began = told = monotonic()
        plan_faults(self)
        total = len(self.load.requests)
        for _ in range(self.load.concurrency or 1):
            self._arrive_next()
        events = 0
        while self.clock.step():
            events += 1
            if progress is not None and events % _TELL_EVENTS == 0 and (now := monotonic()) - told >= _TELL_S:
                told, elapsed = now, now - began
                eta = elapsed * (total - self._over) / self._over if self._over else None
                progress(ServingProgress(self._over, total, elapsed, eta))
        if progress is not None:
            progress(ServingProgress(self._over, total, monotonic() - began, 0.0))
        return ServingResults.of(self, seconds=monotonic() - began)

    # requests come

    def _arrive_next(self) -> None:
        """Send the next request: at its time, or at once in a closed loop."""
        if self._next >= len(self.load.requests):
            return
        request = self.load.requests[self._next]
        limit = self.gateway.token_limit
        output = max(1, min(request.output_tokens, limit + self.gateway.block_size - request.prompt_tokens))
        sequence = Sequence(self._next, request, output, runs=request.runs)
        self._next += 1
        self.sequences.append(sequence)
        sequence.sent_s = self.clock.now if request.due_s is None else request.due_s
        if request.prompt_tokens >= limit:
            self.clock.at(sequence.sent_s, self._refuse, sequence)
            return
        if self.assembly.overheads.request_host_s:
            self.clock.at(sequence.sent_s, self._see_to, sequence)
        else:
            self.clock.at(sequence.sent_s + self.assembly.overheads.arrive_s, self._arrive, sequence)

    def _see_to(self, sequence: Sequence) -> None:
        """Let gateway and client be busy with a request that is sent now, on a core of the host."""
        overheads, begin = self.assembly.overheads, self._turn_of_gateway()
        if self.assembly.cores is not None:
            self.clock.at(begin, self.around.host.begin_request)
            self.clock.at(begin + overheads.request_host_s, self.around.host.end_request)
        self.clock.at(begin + overheads.arrive_s, self._arrive, sequence)

    def _turn_of_gateway(self) -> float:
        """Return when the gateway turns to something that comes now: to one after the other."""
        begin = max(self.clock.now, self._host_until)
        self._host_until = begin + self.assembly.overheads.dispatch_s
        return begin

    def _refuse(self, sequence: Sequence) -> None:
        limit = self.gateway.token_limit
        sequence.failure = f"its prompt has {sequence.request.prompt_tokens} tokens, a rank holds {limit} at most"
        self._end(sequence, "refused")
        if sequence.request.due_s is not None:
            self._arrive_next()

    def _arrive(self, sequence: Sequence) -> None:
        self.clock.at(sequence.sent_s + self._gateway_spec.request_timeout.seconds, self._deadline, sequence)
        self.gateway.queue(sequence)
        self.pump()
        if sequence.request.due_s is not None:
            self._arrive_next()

    def pump(self) -> None:
        """Look for room for waiting requests, once what happens at this moment has happened."""
        if not self._pumping:
            self._pumping = True
            self.clock.at(self.clock.now, self._pump)

    def _pump(self) -> None:
        self._pumping = False
        self.gateway.pump(self.clock.now)

    def _catch_up(self) -> None:
        for unit in self.decode:
            unit.catch_up()

    # to the ranks

    def _send(self, sequence: Sequence) -> None:
        half_s = self.assembly.overheads.reserve_s / 2
        self.clock.at(self.clock.now + half_s, self._reserve, sequence, sequence.attempt)

    def _reserve(self, sequence: Sequence, attempt: int) -> None:
        if sequence.attempt != attempt or sequence.state != "reserving":
            return
        answered = self.decode_unit(sequence).reserve(sequence)
        overheads = self.assembly.overheads
        then = self._reserved if overheads.request_host_s else self._start
        self.clock.at(answered + overheads.reserve_s / 2, then, sequence, attempt)

    def _reserved(self, sequence: Sequence, attempt: int) -> None:
        self.clock.at(self._turn_of_gateway() + self.assembly.overheads.dispatch_s, self._start, sequence, attempt)

    def _start(self, sequence: Sequence, attempt: int) -> None:
        if sequence.attempt == attempt and sequence.state == "reserving":
            self.prefill_unit(sequence).submit(sequence)

    def prefill_unit(self, sequence: Sequence) -> PrefillUnit:
        """Return the unit of a sequence's prefill rank."""
        return self.prefill[sequence.prefill_rank // self.assembly.prefill.pool.ranks]

    def decode_unit(self, sequence: Sequence) -> DecodeUnit:
        """Return the unit of a sequence's decode rank."""
        return self.decode[sequence.decode_rank // self.assembly.decode.pool.ranks]

    def _computed(self, part: Part, began: float, now: float) -> None:
        """Take note of what a prefill unit has computed from `began` to `now`: its KV has travelled meanwhile."""
        sequence = part.sequence
        prefill, decode = self.prefill_unit(sequence), self.decode_unit(sequence)
        if ("prefill", prefill.index) in self.kv_cut or ("decode", decode.index) in self.kv_cut:
            self.retry(sequence, "its KV could not be sent", avoid_prefill=sequence.prefill_rank)
            return
        way = (sequence.prefill_rank, sequence.decode_rank)
        exchanging = (prefill.exchanging, decode.exchanging) if self.kv.shared else (0.0, 0.0)
        if sequence.cached and sequence.computed - part.tokens == sequence.cached:
            self.kv.send(way, sequence.cached, begin=began, end=began, exchanging=exchanging)
        there = self.kv.send(way, part.tokens, begin=began, end=now, exchanging=exchanging)
        if sequence.state == "leaving":
            self._first_token(sequence, there)

    def _first_token(self, sequence: Sequence, kv_there: float) -> None:
        now = self.clock.now
        sequence.emitted += 1
        if sequence.emitted == 1:
            sequence.first_token_s = now + self.assembly.overheads.deliver_s
        self.gateway.computed(sequence)
        self.gateway.grow(sequence, sequence.tokens + 1)
        self.pump()
        if sequence.emitted == sequence.output_tokens:
            self.prefill_unit(sequence).let_go(sequence)
            self.decode_unit(sequence).let_go(sequence)
            self.ended(sequence)
            return
        self.clock.at(kv_there, self._kv_there, sequence, sequence.attempt)

    def _kv_there(self, sequence: Sequence, attempt: int) -> None:
        if sequence.attempt != attempt or sequence.state != "leaving":
            return
        sequence.kv_done_s = self.clock.now
        sequence.state = "decoding"
        self.prefill_unit(sequence).let_go(sequence)
        self.decode_unit(sequence).join(sequence)

    # ends

    def ended(self, sequence: Sequence) -> None:
        """Take a sequence that has all its tokens out of the books."""
        sequence.emitted = sequence.output_tokens
        self.gateway.release(sequence)
        self._end(sequence, "done")

    def evicted(self, sequence: Sequence) -> None:
        """Put a sequence that lost its pages back in the line; that is no retry."""
        sequence.evictions += 1
        self.gateway.release(sequence)
        self._again(sequence)

    def _end(self, sequence: Sequence, state: str) -> None:
        sequence.state = state  # type: ignore[assignment]
        sequence.ended_s = self.clock.now + self.assembly.overheads.deliver_s
        self._over += 1
        self.pump()
        if self.load.concurrency is not None:
            self._arrive_next()

    def _deadline(self, sequence: Sequence) -> None:
        if not sequence.over:
            self.abandon(sequence)
            sequence.failure = f"it did not end within {self._gateway_spec.request_timeout.seconds:g} s"
            self._end(sequence, "failed")

    # faults

    def stop_unit(self, phase: Phase, unit: int) -> None:
        """Let a unit stand still, and give its ranks nothing new."""
        self._outages[phase, unit] += 1
        if self._outages[phase, unit] == 1:
            self._units(phase)[unit].pause()
            self._offer(phase, unit, available=False)

    def start_unit(self, phase: Phase, unit: int) -> None:
        """Let a unit go on, if nothing else is wrong with it."""
        self._outages[phase, unit] -= 1
        if not self._outages[phase, unit]:
            self._offer(phase, unit, available=True)
            self._units(phase)[unit].resume()
            self.pump()

    def _units(self, phase: Phase) -> Sequences[PrefillUnit | DecodeUnit]:
        return self.prefill if phase == "prefill" else self.decode

    def _offer(self, phase: Phase, unit: int, *, available: bool) -> None:
        ranks = self.assembly.phases()[phase].pool.ranks
        ok_G = self.gateway.prefill_ok_G if phase == "prefill" else self.gateway.decode_ok_G
        ok_G[unit * ranks : (unit + 1) * ranks] = available

    # once more

    def abandon(self, sequence: Sequence) -> None:
        """Take a sequence from its ranks, and out of the books."""
        if sequence.state == "waiting":
            return
        if sequence.joined >= 0:
            sequence.emitted += self.decode_unit(sequence).answered(sequence)
        if sequence.state in {"prefilling", "leaving"}:
            self.prefill_unit(sequence).let_go(sequence)
        self.decode_unit(sequence).let_go(sequence)
        self.gateway.release(sequence)
        sequence.state = "waiting"

    def retry(
        self,
        sequence: Sequence,
        reason: str,
        *,
        avoid_prefill: int | None = None,
        avoid_decode: int | None = None,
        at_once: bool = False,
    ) -> None:
        """Try again, rather elsewhere; give the request up when that was tried often enough."""
        self.abandon(sequence)
        sequence.retries += 1
        sequence.failure = reason
        if avoid_prefill is not None:
            sequence.avoid_prefill.add(avoid_prefill)
        if avoid_decode is not None:
            sequence.avoid_decode.add(avoid_decode)
        if sequence.retries > self._gateway_spec.max_retries:
            self._end(sequence, "failed")
            return
        delay = 0.0 if at_once else retry_delay(sequence.retries, RETRY_S)
        self.clock.at(self.clock.now + delay, self._again, sequence)

    def _again(self, sequence: Sequence) -> None:
        """Put a sequence back in the line: its prompt is now what was asked and what was answered."""
        if sequence.over:
            return
        names, request = self.load.names, sequence.request
        tokens = request.prompt_tokens + sequence.emitted
        sequence.runs = request.runs
        if tokens // names.block_size > request.prompt_tokens // names.block_size:
            last = request.runs[-1] if request.runs else -1
            sequence.runs += (names.follow(last, ("answer", sequence.index), tokens),)
        self.gateway.queue(sequence)
        self.pump()
