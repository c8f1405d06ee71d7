"""`fourlane fabric latency`: the budget hop by hop, as tables and JSON, and wrong options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from fourlane.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def _latency(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fabric", "latency", *arguments])


def test_the_idle_budget_of_the_low_latency_cluster_is_shown_hop_by_hop() -> None:
    result = _latency("--idle")
    assert result.exit_code == 0
    assert "cross leaf, host0 to host1, 64B: 3.435 us" in result.output
    assert "cx732q-n (Teralynx 7)" in result.output
    assert "[4] Asterfusion" in result.output


def test_json_holds_every_piece_with_its_source_and_the_published_rows() -> None:
    result = _latency("--cluster", "h800-10k", "--idle", "--published", "--json")
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
    result = _latency("--idle", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_latency_under_load_is_simulated_beside_the_idle_budget_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "latency.svg"
    loads = ["--load", "0.1", "--load", "0.5"]
    changes = ["--set", "servers=4", "--set", "hpn.leaf.count=8", "--set", "hpn.spine.count=4"]
    result = _latency(*loads, *changes, "--background", "0.1", "--json", "-o", str(picture))
    assert result.exit_code == 0
    light, heavy = json.loads(result.output)["loaded"]
    assert light["p50_us"] <= light["p99_us"] < heavy["p99_us"] <= heavy["p999_us"]
    assert heavy["packets"] > 4 * light["packets"]
    assert "Expert packets under load" in picture.read_text()


def test_what_takes_longer_than_allowed_fails_the_check() -> None:
    assert _latency("--idle", "--within", "4us").exit_code == 0
    result = _latency("--idle", "--within", "3us")
    assert result.exit_code == 1
    assert "expected at most 3us, got cross leaf, idle: 3.435 us" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--load", "1.2"], "load: expected above 0 and below 1, all traffic together, got 1.2"),
        (["--load", "nan"], "got nan"),
        (["--load", "0.6", "--background", "0.5"], "below 0.5, all traffic together, got 0.6"),
        (["--message", "7408"], "--message: expected a size"),
        (["--within", "4"], "--within: expected a duration"),
    ],
)
def test_a_load_that_cannot_be_is_refused(arguments: list[str], message: str) -> None:
    result = _latency(*arguments)
    assert result.exit_code == 2
    assert message in result.output
