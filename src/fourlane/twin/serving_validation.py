"""Work out published results of serving and of grouped GEMMs by the twin's own parts; say by how much each is missed.

Throughput of a phase alone, what two streams gain over one, what perfect balance gains over real balance, the bound of
decode without computing, and grouped GEMMs. Not for the network's rows (`twin.fabric.network_validation`,
`twin.fabric.exchange_validation`), nor for tables (`fourlane.twin.validation`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.efficiencies import efficiencies
from fourlane.spec.load import load_cluster
from fourlane.spec.twin import Assumptions, Lanes
from fourlane.twin.exchange.filling import exchange_times
from fourlane.twin.exchange.lanes import lanes_case
from fourlane.twin.exchange.setting import exchange_setting
from fourlane.twin.exchange.table import IdealExchange
from fourlane.twin.expert_balance import ForcedBalance, expert_balance
from fourlane.twin.kernel_times import RooflineTimes
from fourlane.twin.published_serving import grouped_gemms, published_serving
from fourlane.twin.step_model import StepModel, step_figures, tokens_per_step
from fourlane.twin.times import GroupLoad, RankLoad
from fourlane.twin.validation_values import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.spec.architecture import Architecture
    from fourlane.spec.efficiencies import Efficiencies
    from fourlane.twin.published_serving import BalanceRow, GroupedGemms, LimitRow, OverlapPart, OverlapRow, ServingRow
    from fourlane.twin.times import BalanceCurve, ExchangeTimes, RankShare, StepTime

__all__ = [
    "balance_check",
    "gemm_checks",
    "limit_check",
    "overlap_check",
    "row_architecture",
    "row_load",
    "row_steps",
    "serving_checks",
    "throughput",
    "throughput_check",
]

RANKS_PER_NODE = 8
_DRAWS = 200


def serving_checks() -> Iterator[Check]:
    """Yield all published rows of serving, worked out; exchange by packets takes seconds, once."""
    published = published_serving()
    yield from (throughput_check(row) for row in published.rows)
    yield from (overlap_check(row) for row in published.overlaps)
    yield from (balance_check(row) for row in published.balances)
    yield from (limit_check(row) for row in published.limits)


def throughput(row: ServingRow, *, figures: Efficiencies | None = None) -> float:
    """Return the tokens a second and GPU of a row."""
    return _throughput(row, row_steps(row, figures=figures).step(row_load(row)))


def throughput_check(row: ServingRow) -> Check:
    """Return a row's throughput, worked out."""
    step = row_steps(row).step(row_load(row))
    figure = _throughput(row, step)
    error = figure / row.tokens_per_s_per_gpu - 1
    return Check(
        group="serving",
        name=row.name,
        unit="tokens/s/GPU",
        published=f"{row.tokens_per_s_per_gpu:,.0f}",
        figure=figure,
        error=error,
        bar=f"within {row.tolerance:.0%}",
        within=abs(error) <= row.tolerance,
        held=row.held,
        fitted=_fitted(row.gpu, row.name),
        assumed=row.assumed,
        source=row.source,
        sources=step.sources,
    )


def overlap_check(row: OverlapRow) -> Check:
    """Return what two streams gain over one, worked out."""
    gain = _overlap_gain(row.parts)
    least, most = row.gain
    error = min(gain - least, 0.0) + max(gain - most, 0.0)
    return Check(
        group="serving",
        name=row.name,
        unit="gain",
        published=f"{least:.1%}" if least == most else f"{least:.1%} to {most:.1%}",
        figure=gain,
        error=error,
        bar=f"above 0, within {100 * row.tolerance:.0f} points",
        within=gain > 0 and abs(error) <= row.tolerance,
        held=row.held,
        assumed=row.assumed,
        source=row.source,
    )


def balance_check(row: BalanceRow) -> Check:
    """Return what perfect balance gains over real balance, worked out."""
    published = published_serving()
    gain = throughput(published.row(row.perfect)) / throughput(published.row(row.real)) - 1
    return Check(
        group="serving",
        name=row.name,
        unit="gain",
        published=f"{row.gain:.1%}",
        figure=gain,
        error=gain - row.gain,
        bar=f"within {100 * row.tolerance:.0f} points",
        within=abs(gain - row.gain) <= row.tolerance,
        held=row.held,
        assumed=row.assumed,
        source=row.source,
        sources={"experts": _balance(published.row(row.real)).at(1.0).source},
    )


