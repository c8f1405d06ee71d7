"""`fourlane fabric show`: tables, JSON, and wrong arguments."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from fourlane.cli import main

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_cluster_of_10240_gpus_is_shown_by_tier_and_drawn_pod_by_pod(tmp_path: Path) -> None:
    picture = tmp_path / "fabric.svg"
    result = _show("h800-10k", "-o", str(picture))
    assert result.exit_code == 0
    assert "1,280 servers, 10,240 GPUs" in result.output
    assert "2,048 Tbit/s" in result.output
    drawn = picture.read_text()
    for text in ("128 superspines", "pod 4: 256 servers", "32 leaves", "5,120 x 800Gbps, 100m"):
        assert f"<!-- {text} -->" in drawn or text in drawn


def test_a_small_cluster_is_drawn_server_by_server_and_switch_by_switch(tmp_path: Path) -> None:
    picture = tmp_path / "fabric.html"
    changes = ["--set", "servers=2", "--set", "hpn.leaf.count=8"]
    result = _show("h800-ft", *changes, "-o", str(picture))
    assert result.exit_code == 0
    drawn = picture.read_text()
    for text in ("server 1, NVSwitch", "leaf7", "spine3"):
        assert text in drawn


def test_the_other_network_of_a_cluster_is_shown_on_request() -> None:
    result = _show("h800-ft", "--network", "dcn", "--json")
    assert [network["name"] for network in json.loads(result.output)["networks"]] == ["dcn"]


def test_planes_are_networks_of_their_own() -> None:
    result = _show("--builder", "multi-plane", "--set", "planes=3", "--set", "leaves=2", "--json")
    shown = json.loads(result.output)["networks"]
    assert [(network["name"], network["hosts"]) for network in shown] == [(f"net.{plane}", 16) for plane in range(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["h800-ft", "--builder", "fat-tree"], "expected no cluster beside it, got h800-ft"),
        (["h800-ft", "--set", "servers=70"], "hpn.leaf.down_ports: expected at least 70"),
        (["h800-ft", "-o", "fabric.txt"], "fabric.txt: the plot cannot be written"),
        (["one-network", "--network", "dcn"], "expected one of the networks hpn, got dcn"),
    ],
)
def test_what_cannot_be_shown_is_said(arguments: list[str], message: str) -> None:
    result = _show(*arguments)
    assert result.exit_code == 2
    assert message in result.output
