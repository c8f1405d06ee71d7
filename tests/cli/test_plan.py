"""`fourlane plan`: files where they belong, exit codes, messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from fourlane.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_twin_of_the_catalog_is_rendered_into_a_folder(tmp_path: Path) -> None:
    done = run("plan", "render", "deepseek-h800", "--engine", "vllm", "--target", "bash", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "start-all.sh").stat().st_mode & 0o100
    for name in ("README.md", "twin.toml", "pd_router.py", "lanes/lanes.toml", "lanes/nic"):
        assert (tmp_path / name).exists(), name
    again = run(
        "plan", "render", tmp_path / "twin.toml", "--engine", "sglang", "--target", "kubernetes", "-o", tmp_path
    )
    assert again.exit_code == 0, again.output
    assert "20-units.yaml" in again.output


def test_what_cannot_be_launched_is_refused_and_nothing_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("plan", "render", "deepseek-h800", "--engine", "fourlane", "--target", "bash", "-o", out)
    assert done.exit_code == 2
    assert "use --engine sglang or vllm" in done.output
    assert not out.exists()


def test_a_row_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = run("plan", "render", "deepseek-h800", "--row", 2, "--engine", "vllm", "--target", "bash", "-o", tmp_path)
    assert done.exit_code == 2
    assert "has one row, got 2" in done.output
