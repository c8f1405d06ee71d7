"""The guide to lanes tells the truth: its examples print what it shows, its tables name what there is."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fourlane.lanes.check import CHECKS
from fourlane.lanes.render import TARGETS

GUIDE = Path(__file__).parents[2] / "docs/guides/lanes.md"
TEXT = GUIDE.read_text(encoding="utf-8")
WIDE = {**os.environ, "COLUMNS": "100"}
SESSION = "".join(re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


def commands() -> list[tuple[str, list[str]]]:
    """Return the commands of the guide's examples, in order, each with the lines shown below it."""
    found: list[tuple[str, list[str]]] = []
    for line in SESSION.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def fits(shown: list[str], printed: list[str]) -> bool:
    """Tell whether printed lines are those shown, where "..." stands for any number of lines."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(fits(shown[1:], printed[skipped:]) for skipped in range(len(printed) + 1))
    return bool(printed) and printed[0].rstrip() == shown[0] and fits(shown[1:], printed[1:])


def run(command: str, folder: Path) -> list[str]:
    """Run a command and return what it prints, errors last; `fourlane` is this one."""
    words = shlex.split(command)
    if words[0] == "fourlane":
        words[:1] = [sys.executable, "-m", "fourlane"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60, check=False, env=WIDE)
    assert done.returncode in (0, 1), done.stderr
    return (done.stdout + done.stderr).splitlines()


def test_the_examples_print_what_the_guide_shows(tmp_path: Path) -> None:
    there = commands()
    assert len(there) >= 6
    for command, shown in there:
        printed = run(command, tmp_path)
        assert fits(shown, printed), "\n".join([command, *printed])


def test_the_table_of_checks_is_that_of_the_program() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (.*) \|$", TEXT.partition("## The checks")[2].partition("## An")[0], re.MULTILINE
    )
    assert dict(rows) == CHECKS


def test_the_table_of_targets_is_that_of_the_program() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \| (.*) \|$", TEXT.partition("## Rendering")[2], re.MULTILINE)
    assert dict(rows) == {name: target.summary for name, target in TARGETS.items()}


@pytest.mark.parametrize(
    ("shown", "printed", "fit"),
    [
        (["a", "..."], ["a", "b", "c"], True),
        (["...", "c"], ["a", "b", "c"], True),
        (["...", "b"], ["a", "b", "c"], False),
        (["a"], [], False),
        (["a", "...", "c"], ["a", "c"], True),
    ],
)
def test_lines_left_out_may_be_any_but_those_shown_must_be_there(
    shown: list[str], printed: list[str], fit: bool
) -> None:
    assert fits(shown, printed) is fit


def test_the_readme_counts_the_checks_there_are() -> None:
    readme = (GUIDE.parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"{len(CHECKS)} checks" in readme
