"""Launch files for plain servers: a list of addresses, and scripts that start everything over ssh."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from fourlane.planner.launch import PHASES
from fourlane.planner.targets.shell import comment, layout_lines, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.planner.launch import Commands, Launch

__all__ = ["render"]

_AS_THEY_ARE = ("start.sh", "start-all.sh", "start-router.sh", "stop-all.sh")


def render(launch: Launch, commands: Commands, scripts: Mapping[str, str], image: str) -> dict[str, str]:
    """Return the scripts, what starts them, and a list of servers to fill in."""
    del image  # of containers, which there are none of
    files = dict(scripts)
    for name in _AS_THEY_ARE:
        files[name] = _text(name)
    files["layout.sh"] = _layout(launch, commands)
    files["servers.txt"] = _servers(launch)
    return files


def _text(name: str) -> str:
    return resources.files("fourlane.planner").joinpath("files", name).read_text(encoding="utf-8")


def _layout(launch: Launch, commands: Commands) -> str:
    lines = [
        "# shellcheck shell=bash disable=SC2034  # figures are read by their names",
        comment("Which unit runs where. Read by the other scripts; servers.txt names the servers."),
        f"MODEL=${{MODEL:-{quoted(launch.model)}}}",
        f"endpoints={commands.endpoints}  # which servers of a unit answer HTTP",
        f"all_servers={launch.servers}",
        *layout_lines(launch, PHASES),
    ]
    return "\n".join(lines) + "\n" + _text("layout.sh")


def _servers(launch: Launch) -> str:
    lines = [
        "# Addresses of the servers, one a line, in this order. Names or addresses that all of them can reach.",
        "# Those of one unit should be near each other: on the same leaves, in the same pod.",
    ]
    number = 0
    for phase in PHASES:
        layout = launch.layouts[phase]
        for first in range(0, layout.units, layout.per_server):
            last = min(first + layout.per_server, layout.units) - 1
            which = f"unit {first}" if first == last else f"units {first} to {last}"
            lines.append(f"# {phase} {which}")
            for _ in range(layout.servers):
                lines.append(f"server{number:04}")
                number += 1
    return "\n".join(lines) + "\n"
