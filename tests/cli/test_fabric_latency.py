"""`fourlane fabric latency`: the budget hop by hop, as tables and JSON, and wrong options."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from fourlane.cli import main


def _latency(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fabric", "latency", *arguments])


def test_the_idle_budget_of_the_low_latency_cluster_is_shown_hop_by_hop() -> None:
    result = _latency()
    assert result.exit_code == 0
    assert "cross leaf, host0 to host1, 64B: 3.535 us" in result.output
    assert "cx732q-n (Teralynx 7)" in result.output
    assert "[4] Asterfusion" in result.output


def test_json_holds_every_piece_with_its_source_and_the_published_rows() -> None:
    result = _latency("--cluster", "h800-10k", "--published", "--json")
    shown = json.loads(result.output)
    assert [path["name"] for path in shown["paths"]] == ["same leaf", "cross leaf", "cross pod"]
    assert all(row["source"] for path in shown["paths"] for row in path["rows"])
    assert [row["published_us"] for row in shown["published"]] == [3.6, 5.6, 2.8, 3.7, 4.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "10"], "--size: expected a size such as"),
        (["--size", "10B"], "size: expected a packet of 64B to 9064B on the wire, got 10B"),
        (["--cluster", "x"], "x: expected a cluster file, or one of the catalog"),
        (["--cluster", "one-network", "--network", "dcn"], "expected one of the networks hpn, got dcn"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], message: str) -> None:
    result = _latency(*arguments)
    assert result.exit_code == 2
    assert message in result.output
