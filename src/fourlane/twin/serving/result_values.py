"""What a simulated service showed, as values: requests' times, what met the SLO, what units and NICs did.

Not for how they are worked out (`results`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.point_values import Latency
    from fourlane.twin.serving.make_up import MakeUp
    from fourlane.twin.times import Phase

__all__ = ["Attainment", "KvUse", "PhaseUse", "RequestTimes"]


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """What became of each request, as arrays in the order in which they were sent.

    Times are seconds since the simulation's begin, infinite for what did not happen: `sent`, `placed` (ranks chosen),
    `started` (its first chunk begun), `first_token`, `kv_done` (all KV there), `decoding` (its first decode step
    begun), `ended`. Ranks are those of the last attempt. `state`: "done", "failed" or "refused".
    """

    sent: NDArray[np.float64]
    placed: NDArray[np.float64]
    started: NDArray[np.float64]
    first_token: NDArray[np.float64]
    kv_done: NDArray[np.float64]
    decoding: NDArray[np.float64]
    ended: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    prefill_rank: NDArray[np.int64]
    decode_rank: NDArray[np.int64]
    retries: NDArray[np.int64]
    evictions: NDArray[np.int64]
    state: NDArray[np.str_]

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.sent)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Tell which were answered in full."""
        return self.state == "done"

    @property
    def ttft(self) -> NDArray[np.float64]:
        """Return times to first token."""
        return self.first_token - self.sent

    @property
    def e2e(self) -> NDArray[np.float64]:
        """Return times to the end of the answer."""
        return self.ended - self.sent

    @property
    def tpot(self) -> NDArray[np.float64]:
        """Return mean times of further tokens; not a number for answers of one token."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.output_tokens > 1, (self.ended - self.first_token) / (self.output_tokens - 1), np.nan)


@dataclass(frozen=True, slots=True)
class Attainment:
    """How far requests met the SLO.

    Args:
        met: by the share of requests that it asks for.
        share: of requests that met all of it; ttft_share, tpot_share: each bound alone (1 where none is set).
        goodput: requests a second that met it; goodput_gpu: for each GPU of all units.
    """

    met: bool
    share: float
    ttft_share: float
    tpot_share: float
    goodput: float
    goodput_gpu: float


@dataclass(frozen=True, slots=True)
class PhaseUse:
    """What the units of one phase did.

    Args:
        phase: which.
        busy: share of time the mean unit was in a step; busy_units: each unit.
        steps: of all units.
        step_s: of a mean step; step_p99_s: the longest but one in a hundred.
        tokens: computed or answered; tokens_s_gpu: a second, for each of the phase's GPUs.
        load: tokens (prefill) or rows (decode) of the mean rank in a mean step; fullest: of the fullest rank.
        make_up: what steps were made of.
    """

    phase: Phase
    busy: float
    busy_units: tuple[float, ...]
    steps: int
    step_s: float
    step_p99_s: float
    tokens: int
    tokens_s_gpu: float
    load: float
    fullest: float
    make_up: MakeUp


@dataclass(frozen=True, slots=True)
class KvUse:
    """What the way of KV cache did.

    Args:
        bytes: sent.
        out_share, in_share: of time the mean NIC out of a prefill rank, into a decode rank, was busy; *_most: the
            busiest.
        exposed: from a first token until all KV was there.
        blocks: share of all decode ranks' blocks held, mean over time.
    """

    bytes: float
    out_share: float
    out_most: float
    in_share: float
    in_most: float
    exposed: Latency
    blocks: float
