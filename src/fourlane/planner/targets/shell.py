"""Commands as shell scripts: an option a line, with why it is there; a dry run prints instead of running.

The same scripts run on servers and in containers; what starts them (`bash`, `kubernetes`) sets where they are.
"""

from __future__ import annotations

import shlex
from textwrap import fill
from typing import TYPE_CHECKING

from fourlane.planner.launch import Expanded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fourlane.planner.launch import Command, Commands, Launch, Option
    from fourlane.twin.times import Phase

__all__ = ["comment", "layout_lines", "quoted", "script", "scripts_of"]

_WIDTH = 116
_KNOWN: dict[str, str] = {
    "MODEL": "what is served: a folder, or a name on Hugging Face",
    "HEAD": "address of the first server of the unit",
    "HOST": "address of this server",
    "UNIT": "number of the unit in its phase",
    "NODE": "number of this server in its unit",
    "SLOT": "number of the unit among those on this server",
    "GATEWAY": "address of what takes requests",
    "PREFILL": "prefill endpoints, each address:slot",
    "DECODE": "decode endpoints, each address:slot",
    "URL": "of what takes requests",
}
_OF_UNITS = ("MODEL", "HEAD", "HOST", "UNIT", "NODE", "SLOT", "GATEWAY")


def quoted(word: str) -> str:
    """Write a word for a shell: what it shall expand between double quotes, all else as it is."""
    return f'"{word}"' if isinstance(word, Expanded) else shlex.quote(word)


def comment(text: str) -> str:
    """Write a sentence as comment lines."""
    return fill(text, width=_WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def script(title: str, command: Command, *, needs: Sequence[str], sources: Sequence[str] = ()) -> str:
    """Write a command as a bash script.

    Args:
        title: a sentence or two.
        command: what it runs.
        needs: variables that whoever starts it sets; names of a fixed list.
        sources: files with environment to read first, relative to the script.
    """
    lines = ["#!/usr/bin/env bash", comment(title), comment("DRY_RUN=1 prints the command in place of running it.")]
    lines += ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")"', ""]
    lines += [f': "${{{name}:?{_KNOWN[name]}}}"' for name in needs]
    if sources:
        lines += ["", "# The lane plan, in the words of the libraries that carry traffic."]
        lines += [f". {path}" for path in sources]
    if command.environment:
        lines += ["", "# Beside it."]
        lines += [f"export {one.name}={quoted(one.value)}  # {one.why}" for one in command.environment]
    lines += ["", "arguments=(", *_aligned(command.options), ")"]
    if command.prepare:
        lines += ["", *command.prepare]
    program = " ".join(quoted(word) for word in command.program)
    lines += [
        "",
        'if [ -n "${DRY_RUN:-}" ]; then',
        f"  printf '%q ' {program} \"${{arguments[@]}}\"; echo",
        "  exit 0",
        "fi",
        f'exec {program} "${{arguments[@]}}"',
    ]
    return "\n".join(lines) + "\n"


def _aligned(options: Iterable[Option]) -> list[str]:
    written = [(" ".join([option.name, *map(quoted, option.values)]), option.why) for option in options]
    width = min(60, max((len(text) for text, _ in written), default=0))
    return [f"  {text.ljust(width)}  # {why}" for text, why in written]


def scripts_of(
    launch: Launch, commands: Commands, environment: Sequence[str], benchmarks: Mapping[str, Command]
) -> dict[str, str]:
    """Return what every target runs: a script a phase, the router's, the benchmarks'.

    Args:
        launch: the launch.
        commands: what its engine runs.
        environment: paths of the lane plan's files for phases, `lanes/env/PHASE/LIBRARY.sh`.
        benchmarks: by name of their script.
    """
    found = {}
    for phase, command in commands.phases.items():
        title = f"{commands.engine}: this server's part of a {phase} unit of {launch.twin.name}."
        sources = sorted(path for path in environment if f"/{phase}/" in path)
        found[f"{phase}.sh"] = script(title, command, needs=_OF_UNITS, sources=sources)
    title = f"{commands.engine}: what takes the requests of {launch.twin.name}, on port {commands.router_port}."
    needs = ("MODEL",) if commands.ports is None else ("MODEL", "PREFILL", "DECODE")
    found["router.sh"] = script(title, commands.router, needs=needs)
    for name, command in benchmarks.items():
        found[name] = script(f"The planned load of {launch.twin.name}.", command, needs=("MODEL", "URL"))
    return found


def layout_lines(launch: Launch, phases: Iterable[Phase]) -> list[str]:
    """Write where units run as shell variables."""
    lines: list[str] = []
    for phase in phases:
        layout = launch.layouts[phase]
        figures = (
            ("units", layout.units, "units"),
            ("servers", layout.servers, "servers of each"),
            ("per_server", layout.per_server, "units that share a server"),
            ("gpus", layout.gpus, "GPUs of a unit on each of its servers"),
            ("first", layout.first, "the first unit's first server"),
        )
        lines += [f"{f'{phase}_{name}={value}'.ljust(24)}# {what}" for name, value, what in figures]
    return lines
