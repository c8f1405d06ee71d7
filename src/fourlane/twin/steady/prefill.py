"""How prompts are prefilled in steady state: what a step holds, and how long a prompt waits for it.

All ranks of a unit step together. What comes while a step runs waits for its end, and is then computed at once, a chunk
a rank. So a step's load is what came during the step before, and its length follows from that: a fixed point. Routing
gives a prompt to the rank with the least queued tokens, the first of equals (`policy.request_routing`): units with idle
ranks fill one after another.

What is approximated: steps in a row are equally long; requests find ranks of their own while there are any; the wait
of a service near its capacity is that of a queue in front of as many servers as there are ranks (Sakasegawa, 1977).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.steady.request_mix import Draws, RequestMix
    from fourlane.twin.steady.step_tables import PrefillTable

    Floats = NDArray[np.float64]

__all__ = ["PrefillState", "Queue", "prefill_capacity", "prefill_state", "prefill_times", "queue_wait"]

_ROUNDS = 60


@dataclass(frozen=True, slots=True)
class PrefillState:
    """Prefill units in steady state.

    Args:
        fullest, mean: tokens of the fullest and the mean rank in a step.
        step_s: a step's length.
        busy: share of time a unit with work steps.
        working: units that get work.
        arrivals: prompts that come to a unit during a step.
        utilisation: of what all units can do.
        queue: the wait for a rank.
    """

    fullest: float
    mean: float
    step_s: float
    busy: float
    working: float
    arrivals: float
    utilisation: float
    queue: Queue


@dataclass(frozen=True, slots=True)
class Queue:
    """A wait in front of many servers: none but for the share `waits` of requests, for whom it is exponential."""

    waits: float
    mean_s: float

    def quantiles(self, share_N: Floats) -> Floats:
        """Return the wait at each share of requests."""
        if self.waits <= 0 or self.mean_s <= 0:
            return np.zeros_like(share_N)
        if not math.isfinite(self.mean_s):
            return np.full_like(share_N, math.inf)
        tail_N = np.maximum(1.0 - share_N, 1e-9)
        return np.where(tail_N < self.waits, self.mean_s / self.waits * np.log(self.waits / tail_N), 0.0)


def queue_wait(utilisation: float, servers: float, service_s: float, variation: float) -> Queue:
    """Return the wait in front of like servers.

    Args:
        utilisation: of all servers.
        servers: how many.
        service_s: mean time of a request at its server.
        variation: mean of the squared coefficients of variation of gaps and of service times.
    """
    if utilisation >= 1:
        return Queue(1.0, math.inf)
    power = math.sqrt(2 * (servers + 1))
    waits = utilisation ** (power - 1)
    mean_s = variation * utilisation ** (power - 1) / (servers * (1 - utilisation)) * service_s
    return Queue(waits, mean_s)


def prefill_capacity(table: PrefillTable, mix: RequestMix, ranks: int, chunk: float) -> float:
    """Return the requests a second that ranks in full steps prefill."""
    return ranks * chunk / table.seconds(chunk, chunk) / float(mix.new_N.mean())


def prefill_state(
    table: PrefillTable, mix: RequestMix, rate: float, *, units: int, ranks: int, chunk: float, slower: float = 1.0
) -> PrefillState:
    """Return the steady state at a rate below capacity.

    Args:
        table: what steps take.
        mix: of requests.
        rate: requests a second, all units.
        units, ranks: units, and ranks of each.
        chunk: most tokens of a rank in a step.
        slower: how many times as long steps take as in the table.
    """
    chunks = _Chunks.of(mix, chunk)
    new = float(mix.new_N.mean())
    utilisation = rate * slower / prefill_capacity(table, mix, units * ranks, chunk)
    step_s = table.seconds(min(new, chunk), min(new, chunk) / ranks) * slower
    working, fullest, mean = 1.0, new, new / ranks
    for _ in range(_ROUNDS):
        arrivals = rate / working * step_s
        mean = min(chunk, max(arrivals * new, chunks.mean) / ranks)
        fullest = min(chunk, max(chunks.greatest(min(arrivals * chunks.steps, ranks)), mean + chunks.spread(mean)))
        found_s = table.seconds(fullest, mean) * slower
        queued = rate * found_s * (0.5 + chunks.steps)
        working += 0.5 * (min(units, max(1.0, queued / ranks)) - working)
        if abs(found_s - step_s) < 1e-4 * step_s and abs(working - min(units, max(1.0, queued / ranks))) < 1e-3:
            break
        step_s += 0.5 * (found_s - step_s)
    arrivals = rate / working * step_s
    idle_s = math.exp(-arrivals) * working / rate if rate > 0 else math.inf
    service_s = new / chunk * table.seconds(chunk, chunk) * slower
    spread = float(mix.new_N.var()) / new**2
    variation = (mix.burstiness**2 + spread) / 2
    return PrefillState(
        fullest=fullest,
        mean=mean,
        step_s=step_s,
        busy=step_s / (step_s + idle_s) if math.isfinite(idle_s) else 0.0,
        working=working,
        arrivals=arrivals,
        utilisation=utilisation,
        queue=queue_wait(utilisation, units * ranks, service_s, variation),
    )


def prefill_times(
    state: PrefillState, table: PrefillTable, draws: Draws, *, ranks: int, chunk: float, slower: float = 1.0
) -> tuple[Floats, Floats]:
    """Return how long each drawn prompt waits before it is computed, and how long it is computed, [draws] each.

    A prompt that finds its unit idle begins at once and has a step of its own; any other waits for the step's end,
    behind those that came to its rank before it.
    """
    whole_N, rest_N = np.divmod(draws.new_N, chunk)
    lone_N = slower * (whole_N * table.seconds(chunk, chunk / ranks) + table.alone(rest_N, ranks))
    ahead_N = np.floor(draws.moment_N * state.arrivals / ranks) * (state.mean * ranks / max(state.arrivals, 1.0))
    last_N = slower * table.alone(np.where(whole_N > 0, chunk, rest_N), ranks)
    steps_N = np.ceil((draws.new_N + ahead_N) / chunk)
    shared_N = steps_N * np.maximum(state.step_s, last_N)
    idle_N = draws.finds_N >= state.busy
    waiting_N = np.where(idle_N, 0.0, (1.0 - draws.moment_N) * state.step_s)
    return waiting_N + state.queue.quantiles(draws.queue_N), np.where(idle_N, lone_N, shared_N)


@dataclass(frozen=True, eq=False, slots=True)
class _Chunks:
    """Chunks that prompts are computed in: sizes, ascending, with the share of chunks up to each."""

    size_N: Floats
    upto_N: Floats
    steps: float
    mean: float
    square: float

    @classmethod
    def of(cls, mix: RequestMix, chunk: float) -> _Chunks:
        whole_N = np.floor(mix.new_N / chunk)
        rest_N = mix.new_N - whole_N * chunk
        sizes = np.concatenate([rest_N[rest_N > 0], [chunk] if whole_N.any() else []])
        counts = np.concatenate([np.ones(int((rest_N > 0).sum())), [whole_N.sum()] if whole_N.any() else []])
        order = np.argsort(sizes)
        size_N, share_N = sizes[order], counts[order] / counts.sum()
        return cls(
            size_N,
            np.cumsum(share_N),
            float(counts.sum() / len(mix.new_N)),
            float((size_N * share_N).sum()),
            float((size_N**2 * share_N).sum()),
        )

    def greatest(self, draws: float) -> float:
        """Return the greatest of so many chunks, in the mean of Poisson many that are at least one."""
        draws = draws / -math.expm1(-draws) if draws > 1e-9 else 1.0
        power_N = self.upto_N**draws
        return float((self.size_N * np.diff(power_N, prepend=0.0)).sum())

    def spread(self, mean: float) -> float:
        """Return by how much the fullest of ranks that are given chunks in turn exceeds the mean one."""
        return self.square / self.mean / 2 if mean > self.mean else 0.0