def limit_check(row: LimitRow) -> Check:
    """Return the bound of decode without computing, by the same walk of the model's stages; in milliseconds."""
    model = msgspec.structs.replace(
        load_architecture("deepseek-v3"), hidden=row.hidden, layers=row.layers, dense_layers=0, top_k=row.copies
    )
    exchange = IdealExchange(
        row.hidden * row.dispatch_bytes, row.hidden * row.combine_bytes, row.copies, row.rate.bytes_per_second
    )
    nothing = Assumptions(zero_compute=True)
    balance = ForcedBalance(2, model.top_k)
    steps = StepModel(
        model, "decode", RooflineTimes(model, "h800"), exchange, balance, overlap="always", assumptions=nothing
    )
    tokens = 2 * row.micro_batch_tokens
    step = steps.step(GroupLoad(128, 0, 0, tokens, 0, tokens, tokens))
    figure = step.seconds * 1e3
    return Check(
        group="serving",
        name=row.name,
        unit="ms",
        published=f"{row.tpot_ms:.2f}",
        figure=figure,
        error=figure / row.tpot_ms - 1,
        bar="to the last digit published",
        within=round(figure, 2) == row.tpot_ms,
        assumed="no dense layers, the shared expert one of nine that every token is sent to: as the source counts",
        source=row.source,
        sources=step.sources,
    )


def gemm_checks() -> Iterator[Check]:
    """Yield grouped GEMMs of a decode layer by degree of expert parallelism, in milliseconds.

    Experts chosen evenly, and by a power law, on the rank that has most. A kernel alone: nothing is taken off for a
    running service.
    """
    rows = grouped_gemms()
    alone = msgspec.structs.replace(efficiencies(rows.gpu), sustained=1.0)
    times = RooflineTimes(load_architecture("deepseek-v3"), rows.gpu, figures=alone)
    for choice, published_ms in (("", rows.uniform_ms), (", power law", rows.power_law_ms)):
        for ranks, published in zip(rows.ranks, published_ms, strict=True):
            pairs, active = _fullest_by_power_law(rows, ranks) if choice else _even(rows, ranks)
            found = times.part("experts", RankLoad(0, 0, 1, 0, 0, pairs, active, rows.experts / ranks))
            name, error = f"grouped GEMM, EP{ranks}{choice}", found.seconds * 1e3 / published - 1
            yield Check(
                group="kernels",
                name=name,
                unit="ms",
                published=f"{published:g}",
                figure=found.seconds * 1e3,
                error=error,
                bar="within 10%",
                within=abs(error) <= 0.10,
                fitted=_fitted(rows.gpu, name),
                assumed=rows.assumed,
                source=rows.source,
                sources={"experts": found.source},
            )


def _even(rows: GroupedGemms, ranks: int) -> tuple[float, float]:
    """Return the (token, expert) pairs of a rank, and its experts that have any, if all experts get the same."""
    return rows.tokens * rows.top_k / ranks, min(rows.experts, rows.tokens * rows.top_k) / ranks


def _fullest_by_power_law(rows: GroupedGemms, ranks: int) -> tuple[float, float]:
    """Return those of the fullest rank, mean of draws: tokens of experts follow a power law between 1 and a bound."""
    rng = np.random.default_rng(0)
    power = 1 - rows.exponent
    longest = (0.8 * rows.tokens) ** power
    found = np.zeros((_DRAWS, 2))
    for draw in range(_DRAWS):
        tokens_E = ((longest - 1) * rng.random(rows.experts) + 1) ** (1 / power)
        pairs_GE = np.round(tokens_E / tokens_E.sum() * rows.tokens * rows.top_k).reshape(ranks, -1)
        fullest_E = pairs_GE[pairs_GE.sum(axis=1).argmax()]
        found[draw] = fullest_E.sum(), (fullest_E > 0).sum()
    pairs, active = found.mean(axis=0).tolist()
    return pairs, active


# A row as a group's step ---------------------------------------------------------------------------------------------


