"""What a service does in steady state, as values: latencies, throughput, use of each part, the verdict on its SLO.

`fourlane.twin.operating_point` works them out. Not for single requests (`fourlane.twin.serving`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourlane.twin.times import Phase, StepTime

__all__ = ["KvPoint", "Latency", "OperatingPoint", "PhasePoint", "Verdict"]


@dataclass(frozen=True, slots=True)
class Latency:
    """A time over requests, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class PhasePoint:
    """What the units of one phase do.

    Args:
        phase: which.
        load: of a rank in a step: prompt tokens (prefill), sequences (decode), on the mean rank.
        fullest: the same on the fullest rank.
        capacity: requests a second that all units can do at most.
        utilisation: of that capacity.
        busy: share of time a unit is in a step.
        tokens_s_gpu: prompt tokens (prefill) or answered tokens (decode) a second, for each of the phase's GPUs.
        peak_tokens_s_gpu: the same at capacity.
        step: a typical step's time, and what it is made of.
        balance: the fullest rank's experts over the mean's.
        bound: what bounds most of its step.
    """

    phase: Phase
    load: float
    fullest: float
    capacity: float
    utilisation: float
    busy: float
    tokens_s_gpu: float
    peak_tokens_s_gpu: float
    step: StepTime
    balance: float
    bound: str


@dataclass(frozen=True, slots=True)
class KvPoint:
    """What the way of KV cache does.

    Args:
        capacity: requests a second it can carry at most.
        utilisation: of that.
        transfer_s: of a mean request's cache, waiting for the NIC included.
        exposed_s: from the prompt's last layer to the cache's last byte.
        blocks_used: share of all decode ranks' KV blocks that are held.
        background: share of a prefill rank's NIC it takes beside expert traffic.
    """

    capacity: float
    utilisation: float
    transfer_s: float
    exposed_s: float
    blocks_used: float
    background: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the service meets its SLO.

    Args:
        met: by the share of requests that the SLO asks for.
        attainment: share of requests that meet it.
        ttft_share, tpot_share: share that meet each bound alone.
        binds: what stands in the way, or would first: "ttft", "tpot", "prefill", "decode", "kv".
        says: in words: which bound binds, what would be met instead.
    """

    met: bool
    attainment: float
    ttft_share: float
    tpot_share: float
    binds: str
    says: str


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A service at a rate.

    Args:
        rate: requests a second it serves.
        offered: requests a second asked for; None: the rate was sought.
        stable: it keeps up with them.
        concurrency: requests under way.
        ttft, tpot: latencies; infinite where it does not keep up.
        ttft_parts: what the mean time to first token is made of, in seconds.
        input_tokens_s_gpu, output_tokens_s_gpu: for each of all GPUs.
        prefill, decode, kv: what each part does.
        binds: what limits the rate: "prefill", "decode", "kv" or, of a rate that was sought, "ttft" or "tpot".
        goodput: requests a second that meet the SLO.
        slo: the verdict; with no SLO only capacity counts.
        sources: where the figures come from, by name.
    """

    rate: float
    offered: float | None
    stable: bool
    concurrency: float
    ttft: Latency
    tpot: Latency
    ttft_parts: dict[str, float]
    input_tokens_s_gpu: float
    output_tokens_s_gpu: float
    prefill: PhasePoint
    decode: PhasePoint
    kv: KvPoint
    binds: str
    goodput: float
    slo: Verdict
    sources: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return asdict(self)
