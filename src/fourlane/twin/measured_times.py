"""Times of a hardware profile behind the protocols of the twin: parts of passes, exchange, KV path, memory.

Between numbers of rows that were measured there are straight lines. Not for how anything is measured
(`fourlane.engine.calibration`).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.twin.times import Timed

if TYPE_CHECKING:
    from fourlane.policy.stages import Part
    from fourlane.spec.architecture import Architecture, KvType
    from fourlane.spec.hardware_profile import HardwareProfile, MeasuredPart, MeasuredPhase
    from fourlane.spec.twin import TwinPool
    from fourlane.twin.times import Operation, Phase, RankLoad

__all__ = [
    "MeasuredExchange",
    "MeasuredKvPath",
    "MeasuredMemory",
    "MeasuredTimes",
    "PassLoad",
    "check_measured_for",
    "pass_seconds",
    "seconds_of",
]

_INSIDE: dict[str, str] = {"router": "attention 1", "shared expert": "attention 1"}
"""Parts that were measured together with another, which comes before them and hands over after them."""


def seconds_of(part: MeasuredPart, rows: float, attended: float = 0.0) -> float:
    """Return what so many rows take, that attend to so many positions.

    Below the least number measured it takes as long as that: a step costs something whatever is in it.
    """
    return _between(part.rows, part.seconds, rows) + part.attended_s * attended


def _between(rows: tuple[float, ...], seconds: tuple[float, ...], at: float) -> float:
    if at <= rows[0] or len(rows) == 1:
        return seconds[0] if at > 0 else 0.0
    after = min(bisect_left(rows, at), len(rows) - 1)
    low, high = rows[after - 1], rows[after]
    return seconds[after - 1] + (seconds[after] - seconds[after - 1]) * (at - low) / (high - low)


def _phase(profile: HardwareProfile, phase: Phase) -> MeasuredPhase:
    return profile.prefill if phase == "prefill" else profile.decode


@dataclass(frozen=True, slots=True)
class MeasuredTimes:
    """What parts take, as measured (`twin.times.KernelTimes`).

    Rows of a step with prompts are timed as prefill, all of them, those of others as decode. What steps take beside
    their passes counts as output. Experts are as uneven as they were when they were measured, on the fullest rank.
    """

    profile: HardwareProfile

    def part(self, part: Part, load: RankLoad) -> Timed:
        """Return what a part takes in one layer."""
        phase = _phase(self.profile, "prefill" if load.prefill_tokens > 0 else "decode")
        if part in _INSIDE:
            return Timed(0.0, "measured", f"{self.profile.label}, with {_INSIDE[part]}")
        return Timed(self._seconds(part, phase, load), "measured", self.profile.label)

    def _seconds(self, part: Part, phase: MeasuredPhase, load: RankLoad) -> float:
        if part == "output":
            tokens = load.expert_rows / self.profile.architecture.top_k * self.profile.ranks
            return seconds_of(phase.parts["output"], load.logits) + seconds_of(phase.beside, tokens)
        if part.startswith("experts"):
            seconds = seconds_of(phase.parts["experts"], load.expert_rows)
            return seconds if part == "experts" else seconds / 2
        found = phase.parts.get(part)
        if found is None:
            return 0.0
        if part != "attention 1":
            return seconds_of(found, load.tokens)
        prefill, decode = (each.parts["attention 1"].attended_s for each in (self.profile.prefill, self.profile.decode))
        attended_s = prefill * load.prefill_pairs + decode * load.decode_context
        return seconds_of(found, load.tokens) + attended_s


@dataclass(frozen=True, slots=True)
class MeasuredExchange:
    """What dispatch and combine take, as measured (`twin.times.ExchangeTimes`).

    Waiting for the fullest rank is its computing, not the exchange: how uneven receivers are does not matter here.
    """

    profile: HardwareProfile
    phase: Phase

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return what it takes with so many tokens a rank."""
        del max_over_mean
        table = _phase(self.profile, self.phase).exchange.get(operation)
        seconds = seconds_of(table, tokens) if table is not None else 0.0
        return Timed(seconds, "measured", f"{self.profile.label}, {self.profile.exchange}")


