"""`fourlane twin` as a person runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner

from fourlane.cli import main
from fourlane.spec.load import load_twin, twins

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["twin", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_show_lists_the_catalog() -> None:
    assert [line.split()[0] for line in run("show").splitlines()] == twins()


def test_what_show_writes_is_the_same_twin(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(run("show", "deepseek-512", "--set", "decode.units=1"))
    assert load_twin(file) == load_twin("deepseek-512", overrides=["decode.units=1"])


def test_an_unknown_twin_is_wrong_use() -> None:
    assert "did you mean" in run("show", "deepseek-h80", code=2)
