"""Join prefill, KV path and decode of a service at a rate, and say what it does in words and figures.

Not for how the rate is chosen (`fourlane.twin.operating_point`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fourlane.twin.point_values import KvPoint, Latency, OperatingPoint, PhasePoint
from fourlane.twin.steady.attended_pairs import AttendedPairs
from fourlane.twin.steady.decode import DecodeRoom, DecodeState, decode_capacity, decode_state
from fourlane.twin.steady.kv import KvState, exposed_times, kv_capacity, kv_state
from fourlane.twin.steady.prefill import PrefillState, prefill_capacity, prefill_state, prefill_times
from fourlane.twin.steady.request_mix import draws, request_mix
from fourlane.twin.steady.step_tables import (
    decode_load,
    decode_table,
    fullest_of,
    prefill_load,
    prefill_table,
)
from fourlane.twin.steady.verdict import verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.assembly_parts import Assembly, PhaseModel
    from fourlane.twin.point_values import Verdict
    from fourlane.twin.steady.step_tables import DecodeTable, PrefillTable
    from fourlane.twin.times import GroupLoad, StepTime

    Floats = NDArray[np.float64]

__all__ = ["Steady"]

_BACKGROUNDS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9)
"""Shares of a NIC that KV cache takes, for which tables of step times are filled; between them lie straight lines."""
_CROWDED_ROUNDS, _KEPT, _HALVINGS = 8, 64, 14


@dataclass(frozen=True, eq=False, slots=True)
class _State:
    """Everything at a rate; times of the drawn requests, [draws]."""

    rate: float
    background: float
    prefill: PrefillState
    decode: DecodeState
    kv: KvState
    reserving_N: Floats
    waiting_N: Floats
    computing_N: Floats
    exposed_N: Floats
    ttft_N: Floats
    tpot_N: Floats
    decode_capacity: float


class Steady:
    """A service, of which steady states at many rates are asked.

    Args:
        assembly: the service.
    """

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        twin, blocks = assembly.twin, assembly.prefill.memory.kv_blocks
        self.mix = request_mix(
            twin.workload,
            block_size=twin.block_size,
            cache_blocks=blocks * assembly.prefill.ranks if twin.prefill.prefix_cache else 0,
            seed=twin.seed,
        )
        self._draws = draws(self.mix)
        self._attended = AttendedPairs.of(self.mix, float(twin.prefill.chunk_tokens))
        self._prefill_tables: dict[float, PrefillTable] = {}
        self._states: dict[float, _State] = {}
        self._decode_tables: dict[float, DecodeTable] = {}
        decode = assembly.decode
        self.room = DecodeRoom(
            units=decode.pool.units,
            ranks=decode.pool.ranks,
            max_running=decode.pool.max_running,
            blocks=decode.memory.kv_blocks,
            block_size=twin.block_size,
            tokens_per_step=assembly.tokens_per_step,
        )

    # Rates -------------------------------------------------------------------------------------------

    @cached_property
    def prefill_rate(self) -> float:
        """Return the requests a second that prefill ranks do at most, with expert traffic alone in the network."""
        pool = self.assembly.prefill
        return prefill_capacity(self._prefill_table(0.0), self.mix, pool.ranks, float(pool.pool.chunk_tokens))

    @cached_property
    def kv_rate(self) -> float:
        """Return the requests a second whose KV cache gets through."""
        assembly = self.assembly
        return kv_capacity(
            assembly.kv,
            self.mix,
            assembly.kv_token_bytes,
            senders=assembly.prefill.ranks,
            receivers=assembly.decode.ranks,
        )

    @cached_property
    def capacity(self) -> float:
        """Return the greatest rate at which every part keeps up."""
        low, high = 0.0, min(self.prefill_rate, self.kv_rate, self._decode_capacity(0.0, 0.0))
        if self._keeps_up(high * (1 - 1e-6)):
            return high
        for _ in range(_HALVINGS):
            between = (low + high) / 2
            low, high = (between, high) if self._keeps_up(between) else (low, between)
        return low

    def meets(self, rate: float) -> bool:
        """Tell whether the SLO is met at a rate."""
        return self._keeps_up(rate) and self._verdict(self._state(rate)).met

    def binding(self, rate: float) -> str:
        """Return what stands in the way of the SLO at a rate."""
        return self._verdict(self._state(rate)).binds

    def under_way(self, rate: float) -> float:
        """Return the requests under way at a rate, infinitely many where it is too high."""
        if rate <= 0:
            return 0.0
        return self._under_way(self._state(rate)) if self._keeps_up(rate) else math.inf

    def _keeps_up(self, rate: float) -> bool:
        if rate >= min(self.prefill_rate, self.kv_rate):
            return False
        state = self._state(rate)
        return state.prefill.utilisation < 1 and state.decode.fits and rate <= state.decode_capacity

    # States ------------------------------------------------------------------------------------------

    def _state(self, rate: float) -> _State:
        if rate not in self._states:
            if len(self._states) > _KEPT:
                self._states.clear()
            self._states[rate] = self._worked_out(rate)
        return self._states[rate]

    def _worked_out(self, rate: float) -> _State:
        slower = 1.0
        state = self._uncrowded(rate, slower)
        if self.assembly.cores is None:
            return state
        for _ in range(_CROWDED_ROUNDS):
            wanted = self._crowding(state)
            if abs(wanted - slower) < 1e-3:
                break
            slower += 0.7 * (wanted - slower)
            state = self._uncrowded(rate, slower)
        return state

    def _crowding(self, state: _State) -> float:
        """Return how many times as long steps take because ranks want more cores than there are."""
        cores = self.assembly.cores
        assert cores is not None
        computing = state.prefill.busy * self.assembly.prefill.ranks
        computing += state.decode.busy * state.decode.working * self.assembly.decode.pool.ranks
        return max(1.0, computing / cores)

    def _uncrowded(self, rate: float, slower: float) -> _State:
        assembly, mix, drawn = self.assembly, self.mix, self._draws
        pool = assembly.prefill.pool
        background = self._background(rate)
        table, chunk = self._prefill_table(background), float(pool.chunk_tokens)
        prefill = prefill_state(table, mix, rate, units=pool.units, ranks=pool.ranks, chunk=chunk, slower=slower)
        decoding = self._decode_table(background)
        decode = decode_state(decoding, mix, rate, self.room, held_s=0.0, slower=slower)
        path = kv_state(
            assembly.kv,
            mix,
            rate,
            token_bytes=assembly.kv_token_bytes,
            layers=assembly.architecture.layers,
            senders=(prefill.working, assembly.prefill.ranks),
            receivers=(max(1.0, decode.working * min(1.0, decode.sequences) * self.room.ranks), self.room.all_ranks),
        )
        waiting_N, computing_N = prefill_times(prefill, table, drawn, ranks=pool.ranks, chunk=chunk, slower=slower)
        exposed_N = exposed_times(path, drawn.input_N, computing_N, drawn.kv_N)
        overheads = assembly.overheads
        reserving_N = overheads.reserve_s + (1.0 - drawn.reserve_N) * decode.busy * decode.step_s
        held_s = float((waiting_N + computing_N + exposed_N).mean()) + float(reserving_N.mean())
        unhindered_N = exposed_times(replace(path, wait_s=0.0), drawn.input_N, computing_N, drawn.kv_N)
        alone_s = float((reserving_N + computing_N + unhindered_N).mean()) + prefill.step_s / 2
        decode = decode_state(decoding, mix, rate, self.room, held_s=held_s, slower=slower)
        ttft_N = overheads.gateway_s + reserving_N + waiting_N + computing_N
        steps_N = drawn.further_N / assembly.tokens_per_step
        answering_N = exposed_N + (1.0 - drawn.decode_N) * decode.busy * decode.step_s + steps_N * decode.step_s
        tpot_N = np.divide(answering_N, drawn.further_N, out=np.zeros_like(answering_N), where=drawn.further_N > 0)
        return _State(
            rate,
            background,
            prefill,
            decode,
            path,
            reserving_N,
            waiting_N,
            computing_N,
            exposed_N,
            ttft_N,
            tpot_N,
            decode_capacity(decoding, mix, self.room, held_s=alone_s, slower=slower),
        )

    def _background(self, rate: float) -> float:
        """Return the share of a prefill rank's NIC that KV cache takes, mean of all."""
        size = float(self.mix.input_N.mean()) * self.assembly.kv_token_bytes
        return self.assembly.kv.background(rate * size / self.assembly.prefill.ranks)

    def _decode_capacity(self, background: float, held_s: float) -> float:
        return decode_capacity(self._decode_table(background), self.mix, self.room, held_s=held_s)

    # Tables ------------------------------------------------------------------------------------------

    def _prefill_table(self, background: float) -> PrefillTable:
        low, high, share = _between(background)
        table = self._filled_prefill(low)
        return table.blended(self._filled_prefill(high), share) if share else table

    def _decode_table(self, background: float) -> DecodeTable:
        low, high, share = _between(background)
        table = self._filled_decode(low)
        return table.blended(self._filled_decode(high), share) if share else table

    def _filled_prefill(self, background: float) -> PrefillTable:
        if background not in self._prefill_tables:
            model, mix = self._beside("prefill", background), self.mix
            self._prefill_tables[background] = prefill_table(
                model.steps,
                model.pool.ranks,
                most=float(model.pool.chunk_tokens),
                attended=self._attended,
                prompt=float(mix.new_N.mean()),
            )
        return self._prefill_tables[background]

    def _filled_decode(self, background: float) -> DecodeTable:
        if background not in self._decode_tables:
            model = self._beside("decode", background)
            self._decode_tables[background] = decode_table(
                model.steps,
                model.pool.ranks,
                most=float(model.pool.max_running),
                context=self.mix.decode_context,
                rows=self._rows,
            )
        return self._decode_tables[background]

    @property
    def _rows(self) -> float:
        return 1.0 + self.assembly.twin.assumptions.mtp_tokens

    def _beside(self, phase: str, background: float) -> PhaseModel:
        model = self.assembly.prefill if phase == "prefill" else self.assembly.decode
        shared = getattr(model.exchange, "with_background", None)
        return model if background == 0 or shared is None else model.with_exchange(shared(background))

    # Points ------------------------------------------------------------------------------------------

    def point(self, rate: float, *, offered: float | None, limit: str | None = None) -> OperatingPoint:
        """Return the service at a rate.

        Args:
            rate: requests a second.
            offered: the rate that was asked for, None if it was sought.
            limit: what limits it, where it was found by the SLO.
        """
        stable = rate > 0 and self._keeps_up(rate)
        served = rate if stable else min(rate, self.capacity * (1 - 1e-6))
        state = self._state(served)
        found = self._verdict(state, stable=stable)
        capacities = {"prefill": self.prefill_rate, "decode": state.decode_capacity, "kv": self.kv_rate}
        mix, gpus = self.mix, self.assembly.twin.gpus
        return OperatingPoint(
            rate=served,
            offered=offered,
            stable=stable,
            concurrency=self._under_way(state) if stable else math.inf,
            ttft=_latency(state.ttft_N) if stable else _NEVER,
            tpot=_latency(state.tpot_N[self._draws.further_N > 0]),
            ttft_parts=self._ttft_parts(state),
            input_tokens_s_gpu=served * float(mix.input_N.mean()) / gpus,
            output_tokens_s_gpu=served * float(mix.output_N.mean()) / gpus,
            prefill=self._prefill_point(state),
            decode=self._decode_point(state),
            kv=self._kv_point(state),
            binds=limit or min(capacities, key=lambda part: capacities[part]),
            goodput=served * found.attainment if stable else 0.0,
            slo=found,
            sources=self._sources(),
        )

    def _verdict(self, state: _State, *, stable: bool = True) -> Verdict:
        weakest = {"prefill": self.prefill_rate, "decode": state.decode_capacity, "kv": self.kv_rate}
        return verdict(
            self.assembly.twin.slo,
            state.ttft_N,
            np.where(self._draws.further_N > 0, state.tpot_N, 0.0),
            overloaded=None if stable else min(weakest, key=lambda part: weakest[part]),
            rate=state.rate,
        )

    def _under_way(self, state: _State) -> float:
        answering_N = state.tpot_N * self._draws.further_N
        return state.rate * float((state.ttft_N + answering_N).mean())

    def _ttft_parts(self, state: _State) -> dict[str, float]:
        overheads = self.assembly.overheads
        return {
            "gateway": overheads.gateway_s,
            "reserving": float(state.reserving_N.mean()),
            "waiting": float(state.waiting_N.mean()),
            "prefill": float(state.computing_N.mean()),
        }

    def _prefill_point(self, state: _State) -> PhasePoint:
        prefill = state.prefill
        load = self._prefill_load(prefill)
        step = self._beside_of(state, "prefill").steps.step(load)
        new = float(self.mix.new_N.mean())
        return PhasePoint(
            phase="prefill",
            load=prefill.mean,
            fullest=prefill.fullest,
            capacity=self.prefill_rate,
            utilisation=prefill.utilisation,
            busy=prefill.busy,
            tokens_s_gpu=state.rate * new / self.assembly.prefill.ranks,
            peak_tokens_s_gpu=self.prefill_rate * new / self.assembly.prefill.ranks,
            step=step,
            balance=self.assembly.prefill.balance.at(prefill.mean).max_over_mean,
            bound=_bound(step),
        )

    def _decode_point(self, state: _State) -> PhasePoint:
        decode, room = state.decode, self.room
        load = self._decode_load(decode)
        step = self._beside_of(state, "decode").steps.step(load)
        answered = float(self.mix.further_N.mean())
        return PhasePoint(
            phase="decode",
            load=decode.sequences,
            fullest=fullest_of(decode.sequences),
            capacity=state.decode_capacity,
            utilisation=state.rate / state.decode_capacity if state.decode_capacity else math.inf,
            busy=decode.busy,
            tokens_s_gpu=state.rate * answered / room.all_ranks,
            peak_tokens_s_gpu=state.decode_capacity * answered / room.all_ranks if answered else 0.0,
            step=step,
            balance=self.assembly.decode.balance.at(decode.sequences * self._rows).max_over_mean,
            bound=_bound(step),
        )

    def _prefill_load(self, state: PrefillState) -> GroupLoad:
        ranks = self.assembly.prefill.pool.ranks
        return prefill_load(
            ranks,
            fullest=state.fullest,
            mean=state.mean,
            pairs=self._attended.fullest(state.fullest, max(1.0, ranks * state.mean / max(state.fullest, 1.0))),
            prompt=float(self.mix.new_N.mean()),
        )

    def _decode_load(self, state: DecodeState) -> GroupLoad:
        return decode_load(
            self.room.ranks,
            fullest=fullest_of(state.sequences),
            mean=state.sequences,
            context=self.mix.decode_context,
            rows=self._rows,
        )

    def _beside_of(self, state: _State, phase: str) -> PhaseModel:
        return self._beside(phase, min(state.background, _BACKGROUNDS[-1]))

    def _kv_point(self, state: _State) -> KvPoint:
        path = state.kv
        size = float(self.mix.input_N.mean()) * self.assembly.kv_token_bytes
        return KvPoint(
            capacity=self.kv_rate,
            utilisation=path.utilisation,
            transfer_s=path.wait_s + path.latency_s + size / path.rate,
            exposed_s=float(state.exposed_N.mean()),
            blocks_used=state.decode.blocks_used,
            background=state.background,
        )

    def _sources(self) -> dict[str, str]:
        assembly = self.assembly
        own = {
            "requests": self.mix.source,
            "prefill experts": assembly.prefill.balance.at(1024).source,
            "decode experts": assembly.decode.balance.at(64).source,
            "kv": assembly.kv.source,
            "overheads": assembly.overheads.source,
            "waiting": "fixed points of like steps; queue of as many servers as ranks (Sakasegawa 1977)",
        }
        return assembly.sources | own


