"""The twin against published results of serving: the bars it must keep, and how it must behave between them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from fourlane.spec.efficiencies import efficiencies
from fourlane.spec.load import load_cluster
from fourlane.spec.twin import Experts
from fourlane.twin.published_serving import BalanceRow, OverlapRow, ServingRow, published_serving
from fourlane.twin.serving_validation import (
    balance_check,
    gemm_checks,
    limit_check,
    overlap_check,
    row_load,
    row_steps,
    throughput,
    throughput_check,
)

if TYPE_CHECKING:
    from fourlane.twin.times import ExchangeTimes, Operation, Timed

PUBLISHED = published_serving()
DECODE = PUBLISHED.row("decode: DeepSeek profile")


@dataclass(frozen=True)
class Quicker:
    """An exchange so many times as quick."""

    exchange: ExchangeTimes
    factor: float

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return the shorter time."""
        time = self.exchange.operation(operation, tokens, max_over_mean)
        return replace(time, seconds=time.seconds / self.factor)


@functools.cache
def gain(row: ServingRow, tokens: int) -> float:
    """Return what two streams gain over one with so many tokens."""
    load = row_load(row, tokens=tokens)
    one, two = (row_steps(row, overlap=overlap).step(load).seconds for overlap in ("never", "always"))  # type: ignore[arg-type]
    return one / two - 1


@pytest.mark.parametrize("row", [row for row in PUBLISHED.rows if row.held], ids=lambda row: row.name)
def test_throughput_of_a_phase_is_within_ten_percent_of_what_was_published(row: ServingRow) -> None:
    check = throughput_check(row)
    assert check.within, f"{check.figure:.0f} tokens/s/GPU, {check.error:+.1%}"
    assert row.tolerance <= 0.10
    assert check.sources


@pytest.mark.parametrize("row", [row for row in PUBLISHED.overlaps if row.held], ids=lambda row: row.name)
def test_two_streams_gain_what_was_published_within_five_points(row: OverlapRow) -> None:
    check = overlap_check(row)
    assert check.figure > 0
    assert check.within, f"{check.figure:.1%}, {check.error:+.1%}"
    assert row.tolerance <= 0.05


@pytest.mark.parametrize("row", [row for row in PUBLISHED.balances if row.held], ids=lambda row: row.name)
def test_perfect_balance_gains_what_was_published_within_five_points(row: BalanceRow) -> None:
    check = balance_check(row)
    assert check.within, f"{check.figure:.1%}, {check.error:+.1%}"


def test_decode_without_computing_takes_14_76_ms_exactly() -> None:
    check = limit_check(PUBLISHED.limits[0])
    assert check.figure == pytest.approx(2 * 61 * 120.96e-3, rel=1e-12)
    assert f"{check.figure:.2f}" == "14.76"


def test_grouped_gemms_take_what_was_measured_at_every_degree_of_expert_parallelism() -> None:
    for check in gemm_checks():
        assert check.within, f"{check.name}: {check.figure:.3f} ms, {check.error:+.1%}"


def test_every_fitted_figure_names_rows_there_are_and_most_rows_are_predictions() -> None:
    known = {row.name for row in PUBLISHED.rows} | {check.name for check in gemm_checks()}
    fitted_on = {
        row for gpu in ("h800", "h100", "ascend-910c") for rows in efficiencies(gpu).fitted.values() for row in rows
    }
    assert fitted_on <= known
    held = {row.name for row in PUBLISHED.rows if row.held}
    assert len(held & fitted_on) <= len(held) / 2


def test_h100_and_h800_are_one_chip_but_for_the_software_that_runs_on_it() -> None:
    one, other = efficiencies("h100"), efficiencies("h800")
    same = msgspec.structs.replace(one, sustained=other.sustained, sources=other.sources, fitted=other.fitted)
    assert same == other


def test_two_streams_lose_in_decode_at_small_batches_and_gain_at_large_ones() -> None:
    gains = [gain(DECODE, sequences) for sequences in (8, 32, 64, 128, 256)]
    assert gains == sorted(gains)
    assert gains[0] < gains[1] < 0
    assert gains[2] < 0.02
    assert gains[-1] > 0.2


def test_a_fast_network_leaves_little_to_hide() -> None:
    row = PUBLISHED.row("prefill: DeepSeek profile")
    load = row_load(row)
    usual = row_steps(row)

    def with_exchange(factor: float) -> float:
        quick = Quicker(usual.exchange, factor)
        one, two = (replace(usual, exchange=quick, overlap=overlap) for overlap in ("never", "always"))
        return one.step(load).seconds / two.step(load).seconds - 1

    gains = [with_exchange(factor) for factor in (1.0, 3.0, 10.0, 100.0)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0.25
    assert gains[-1] < 0.02


def test_decode_throughput_of_a_gpu_falls_slowly_with_the_degree_of_expert_parallelism() -> None:
    """With two slots on each GPU throughout only the exchange grows; with as many replicas, balance suffers, too."""
    even = [
        throughput(msgspec.structs.replace(DECODE, ranks=ranks, redundant_experts=2 * ranks - 256))
        for ranks in (144, 192, 256)
    ]
    assert even == sorted(even, reverse=True)
    assert even[-1] > 0.95 * even[0]
    real = [
        throughput(msgspec.structs.replace(DECODE, ranks=ranks, redundant_experts=32, experts=Experts(lean=0.2)))
        for ranks in (72, 144)
    ]
    assert 0.85 * real[0] < real[1] < real[0]


def test_the_cluster_of_the_rows_has_the_nics_they_were_measured_with() -> None:
    cluster = load_cluster(DECODE.cluster)
    assert cluster.hpn.rate.bytes_per_second == 50e9
    assert {row.cluster for row in PUBLISHED.rows} == {DECODE.cluster}
