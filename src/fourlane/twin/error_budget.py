"""How much of a published row's throughput hangs on each input that is not exactly known: the error budget.

Each input is moved by its own uncertainty, one after another, and the row worked out anew. Moves are independent, so
together they come to the root of the sum of squares. Not for whether a row is met (`fourlane.twin.serving_validation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fourlane.spec.efficiencies import efficiencies
from fourlane.twin.serving_validation import row_load, row_steps
from fourlane.units import Duration

if TYPE_CHECKING:
    from fourlane.spec.efficiencies import Efficiencies
    from fourlane.twin.published_serving import ServingRow
    from fourlane.twin.times import BalanceCurve, ExchangeTimes, Operation, RankShare, Timed

__all__ = ["INPUTS", "ErrorBudget", "Input", "error_budget"]


class Input(NamedTuple):
    """An input, by how much it may be off, and why so much."""

    name: str
    by: float
    why: str


INPUTS = (
    Input("GEMMs", 0.10, "DeepGEMM's table: shapes of one size differ by more, means by about a tenth"),
    Input("attention", 0.10, "tables of two versions of the same kernels"),
    Input("memory", 0.05, "fits of single tables"),
    Input("kernel", 0.25, "one fit on grouped GEMMs; graphs and fusion differ, and how many kernels a part has"),
    Input("sustained", 0.05, "fits on two rows of one chip, 0.79 and 0.85"),
    Input("processors", 0.25, "20 to 30 of 132 are usual for communication"),
    Input("exchange", 0.05, "the bar that rows of dispatch and combine are held to"),
    Input("balance", 0.10, "of the fullest rank's excess over the mean: popularity is drawn, not known"),
)


@dataclass(frozen=True, slots=True)
class ErrorBudget:
    """What a row's throughput loses if each input is off by its uncertainty to the worse.

    Args:
        row: its name.
        shares: of throughput, by input.
    """

    row: str
    shares: dict[str, float]

    @property
    def together(self) -> float:
        """Return the share that all come to, each as likely to help as to harm."""
        return math.sqrt(sum(share**2 for share in self.shares.values()))


def error_budget(row: ServingRow) -> ErrorBudget:
    """Return the error budget of a published row of throughput."""
    load, usual = row_load(row), row_steps(row)
    before_s = usual.step(load).seconds
    shares: dict[str, float] = {}
    for each in INPUTS:
        if each.name == "exchange":
            moved = replace(usual, exchange=_Slower(usual.exchange, 1 + each.by))
        elif each.name == "balance":
            moved = replace(usual, balance=_Fuller(usual.balance, 1 + each.by))
        else:
            moved = row_steps(row, figures=_worse(efficiencies(row.gpu), each))
        shares[each.name] = 1 - before_s / moved.step(load).seconds
    return ErrorBudget(row.name, shares)


def _worse(figures: Efficiencies, moved: Input) -> Efficiencies:
    names = {
        "GEMMs": ("dense", "grouped"),
        "attention": ("attention_prefill", "attention_decode"),
        "memory": ("memory",),
        "sustained": ("sustained",),
    }.get(moved.name)
    if names is not None:
        return msgspec.structs.replace(figures, **{name: getattr(figures, name) * (1 - moved.by) for name in names})
    if moved.name == "kernel":
        return msgspec.structs.replace(figures, kernel=Duration(round(int(figures.kernel) * (1 + moved.by))))
    more = 1 + moved.by
    return msgspec.structs.replace(
        figures, sm_share_prefill=figures.sm_share_prefill * more, sm_share_decode=figures.sm_share_decode * more
    )


@dataclass(frozen=True, slots=True)
class _Slower:
    exchange: ExchangeTimes
    factor: float

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return a longer time."""
        time = self.exchange.operation(operation, tokens, max_over_mean)
        return replace(time, seconds=time.seconds * self.factor)


@dataclass(frozen=True, slots=True)
class _Fuller:
    balance: BalanceCurve
    factor: float

    @property
    def held_experts(self) -> int:
        """Return the physical slots a layer that a rank holds."""
        return self.balance.held_experts

    def at(self, tokens: float) -> RankShare:
        """Return a fullest rank that exceeds the mean by more."""
        share = self.balance.at(tokens)
        pairs, received = share.max_over_mean - 1, share.received_max_over_mean - 1
        return replace(share, max_over_mean=1 + pairs * self.factor, received_max_over_mean=1 + received * self.factor)