def _between(background: float) -> tuple[float, float, float]:
    """Return the shares of a NIC below and above one for which tables are made, and how far between them it is."""
    place = int(np.searchsorted(_BACKGROUNDS, background))
    if place == 0 or place == len(_BACKGROUNDS):
        nearest = _BACKGROUNDS[min(place, len(_BACKGROUNDS) - 1)]
        return nearest, nearest, 0.0
    low, high = _BACKGROUNDS[place - 1], _BACKGROUNDS[place]
    return low, high, (background - low) / (high - low)


_NEVER = Latency(math.inf, math.inf, math.inf, math.inf)


def _latency(seconds_N: Floats) -> Latency:
    if not len(seconds_N):
        return Latency(0.0, 0.0, 0.0, 0.0)
    p50, p90, p99 = np.percentile(seconds_N, [50, 90, 99]).tolist()
    return Latency(float(seconds_N.mean()), p50, p90, p99)


def _bound(step: StepTime) -> str:
    """Return what bounds most of a step's time, in words."""
    if step.exposed_s > step.seconds / 2:
        most = max(("dispatch", "combine"), key=lambda name: step.parts.get(name, 0.0))
    else:
        computed = {name: took for name, took in step.parts.items() if name not in ("dispatch", "combine")}
        most = max(computed, key=lambda name: computed[name]) if computed else ""
    return f"{most}: {step.bounds.get(most, '')}".rstrip(": ")