@dataclass(frozen=True, slots=True)
class MeasuredKvPath:
    """How KV goes from a prefill to a decode rank, as measured (`twin.assembly_parts.KvTransfer`)."""

    profile: HardwareProfile

    @property
    def out_rate(self) -> float:
        """Return the bytes a second out of a prefill rank."""
        return self.profile.kv.bytes_per_s

    @property
    def in_rate(self) -> float:
        """Return the bytes a second into a decode rank."""
        return self.profile.kv.bytes_per_s

    @property
    def latency_s(self) -> float:
        """Return the seconds from the last byte until decoding may begin."""
        return self.profile.kv.latency_s

    @property
    def source(self) -> str:
        """Return where these come from."""
        return f"{self.profile.label}, {self.profile.kv.transport}"

    def seconds(self, size: float) -> float:
        """Return what a transfer of so many bytes takes alone."""
        return self.latency_s + size / self.out_rate

    def background(self, rate: float) -> float:
        """Return the share of a NIC that KV takes from expert traffic: none inside a host."""
        del rate
        return 0.0


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """What a rank's memory is used for on a host, whose memory all ranks share: weights and the KV cache asked for.

    Units:
        bytes; `kv_blocks` in blocks.
    """

    weights: int
    kv: int
    reserve: int
    kv_blocks: int
    free: int = 0

    @classmethod
    def of(
        cls, architecture: Architecture, pool: TwinPool, *, weights: int, kv: KvType, block_size: int
    ) -> MeasuredMemory:
        """Return it for a pool, which says how much KV cache its ranks have.

        Raises:
            SpecError: it does not say so, or not enough for one block.
        """
        token_bytes = architecture.kv_bytes_per_token(kv)
        block = block_size * token_bytes
        if pool.kv_memory is None or int(pool.kv_memory) < block:
            found = "no such field" if pool.kv_memory is None else f"{int(pool.kv_memory)} bytes"
            raise SpecError(
                f"kv_memory: expected at least a block of {block} bytes, got {found}; a hardware profile does not say "
                "what memory is left, so say it, as deployments do"
            )
        return cls(weights, int(pool.kv_memory), 0, int(pool.kv_memory) // block)


def check_measured_for(profile: HardwareProfile, architecture: Architecture, ranks: dict[str, int]) -> None:
    """See that a profile was measured with this model and as many ranks.

    Args:
        profile: as read.
        architecture: of the model to be simulated.
        ranks: of a unit, by phase.

    Raises:
        SpecError: it was not.
    """
    faults = []
    shape = ("layers", "hidden", "vocabulary", "attention", "experts", "top_k", "expert_inner")
    unlike = [name for name in shape if getattr(profile.architecture, name) != getattr(architecture, name)]
    if unlike:
        faults.append(
            f"hardware: {profile.name} was measured with {profile.model}, and {architecture.name} differs in "
            f"{', '.join(unlike)}; measure with it: fourlane twin calibrate"
        )
    faults += [
        f"{phase}.ranks: expected units of {profile.ranks} ranks as the hardware profile {profile.name} was measured "
        f"with, got {count}; measure with as many: fourlane twin calibrate"
        for phase, count in ranks.items()
        if count != profile.ranks
    ]
    if faults:
        raise SpecError(*faults)


@dataclass(frozen=True, slots=True)
class PassLoad:
    """Rows, positions attended to and logits of the fullest rank; rows of the mean rank."""

    rows: float
    attended: float
    logits: float
    mean: float


def pass_seconds(measured: MeasuredPhase, architecture: Architecture, load: PassLoad) -> float:
    """Return what a pass takes, with nothing else on the machine: its parts and its exchange, all layers."""
    parts = measured.parts
    each = seconds_of(parts["attention 0"], load.rows) + seconds_of(parts["attention 1"], load.rows, load.attended)
    experts = seconds_of(parts["experts"], load.mean * architecture.top_k)
    travels = sum(seconds_of(table, load.mean) for table in measured.exchange.values())
    ends = seconds_of(parts["output"], load.logits)
    if "embedding" in parts:
        ends += seconds_of(parts["embedding"], load.rows)
    dense = seconds_of(parts["mlp"], load.rows) if architecture.dense_layers else 0.0
    moe_layers = architecture.layers - architecture.dense_layers
    return architecture.layers * each + moe_layers * (experts + travels) + architecture.dense_layers * dense + ends
