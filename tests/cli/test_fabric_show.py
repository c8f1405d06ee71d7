"""`fourlane fabric show`: tables, JSON, and wrong arguments."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from fourlane.cli import main


def _show(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fabric", "show", *arguments])


def test_a_fat_tree_is_shown_with_its_switches_and_bisection() -> None:
    result = _show("--builder", "fat-tree", "--set", "k=4", "--set", "rate=100Gbps")
    assert result.exit_code == 0
    assert "fat_tree(4): 16 servers, 16 GPUs, 16 hosts, 20 switches" in result.output
    assert "superspine" in result.output
    assert "0.8 Tbit/s" in result.output


def test_json_holds_what_the_tables_show() -> None:
    result = _show("--builder", "leaf-spine", "--set", "leaves=2", "--set", "spines=4", "--json")
    shown = json.loads(result.output)
    assert shown["networks"][0]["bisection"] == "1600Gbps"
    assert shown["tiers"][0]["oversubscription"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "k=4"], "expected NAME=VALUE with a name of leaf-spine: leaves, hosts_per_leaf"),
        (["--set", "leaves"], "expected NAME=VALUE"),
        (["--set", "rate=400"], "rate: expected a rate"),
        (["--set", "cut_through=yes"], "cut_through: expected true or false, got 'yes'"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], message: str) -> None:
    result = _show("--builder", "leaf-spine", *arguments)
    assert result.exit_code == 2
    assert message in result.output
