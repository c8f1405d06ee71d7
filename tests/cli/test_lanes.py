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
from fourlane.lanes.render import TARGETS
from fourlane.spec.load import load_cluster

if TYPE_CHECKING:
    from pathlib import Path

SUBCOMMANDS = ("check", "diff", "explain", "init", "render", "show")


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


def test_show_lists_every_class_and_budgets_every_switch(plan_file: Path) -> None:
    out = lanes("show", plan_file)
    assert out.exit_code == 0
    for said in ("Network hpn", "\nexpert ", "184 (0xB8)", "first, up to 5 %", "Buffer of dcn-spine", "left to share"):
        assert said in out.output
    assert "expert: headroom, 400Gbps over 5m      64  254,976 B   16.32 MB" in out.output


def test_show_tells_the_same_in_json_and_draws_it(plan_file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "lanes.html"
    data = json.loads(lanes("show", plan_file, "--json", "--plot", picture).output)
    assert [row["name"] for row in data["networks"]["dcn"]] == ["kv", "control", "bulk", "default"]
    leaf = data["switches"][0]
    assert leaf["headroom"] + leaf["reserved"] + leaf["shared"] == leaf["buffer"] == 158_220_288
    assert "<svg" in picture.read_text()


def test_explain_gives_every_figure_a_reason_and_a_source(plan_file: Path) -> None:
    out = lanes("explain", "kv", plan_file, "--set", "classes.kv.weight=80")
    assert (out.exit_code, out.output.count("Source: ") >= 14) == (0, True)
    assert "\nweight = 80\n    yours; default 90, because most of its own network" in out.output
    fields = [line["field"] for line in json.loads(lanes("explain", "pfc", "--json").output)]
    assert fields == ["watchdog", "poll", "detection", "restoration", "action", "shared_headroom", "oversubscription"]


def test_explain_refuses_a_class_there_is_not() -> None:
    out = lanes("explain", "experts")
    assert (out.exit_code, out.stdout, out.stderr.count("\n")) == (2, "", 1)
    assert (
        'CLASS: expected one of expert, collective, kv, control, bulk, default, pfc, trimming, got "experts"'
        in out.stderr
    )


def test_diff_exits_with_1_where_plans_differ(plan_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(plan_file.read_text().replace("weight = 70", "weight = 65"))
    assert lanes("diff", plan_file, plan_file).exit_code == 0
    assert lanes("diff", plan_file).output == f"{plan_file} and default of h800-ft say the same\n"
    out = lanes("diff", plan_file, other)
    assert (out.exit_code, out.output.splitlines()[1].split()) == (1, ["classes.expert.weight", "70", "65"])
    out = lanes("diff", plan_file, other, "--json")
    assert json.loads(out.output) == [{"place": "classes.expert.weight", "a": "70", "b": "65"}]


def test_render_writes_every_target_and_lists_what_it_wrote(plan_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rendered"
    out = lanes("render", plan_file, "--cluster", "h800-ft", "--target", "all", "-o", folder)
    written = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    assert out.exit_code == 0
    assert out.stdout.splitlines() == [f"wrote {path}" for path in written]
    assert f"{folder}/json/plan.json" in written
    again = lanes("render", plan_file, "--cluster", "h800-ft", "--target", "json", "-o", folder)
    assert (again.exit_code, len(again.stdout.splitlines())) == (0, 2)


def test_render_refuses_a_plan_with_errors_and_writes_nothing(plan_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rendered"
    out = lanes(
        "render", plan_file, "--cluster", "h800-ft", "--target", "json", "-o", folder, "--set", "classes.kv.dscp=46"
    )
    assert (out.exit_code, out.stdout, folder.exists()) == (1, "", False)
    assert "error: dscp-once: classes.kv: DSCP 46 is claimed by expert already" in out.stderr
    assert out.stderr.endswith("error: nothing was written; mend the errors above\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "ios"], "--target: expected all or some of"),
        (["--target", "json", "--set", "classes.expert.queue=99"], "expected a whole number from 0 to 15, got 99"),
        (["--target", "json", "--set", "classes.kv.queue=5"], "queue 5 is that of expert already"),
        (["--target", "json", "--set", "classes.expert.dscp=64"], "from 0 to 63, got 64"),
        (["--target", "json", "--set", "classes.cache.dscp=1"], 'classes.cache: expected "expert" or'),
        (["--target", "json", "--set", "classes.kv.ecn.kmin=400"], "classes.kv.ecn.kmin: expected a size such as"),
    ],
)
def test_render_refuses_bad_input_in_one_sentence_and_writes_nothing(
    arguments: list[str], said: str, plan_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "rendered"
    out = lanes("render", plan_file, "--cluster", "h800-ft", "-o", folder, *arguments)
    assert (out.exit_code, out.stdout, folder.exists(), out.stderr.count("\n")) == (2, "", False, 1)
    assert said in out.stderr


def test_render_lists_its_targets() -> None:
    out = lanes("render", "--targets")
    assert out.exit_code == 0
    assert [line.split()[0] for line in out.output.splitlines()] == list(TARGETS)


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
    assert "h800-ft, lab, low-latency, one-network" in out.stderr
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


def test_a_target_the_cluster_has_no_use_for_is_refused_by_name_and_left_out_of_all(tmp_path: Path) -> None:
    folder = tmp_path / "rendered"
    out = lanes("render", "--cluster", "lab", "--target", "json,sonic", "-o", folder)
    assert (out.exit_code, out.stdout, folder.exists()) == (2, "", False)
    assert "--target sonic: cluster lab has nothing it is for" in out.stderr
    assert lanes("render", "--cluster", "lab", "--target", "all", "-o", folder).exit_code == 0
    assert not (folder / "sonic").exists()


def test_render_names_files_of_an_earlier_plan(tmp_path: Path) -> None:
    old = tmp_path / "json" / "old.json"
    old.parent.mkdir()
    old.write_text("{}")
    out = lanes("render", "--cluster", "lab", "--target", "json", "-o", tmp_path)
    assert f"not of this plan, left as it was: {old}" in out.stdout
    assert old.read_text() == "{}"
