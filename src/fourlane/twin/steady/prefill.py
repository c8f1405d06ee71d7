"""How prompts are prefilled in steady state: what a step holds, and how long a prompt waits for it.

All ranks of a unit step together. A prompt goes to an idle unit while there is one (`policy.request_routing`) and
begins at once; where all are in a step it waits for the end of one, and is then computed with what else came meanwhile.
So a step's load is what came during the step before, and its length follows from that: a fixed point.

What is approximated: steps are drawn independently of each other; how uneven the ranks of a unit are where they have
several prompts; the wait of a service near its capacity is that of one queue before several servers (Sakasegawa, 1977).
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
_QUANTILES = (np.arange(16) + 0.5) / 16
_UNEVEN, _UNLIKE = 0.3, 1.1
"""Of a chunk: how much the fullest of 8 ranks has beyond twice the mean where ranks have several chunks, and how much
more where these are unlike, by their squared coefficient of variation; more ranks, more by the logarithm. Fitted to
`fourlane.twin.serving` with linear step times."""
_POOLED = 0.5
"""Of further ranks that count as servers of one queue: prompts are given to a rank when they come, and stay there.
Fitted to the same."""


@dataclass(frozen=True, eq=False, slots=True)
class PrefillState:
    """Prefill units in steady state.

    Args:
        fullest_Q, seconds_Q: tokens of the fullest rank and lengths of equally likely steps.
        mean: tokens of the mean rank in a step.
        chunk: tokens of a prompt that are computed in a step.
        busy: share of time a unit steps.
        working: ranks that get prompts, all units; routing gives them to the first of equals, so that the others idle.
        all_busy: share of prompts that find every unit in a step.
        utilisation: of what all units can do.
        queue: the wait for a rank.
    """

    fullest_Q: Floats
    seconds_Q: Floats
    mean: float
    chunk: float
    busy: float
    working: float
    all_busy: float
    utilisation: float
    queue: Queue

    @property
    def fullest(self) -> float:
        """Return the tokens of the fullest rank of a mean step."""
        return float(self.fullest_Q.mean())

    @property
    def step_s(self) -> float:
        """Return the mean length of steps."""
        return float(self.seconds_Q.mean())


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
    waits = _waits(utilisation, servers)
    return Queue(waits, variation * waits / (servers * (1 - utilisation)) * service_s)


def _waits(utilisation: float, servers: float) -> float:
    """Return the share of requests that find all servers busy."""
    return min(1.0, utilisation ** (math.sqrt(2 * (servers + 1)) - 1))


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
    first_s = step_s = table.seconds(chunks.mean, chunks.mean / ranks) * slower
    mean, arrivals = chunks.mean / ranks, 0.0
    fullest_Q = seconds_Q = np.zeros(0)
    for _ in range(_ROUNDS):
        arrivals = rate / units * step_s
        mean = min(chunk, max(arrivals * new, chunks.mean) / ranks)
        fullest_Q = chunks.fullest(min(max(arrivals * chunks.steps, 1.0), float(ranks)), ranks, mean, chunk)
        seconds_Q = table.steps(fullest_Q, mean) * slower
        found_s = float(seconds_Q.mean())
        if abs(found_s - step_s) < 1e-4 * step_s:
            break
        step_s += 0.5 * (found_s - step_s)
    return PrefillState(
        fullest_Q=fullest_Q,
        seconds_Q=seconds_Q,
        mean=mean,
        chunk=chunks.mean,
        busy=min(1.0, arrivals * chunks.steps),
        working=min(float(units * ranks), max(1.0, 2.0 * units * arrivals * chunks.steps)),
        all_busy=_waits(rate * first_s * chunks.steps / units, units),
        utilisation=utilisation,
        queue=queue_wait(
            utilisation,
            1.0 + _POOLED * (units * ranks - 1),
            new / chunk * table.seconds(chunk, chunk) * slower,
            (mix.burstiness**2 + float(mix.new_N.var()) / new**2) / 2,
        ),
    )


def prefill_times(
    state: PrefillState, table: PrefillTable, draws: Draws, *, ranks: int, chunk: float, slower: float = 1.0
) -> tuple[Floats, Floats]:
    """Return how long each drawn prompt waits before it is computed, and how long it is computed, [draws] each.

    A prompt that finds a unit idle begins at once and has a step of its own; any other waits for the end of a step,
    the longer ones more likely, and shares the next one.
    """
    whole_N, rest_N = np.divmod(draws.new_N, chunk)
    lone_N = slower * table.prompts(draws.new_N, ranks, chunk)
    ahead_N = draws.moment_N * np.maximum(state.fullest - state.chunk, 0.0)
    last_N = slower * table.alone(np.where(whole_N > 0, chunk, rest_N), ranks)
    steps_N = np.ceil((draws.new_N + ahead_N) / chunk)
    shared_N = np.maximum(steps_N * np.maximum(_pick(state.seconds_Q, draws.joins_N), last_N), lone_N)
    longer_Q = np.cumsum(state.seconds_Q) / state.seconds_Q.sum()
    found_N = state.seconds_Q[np.minimum(np.searchsorted(longer_Q, draws.step_N), len(longer_Q) - 1)]
    idle_N = draws.finds_N >= state.all_busy
    waiting_N = np.where(idle_N, 0.0, (1.0 - draws.moment_N) * found_N)
    return waiting_N + state.queue.quantiles(draws.queue_N), np.where(idle_N, lone_N, shared_N)


def _pick(values_Q: Floats, share_N: Floats) -> Floats:
    """Return equally likely values by where each draw is among them."""
    return values_Q[np.minimum((share_N * len(values_Q)).astype(int), len(values_Q) - 1)]


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

    def fullest(self, chunks: float, ranks: int, mean: float, most: float) -> Floats:
        """Return equally likely tokens of a step's fullest rank, [quantiles].

        Ranks that have a chunk each: the greatest of so many. Where there are more chunks than ranks without any, those
        in a step and those that wait for it together are kept equal by routing, so that one step has up to twice the
        mean of what the next has; near capacity all ranks are full.

        Args:
            chunks: of a step.
            ranks: of the unit.
            mean: tokens of the mean rank.
            most: of any rank.
        """
        place_Q = np.searchsorted(self.upto_N, _QUANTILES ** (1.0 / chunks))
        single_Q = self.size_N[np.minimum(place_Q, len(self.size_N) - 1)]
        variation = self.square / self.mean**2 - 1.0
        uneven = (_UNEVEN + _UNLIKE * variation) * self.square / self.mean
        uneven *= math.log(max(ranks, 1)) / math.log(8.0) * min(1.0, 2.0 * chunks / ranks)
        crowded = mean * (2.0 - mean / most) + uneven * (1.0 - mean / most)
        return np.minimum(np.maximum(single_Q, crowded * (0.5 + _QUANTILES)), most)
