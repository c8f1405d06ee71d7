"""Simulated dispatch and combine against published measurements: time or rate, and what limits them.

python -m pytest tests/validation -m slow     # every row, about two minutes on two cores
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from fourlane.twin.fabric.exchange_validation import SimulatedExchange, simulate_exchanges
from fourlane.twin.fabric.expert_kernels import OPERATIONS, ExchangeRow, expert_kernels, published_exchanges

PAGE = Path(__file__).parents[2] / "docs" / "validation" / "fabric-measurements.json"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "validation" / "expert-exchange.toml"
QUICK = (
    "low latency, EP8",
    "low latency with NVLink, EP8",
    "normal, EP8",
    "H100, 128 tokens, 1 node",
    "H100, 64 tokens, 2 nodes",
    "H100, 16 tokens, 4 nodes",
)


def rows_named(*names: str) -> list[ExchangeRow]:
    by_name = {row.name: row for row in published_exchanges()}
    return [by_name[name] for name in names]


def told(found: list[SimulatedExchange]) -> list[str]:
    """Return what is not as published."""
    return [
        f"{each.row.name}: {each.operation}: {each.figure:.1f}, published {each.published} ({each.error:+.1%}); "
        f"limited by {each.bottleneck}, published {each.row.bottleneck}"
        for each in found
        if not each.within
    ]


def test_dispatch_and_combine_take_as_long_as_published_and_for_the_same_reason() -> None:
    found = simulate_exchanges(rows_named(*QUICK))
    assert len(found) == 2 * len(QUICK)
    assert not told(found)
    page = json.loads(PAGE.read_text(encoding="utf-8"))
    for each in found:
        assert each.figure == pytest.approx(page[f"{each.row.name}: {each.operation}"], rel=0.01), "make the page anew"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "row", [row for row in published_exchanges() if row.name not in QUICK], ids=lambda row: row.name
)
def test_every_other_row_is_reproduced_too(row: ExchangeRow) -> None:
    assert not told(simulate_exchanges([row]))


def test_most_rows_are_predicted_not_fitted() -> None:
    fitted = [row.was_fitted(operation) for row in published_exchanges() for operation in OPERATIONS]
    assert sum(fitted) < len(fitted) / 2
    figures = sum(len(kernels.fitted) for kernels in expert_kernels().values())
    assert figures <= 10


def test_tolerances_are_those_asked_for() -> None:
    for row in published_exchanges():
        assert row.tolerance == (0.10 if row.mode == "normal" else 0.05), row.name


@pytest.mark.skipif(not SHARED.exists(), reason=f"no file {SHARED}: published rows as they were collected")
def test_the_rows_are_those_that_were_collected() -> None:
    collected = tomllib.loads(SHARED.read_text(encoding="utf-8"))
    ours = {row.name: [row.published(operation) for operation in OPERATIONS] for row in published_exchanges()}
    theirs = {
        **{f"low latency, EP{row['ep']}": row for row in collected["low_latency"]},
        **{f"low latency with NVLink, EP{row['ep']}": row for row in collected["low_latency_nvlink"]},
        **{f"normal, EP{row['ep']}": row for row in collected["normal"]},
    }
    for name, row in theirs.items():
        unit = "us" if "dispatch_us" in row else "GBps"
        assert ours.pop(name) == [row[f"{operation}_{unit}"] for operation in OPERATIONS], name
    for row in collected["measured_h100"]:
        for nodes, *times in zip(row["nodes"], row["dispatch_us"], row["combine_us"], strict=True):
            assert ours.pop(f"H100, {row['tokens']} tokens, {nodes} node{'s' if nodes > 1 else ''}") == times
    assert not ours
