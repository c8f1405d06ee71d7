"""`fourlane lanes config-db` as a person runs it on what was rendered, on a device's tables, and on neither."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from fourlane.cli import main

if TYPE_CHECKING:
    from pathlib import Path

OF_LEAF = ("--cluster", "h800-ft", "--switch", "hpn-leaf")


def config_db(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["lanes", "config-db", *map(str, arguments)], input=stdin)


@pytest.fixture
def rendered(tmp_path: Path) -> list[Path]:
    arguments = ["lanes", "render", "--cluster", "h800-ft", "--target", "sonic", "-o", str(tmp_path)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return [tmp_path / "sonic/hpn-leaf.ports.json", tmp_path / "sonic/hpn-leaf.config_db.json"]


def changed(file: Path, table: str, key: str, **fields: Any) -> None:
    tables = json.loads(file.read_text())
    tables[table].setdefault(key, {}).update(fields)
    file.write_text(json.dumps(tables))


def test_what_was_rendered_is_proven_and_as_planned(rendered: list[Path]) -> None:
    out = config_db(*rendered, *OF_LEAF)
    assert (out.exit_code, out.output) == (0, "0 errors of meaning, 0 differences from the plan\n")
    out = config_db(*rendered)
    assert (out.exit_code, out.output) == (0, "0 errors of meaning, nothing to compare with\n")


def test_errors_and_differences_are_told_and_end_with_1(rendered: list[Path]) -> None:
    changed(rendered[1], "SCHEDULER", "fourlane_expert", weight="60")
    out = config_db(*rendered, *OF_LEAF)
    assert out.exit_code == 1
    assert "weights: QUEUE|Ethernet0 (and 63 ports like it): weights are" in out.output
    assert "Ethernet0 and 95 more: expert.weight: planned 70, found 60" in out.output
    told = json.loads(config_db(*rendered, *OF_LEAF, "--json").output)
    assert {finding["check"] for finding in told["findings"]} == {"weights"}
    assert len(told["differences"]) == 1


def test_another_plan_is_compared_with_by_set(rendered: list[Path]) -> None:
    out = config_db(*rendered, *OF_LEAF, "--set", "classes.expert.alpha=2.0")
    assert out.exit_code == 1
    assert "expert.alpha: planned 2, found 1" in out.output


def test_tables_are_read_from_standard_input() -> None:
    out = config_db("-", stdin='{"ARS_PROFILE": {}}')
    assert (out.exit_code, out.output.splitlines()[-1]) == (1, "1 error of meaning, nothing to compare with")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (("-",), "[]", "-: expected an object of tables, got list"),
        (("-",), "{", "-: expected SONiC tables as JSON, but: "),
        (("absent.json",), None, "absent.json: expected SONiC tables as JSON, but: "),
        (("-", "--switch", "hpn-leaf"), "{}", "--cluster: expected beside the other options"),
        (("-", "--cluster", "lab"), "{}", "--switch: expected beside the other options"),
        (
            ("-", "--cluster", "lab", "--switch", "x"),
            "{}",
            '--switch: expected one of hpn-leaf, dcn-leaf, those of lab; got "x"',
        ),
    ],
)
def test_what_cannot_be_read_ends_with_2(arguments: tuple[str, ...], stdin: str | None, message: str) -> None:
    out = config_db(*arguments, stdin=stdin)
    assert out.exit_code == 2
    assert message in out.stderr
