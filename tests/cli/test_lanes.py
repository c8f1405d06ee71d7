"""`fourlane lanes` as a person runs it: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from fourlane.cli import main
from fourlane.lanes.check import CHECKS
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import load_plan
from fourlane.spec.load import load_cluster

if TYPE_CHECKING:
    from pathlib import Path

SUBCOMMANDS = ("check", "init")


def lanes(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["lanes", *map(str, arguments)])


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    file = tmp_path / "lanes.toml"
    assert lanes("init", "-o", file).exit_code == 0
    return file


def test_help_lists_every_subcommand() -> None:
    out = lanes("--help")
    assert out.exit_code == 0
    for name in SUBCOMMANDS:
        assert f"\n  {name} " in out.output


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help_with_examples(name: str) -> None:
    assert f"\n    fourlane lanes {name}" in lanes(name, "--help").output


@pytest.mark.parametrize("name", ["h800-ft", "lab", "one-network"])
def test_what_init_writes_is_the_default_plan_and_passes(name: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    out = lanes("init", "--cluster", name, "-o", file)
    assert (out.exit_code, f"fourlane lanes check {file} --cluster {name}" in out.output) == (0, True)
    assert load_plan(file) == default_plan(load_cluster(name))
    assert lanes("check", file, "--cluster", name).exit_code == 0


def test_init_replaces_a_file_only_when_told_to(plan_file: Path) -> None:
    plan_file.write_text("mine")
    out = lanes("init", "-o", plan_file)
    assert (out.exit_code, plan_file.read_text()) == (2, "mine")
    assert "--force" in out.stderr
    assert lanes("init", "-o", plan_file, "--force").exit_code == 0
    assert plan_file.read_text() == lanes("init", "-o", "-").output


def test_check_shows_every_check_with_its_result(plan_file: Path) -> None:
    out = lanes("check", plan_file, "--cluster", "h800-ft")
    assert out.exit_code == 0
    for name in CHECKS:
        assert f"\n{name} " in out.output
    assert "warning: adaptive-routing: classes.expert.routing on hpn" in out.output


def test_check_exits_with_1_on_an_error_and_when_strict_on_a_warning(plan_file: Path) -> None:
    out = lanes("check", plan_file, "--cluster", "h800-ft", "--set", "pfc.watchdog=false")
    assert (out.exit_code, out.stderr) == (1, "error: 2 checks did not pass on cluster h800-ft\n")
    assert "error: watchdog: pfc.watchdog" in out.stdout
    assert "mend:  set pfc.watchdog = true" in out.stdout
    assert lanes("check", plan_file, "--cluster", "h800-ft", "--strict").exit_code == 1
    assert lanes("check", "--cluster", "one-network", "--strict").exit_code == 0


def test_check_tells_the_same_in_json(plan_file: Path) -> None:
    out = lanes("check", plan_file, "--cluster", "h800-ft", "--json", "--set", "classes.expert.weight=71")
    data = json.loads(out.stdout)
    results = {check["check"]: check["result"] for check in data["checks"]}
    assert (out.exit_code, list(results), results["weights"], results["buffer"]) == (1, list(CHECKS), "error", "pass")
    (finding,) = [finding for finding in data["findings"] if finding["check"] == "weights"]
    assert finding["found"].endswith("= 101, not 100")


def test_a_plan_that_does_not_fit_is_refused_with_its_budget() -> None:
    out = lanes("check", "--cluster", "h800-ft", "--set", "pfc.headroom=5MB")
    assert out.exit_code == 1
    assert "error: buffer: hpn-leaf (sn5600)" in out.stdout
    assert "of 158.2 MB" in out.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("classes.experts.dscp=1", 'classes.experts: expected "expert" or'),
        ("classes.expert.reserved=64", "classes.expert.reserved: expected a size such as"),
        ("classes.expert.dscp=64", "classes.expert.dscp: expected a whole number from 0 to 63, got 64"),
        ("classes.kv.queue=5", "classes.kv.queue: queue 5 is that of expert already"),
        ("classes.kv.colour=red", "classes.kv.colour: unknown key"),
        ("pfc", "--set pfc: expected path=value"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_sentence(change: str, said: str, plan_file: Path) -> None:
    for arguments in (["check", plan_file], ["check"]):
        out = lanes(*arguments, "--cluster", "h800-ft", "--set", change)
        assert (out.exit_code, out.stdout) == (2, "")
        assert out.stderr.startswith("error: ")
        assert said in out.stderr
        assert out.stderr.count("\n") == 1


def test_what_is_no_cluster_is_refused_in_one_sentence(plan_file: Path, tmp_path: Path) -> None:
    out = lanes("check", plan_file, "--cluster", "h900")
    assert (out.exit_code, out.stderr.count("\n")) == (2, 1)
    assert "h800-ft, lab, one-network" in out.stderr
    wrong = tmp_path / "cluster.toml"
    text = lanes("init", "-o", "-").output
    wrong.write_text(text)
    out = lanes("check", plan_file, "--cluster", wrong)
    assert out.exit_code == 2
    assert "cluster.toml: hpn: expected a table, but it is missing" in out.stderr
    rate = tmp_path / "rate.toml"
    rate.write_text(CLUSTER_WITHOUT_UNIT)
    out = lanes("check", plan_file, "--cluster", rate)
    assert out.exit_code == 2
    assert out.stderr == (
        'error: rate.toml: hpn.rate: expected a rate such as "400Gbps", got "400" '
        '(a bare number has no unit; write "400Gbps", "400GB/s" or "400Mbps")\n'
    )


CLUSTER_WITHOUT_UNIT = """
name = "small"
servers = 2
hpn = {nic = "connectx-7", rate = "400", interfaces = ["a"], leaf = {switch = "sn5600", count = 1, down_ports = 2}}
"""
