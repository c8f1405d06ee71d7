"""Times and where they come from: what the parts of the twin tell each other.

Every time carries what bounds it and its source, so that a figure at the end can be traced to what it was made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from fourlane.policy.stages import Part

__all__ = [
    "BalanceCurve",
    "ExchangeTimes",
    "GroupLoad",
    "KernelTimes",
    "Operation",
    "Phase",
    "RankLoad",
    "RankShare",
    "StepTime",
    "Timed",
]

Phase = Literal["prefill", "decode"]
Operation = Literal["dispatch", "combine"]


@dataclass(frozen=True, slots=True)
class Timed:
    """A time, what bounds it and where it comes from.

    `bound`: "compute", "memory", "nic", "nvlink", "latency", "measured", ...; `source` in words: "roofline of h800,
    grouped GEMM at 0.45 of peak (fitted: DeepSeek profile)", "packets: table 3f0a2c, 4 runs".
    """

    seconds: float
    bound: str
    source: str


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """What an expert-parallel group computes in one step.

    Args:
        ranks: of the group.
        prefill_tokens: prompt tokens of the fullest rank.
        prefill_pairs: positions its prompt tokens attend to, summed over them.
        decode_tokens: rows its decoding sequences have, drafted tokens included.
        decode_context: positions those sequences have in their caches, summed.
        logits: its rows of which logits are computed.
        tokens: rows of both phases on the mean rank: what goes to experts.
    """

    ranks: int
    prefill_tokens: float
    prefill_pairs: float
    decode_tokens: float
    decode_context: float
    logits: float
    tokens: float


@dataclass(frozen=True, slots=True)
class RankLoad:
    """What one rank computes in a step, or in a micro-batch of it: the fullest rank's, part by part.

    Args: as of `GroupLoad`; and
        expert_rows: (token, expert) pairs its routed experts compute in a layer.
        active_experts: its experts that have at least one.
        held_experts: physical slots a layer it holds.
    """

    prefill_tokens: float
    prefill_pairs: float
    decode_tokens: float
    decode_context: float
    logits: float
    expert_rows: float
    active_experts: float
    held_experts: float

    @property
    def tokens(self) -> float:
        """Return the rows of both phases."""
        return self.prefill_tokens + self.decode_tokens


class KernelTimes(Protocol):
    """What parts of a forward pass take on a rank."""

    def part(self, part: Part, load: RankLoad) -> Timed:
        """Return what a part takes in one layer."""
        ...


class ExchangeTimes(Protocol):
    """What dispatch and combine of an expert-parallel group take."""

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return what it takes with so many tokens a rank, the fullest receiver getting so many times the mean."""
        ...


@dataclass(frozen=True, slots=True)
class RankShare:
    """How (token, expert) pairs of a batch are shared out over ranks, mean of layers and batches.

    Args:
        max_over_mean: of pairs, the fullest rank over the mean.
        received_max_over_mean: of tokens received over the wire.
        active_experts: of the fullest rank, with at least one pair.
        source: in words.
    """

    max_over_mean: float
    received_max_over_mean: float
    active_experts: float
    source: str


class BalanceCurve(Protocol):
    """How full the fullest rank is, by how much there is to share out."""

    @property
    def held_experts(self) -> int:
        """Return the physical slots a layer that a rank holds."""
        ...

    def at(self, tokens: float) -> RankShare:
        """Return it for batches of so many tokens a rank."""
        ...


@dataclass(frozen=True, slots=True)
class StepTime:
    """What a step takes, and what it is made of.

    Args:
        seconds: from begin to end.
        streams: 1 or 2.
        computing_s: time something is computed; exchange_s: time something travels; exposed_s: time something
            travels and nothing is computed.
        parts: seconds of each part, all layers together (of both streams), by name; and "dispatch", "combine".
        bounds: what bounds each of them where most of its time goes.
        sources: of each.
    """

    seconds: float
    streams: Literal[1, 2]
    computing_s: float
    exchange_s: float
    exposed_s: float
    parts: dict[str, float]
    bounds: dict[str, str]
    sources: dict[str, str]
