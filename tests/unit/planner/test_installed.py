"""The check against an installed engine: what it asks, what it makes of the answers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from launches import rendered, twin

from fourlane.errors import CheckFailed, EnvironmentMissing, SpecError
from fourlane.planner.installed import check_installed

if TYPE_CHECKING:
    from pathlib import Path

PARSER = """
import argparse
class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        for name in {names!r}:
            parser.add_argument(name, nargs="*")
"""


def stand_in(folder: Path, names: list[str], version: str = "0.5.23") -> str:
    """Make a Python that has a package of the engine's name with a parser of these options; return its path."""
    package = folder / "site" / "sglang" / "srt"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "server_args.py").write_text(PARSER.format(names=names), encoding="utf-8")
    about = folder / "site" / f"sglang-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n", encoding="utf-8")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/site exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return str(python)


def options_of(engine: str) -> list[str]:
    commands = rendered(twin(), engine).commands
    return sorted({option.name for command in commands.phases.values() for option in command.options})


def test_a_parser_that_has_every_option_takes_the_commands(tmp_path: Path) -> None:
    python = stand_in(tmp_path, options_of("sglang"))
    assert check_installed(rendered(twin(), "sglang"), "sglang", python) == [
        f"sglang 0.5.23 of {python} takes the options of all 2 phases"
    ]


def test_an_option_that_is_only_a_prefix_of_one_is_refused(tmp_path: Path) -> None:
    names = [f"{name}-longer" if name == "--page-size" else name for name in options_of("sglang")]
    with pytest.raises(CheckFailed, match="--page-size: no option"):
        check_installed(rendered(twin(), "sglang"), "sglang", stand_in(tmp_path, names))


def test_another_version_is_told(tmp_path: Path) -> None:
    lines = check_installed(rendered(twin(), "sglang"), "sglang", stand_in(tmp_path, options_of("sglang"), "0.6.0"))
    assert "written for sglang 0.5.23" in lines[-1]


def test_where_the_engine_is_not_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="cannot say which options vllm has"):
        check_installed(rendered(twin(), "vllm"), "vllm", stand_in(tmp_path, []))
    with pytest.raises(EnvironmentMissing, match="expected a Python"):
        check_installed(rendered(twin(), "vllm"), "vllm", str(tmp_path / "none"))


def test_fourlane_has_no_parser_to_be_asked() -> None:
    with pytest.raises(SpecError, match="--check-installed"):
        check_installed(rendered(twin(), "vllm"), "fourlane", sys.executable)