def row_load(row: ServingRow, *, tokens: int | None = None, context: int | None = None) -> GroupLoad:
    """Return the step of a row, or that of other tokens (or sequences) and context."""
    count, length = tokens or row.tokens, context or row.context
    if row.phase == "prefill":
        return GroupLoad(row.ranks, count, count * length / 2, 0, 0, count / length, count)
    rows = count * (1 + row.assumptions.mtp_tokens)
    return GroupLoad(row.ranks, 0, 0, rows, count * length, rows, rows)


def row_steps(
    row: ServingRow,
    *,
    overlap: Literal["auto", "never", "always"] | None = None,
    figures: Efficiencies | None = None,
    exchange: ExchangeTimes | None = None,
    balance: BalanceCurve | None = None,
) -> StepModel:
    """Return the steps of a row's groups.

    Args:
        row: published.
        overlap: one stream or two; None: as the row was measured.
        figures: other efficiencies than the catalog's.
        exchange: other exchange times than the row's.
        balance: other balance than the row's.
    """
    model = row_architecture(row)
    return StepModel(
        model,
        row.phase,
        RooflineTimes(model, row.gpu, row.assumptions, figures),
        exchange or _exchange(row),
        balance or _balance(row),
        overlap=overlap or row.overlap,
        assumptions=row.assumptions,
        figures=step_figures(row.phase, row.gpu, row.assumptions, figures),
        turns=row.order,
    )


def row_architecture(row: ServingRow) -> Architecture:
    """Return the row's model; a shared expert that tokens travel to is one more choice of each."""
    model = load_architecture(row.model)
    if not row.shared_routed:
        return model
    return msgspec.structs.replace(
        model,
        top_k=model.top_k + model.shared_experts,
        shared_experts=0,
        groups=1,
        top_groups=1,
    )


def _throughput(row: ServingRow, step: StepTime) -> float:
    return row.tokens * (tokens_per_step(row.assumptions) if row.phase == "decode" else 1.0) / step.seconds


@cache
def _exchange(row: ServingRow) -> ExchangeTimes:
    model = row_architecture(row)
    if row.exchange is not None:
        found = published_serving().exchanges[row.exchange]
        return msgspec.structs.replace(found, copies=float(model.top_k))
    cluster = load_cluster(row.cluster)
    setting = exchange_setting(
        model,
        cluster,
        ranks=row.ranks,
        phase=row.phase,
        lanes=lanes_case(Lanes(), cluster),
        gpu=row.gpu,
        dispatch=row.assumptions.dispatch,
        redundant_experts=row.redundant_experts,
    )
    return exchange_times(setting)


@cache
def _balance(row: ServingRow) -> BalanceCurve:
    """Return how full the fullest rank is: of dies, where a rank has several, each with experts of its own."""
    curve = expert_balance(
        row_architecture(row),
        row.ranks * row.dies,
        row.redundant_experts,
        row.experts,
        nodes=row.nodes or max(1, row.ranks // RANKS_PER_NODE),
        phase=row.phase,
    )
    return curve if row.dies == 1 else _OfDies(curve, row.dies)


@dataclass(frozen=True, slots=True)
class _OfDies:
    """The balance of dies, for ranks of several dies: as full as their fullest die, with the experts of all."""

    curve: BalanceCurve
    dies: int

    @property
    def held_experts(self) -> int:
        """Return the physical slots a layer that all dies of a rank hold."""
        return self.curve.held_experts * self.dies

    def at(self, tokens: float) -> RankShare:
        """Return the fullest die's share, for batches of so many tokens a rank."""
        share = self.curve.at(tokens / self.dies)
        return replace(share, active_experts=share.active_experts * self.dies)


def _overlap_gain(parts: tuple[OverlapPart, ...]) -> float:
    """Return by how much less time parts take with two streams than with one, by their shares of the time with two."""
    published = published_serving()
    one = two = 0.0
    for part in parts:
        row = published.row(part.row)
        load = row_load(row, tokens=part.tokens, context=part.context)
        seconds = {
            streams: row_steps(row, overlap=overlap).step(load).seconds
            for streams, overlap in ((1, "never"), (2, "always"))
        }
        one += part.share * seconds[1] / seconds[2]
        two += part.share
    return one / two - 1


def _fitted(gpu: str, name: str) -> tuple[str, ...]:
    return tuple(figure for figure, rows in efficiencies(gpu).fitted.items() if name in rows)
