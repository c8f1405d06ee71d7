"""Published results of serving, and how they were measured: throughput, gains of two streams and of balance, a limit.

Not for working them out (`fourlane.twin.serving_validation`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.spec.load import load
from fourlane.spec.reading import Fault
from fourlane.spec.twin import Assumptions, Experts
from fourlane.twin.times import Phase, Timed
from fourlane.units import Rate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.twin.times import Operation

__all__ = [
    "BalanceRow",
    "GroupedGemms",
    "LimitRow",
    "OverlapPart",
    "OverlapRow",
    "PublishedExchange",
    "PublishedServing",
    "ServingRow",
    "grouped_gemms",
    "published_serving",
]

_PUBLISHED = Path(__file__).parent / "published"


class ServingRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published throughput of one phase alone.

    `tokens`: prompt tokens of a step, or sequences, on each rank; `context`: length of prompts, or positions each
    sequence attends to. `dies` of a rank, each with experts of its own. `nodes` the experts' groups are kept in; 0: as
    many as 8 ranks are in each. `shared_routed`: the shared expert is one of those on few ranks that tokens travel to.
    `exchange`: None: by packets on `cluster`. `order` in which two streams take turns; None: the phase's.
    """

    name: str
    phase: Phase
    model: str = "deepseek-v3"
    gpu: str
    cluster: str = "h800-ft"
    ranks: int
    dies: int = 1
    nodes: int = 0
    shared_routed: bool = False
    redundant_experts: int = 0
    tokens: int
    context: int
    experts: Experts
    assumptions: Assumptions = Assumptions()
    exchange: str | None = None
    overlap: Literal["auto", "always"] = "always"
    order: Literal["prefill", "decode"] | None = None
    tokens_per_s_per_gpu: float
    tolerance: float = 0.10
    held: bool = True
    assumed: str
    source: str


class OverlapPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row's load, or that with other tokens and context, and its share of the time with two streams."""

    row: str
    share: float = 1.0
    tokens: int | None = None
    context: int | None = None


class OverlapRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published gain in throughput of two streams over one: from, to."""

    name: str
    parts: tuple[OverlapPart, ...]
    gain: tuple[float, ...]
    tolerance: float = 0.05
    held: bool = True
    assumed: str = "nothing"
    source: str


class BalanceRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published gain in throughput of perfect balance over real balance."""

    name: str
    perfect: str
    real: str
    gain: float
    tolerance: float = 0.05
    held: bool = True
    assumed: str = "as in its rows"
    source: str


class LimitRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published bound: what a decode step takes if computing takes no time."""

    name: str
    hidden: int
    layers: int
    copies: int
    micro_batch_tokens: int
    dispatch_bytes: int
    combine_bytes: int
    rate: Rate
    tpot_ms: float
    source: str


class PublishedExchange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exchange times by bytes over a rate, and a time beside, where no packets are simulated.

    Units:
        dispatch_bytes, combine_bytes: of a copy of a token.
    """

    rate: Rate
    copies: float
    dispatch_bytes: float
    combine_bytes: float
    dispatch_us: float
    combine_us: float
    source: str

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return what it takes with so many tokens a rank, the fullest receiver getting so many times the mean."""
        size, beside_us = (
            (self.dispatch_bytes, self.dispatch_us)
            if operation == "dispatch"
            else (self.combine_bytes, self.combine_us)
        )
        travels_s = tokens * self.copies * size * max_over_mean / self.rate.bytes_per_second
        bound = "nvlink" if travels_s > beside_us / 1e6 else "latency"
        return Timed(travels_s + beside_us / 1e6, bound, self.source)


class PublishedServing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All published rows, and the exchanges that some of them are worked out with."""

    rows: tuple[ServingRow, ...]
    overlaps: tuple[OverlapRow, ...]
    balances: tuple[BalanceRow, ...]
    limits: tuple[LimitRow, ...]
    exchanges: dict[str, PublishedExchange]

    def row(self, name: str) -> ServingRow:
        """Return the row of a name."""
        return next(row for row in self.rows if row.name == name)


class GroupedGemms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Published times of a layer's grouped GEMMs in decode, by degree of expert parallelism.

    `tokens` of all ranks together; `exponent` of the power law by which experts are chosen in the second list.
    """

    tokens: int
    experts: int
    top_k: int
    hidden: int
    expert_inner: int
    gpu: str
    exponent: float
    ranks: tuple[int, ...]
    uniform_ms: tuple[float, ...]
    power_law_ms: tuple[float, ...]
    source: str
    assumed: str


class _Kernels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    grouped_gemm: GroupedGemms


@cache
def published_serving() -> PublishedServing:
    """Return the published rows of serving."""
    return load(_PUBLISHED / "serving.toml", PublishedServing, rules=_faults)


@cache
def grouped_gemms() -> GroupedGemms:
    """Return the published times of grouped GEMMs."""
    return load(_PUBLISHED / "kernels.toml", _Kernels).grouped_gemm


def _faults(read: PublishedServing) -> Iterator[Fault]:
    names = {row.name for row in read.rows}
    for place, row in enumerate(read.rows):
        if row.exchange is not None and row.exchange not in read.exchanges:
            yield Fault(f"rows[{place}].exchange", f"expected one of {', '.join(read.exchanges)}, got {row.exchange}")
    for place, overlap in enumerate(read.overlaps):
        if unknown := sorted({part.row for part in overlap.parts} - names):
            yield Fault(f"overlaps[{place}].parts", f"expected names of rows, got {', '.join(unknown)}")
        if len(overlap.gain) != 2:
            yield Fault(f"overlaps[{place}].gain", f"expected a gain from and to, got {len(overlap.gain)} numbers")
    for place, balance in enumerate(read.balances):
        if unknown := sorted({balance.perfect, balance.real} - names):
            yield Fault(f"balances[{place}]", f"expected names of rows, got {', '.join(unknown)}")
