"""Targets that a plan is rendered for: one module each, whose `render` makes files of an engine's commands."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.planner.launch import Commands, Launch

__all__ = ["TARGETS", "Target", "files_of"]


@dataclass(frozen=True, slots=True)
class Target:
    """A target: a line about it, and the module that knows it."""

    summary: str
    module: str


TARGETS: Mapping[str, Target] = {
    "bash": Target("scripts that start everything over ssh", "fourlane.planner.targets.bash"),
    "kubernetes": Target("manifests: StatefulSets, Services, ConfigMaps", "fourlane.planner.targets.kubernetes"),
}


def files_of(launch: Launch, commands: Commands, scripts: Mapping[str, str], target: str, image: str) -> dict[str, str]:
    """Return the files of a target.

    Args:
        launch: the launch.
        commands: what its engine runs.
        scripts: what every target runs: scripts, their environment, their files, by relative path.
        target: a name of `TARGETS`.
        image: of containers, where there are some.

    Returns:
        Text by relative path.
    """
    module = importlib.import_module(TARGETS[target].module)
    found: dict[str, str] = module.render(launch, commands, scripts, image)
    return found
