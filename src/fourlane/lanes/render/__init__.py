"""Write a lane plan in the words of each device and library: one target, one module, files as text.

A renderer is a pure function of plan and cluster that returns relative paths and their text. It takes
a plan for sound: `fourlane.lanes.check` comes first. Not for writing files (`fourlane.lanes.render.folder`).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

__all__ = ["TARGETS", "Target", "render"]


@dataclass(frozen=True, slots=True)
class Target:
    """What can be rendered: a line about it, and the module whose `render_<name>` does it."""

    summary: str
    module: str


TARGETS: Mapping[str, Target] = {
    "sonic": Target("config_db.json tables for SONiC switches", "fourlane.lanes.render.sonic"),
    "nvue": Target("NVUE commands for Cumulus switches; not run on a device", "fourlane.lanes.render.nvue"),
    "eos": Target("configuration for Arista EOS switches; not run on a device", "fourlane.lanes.render.eos"),
    "nic": Target("a shell script a network that checks and sets its NICs", "fourlane.lanes.render.nic"),
    "env": Target("environment files for each role and library, and all of them as JSON", "fourlane.lanes.render.env"),
    "host": Target(
        "a shell script a network that gives Linux host interfaces their lanes", "fourlane.lanes.render.host_script"
    ),
    "json": Target("the plan as JSON, with its schema", "fourlane.lanes.render.export"),
}


def render(plan: LanePlan, cluster: Cluster, target: str) -> dict[str, str]:
    """Render a plan for one target.

    Returns:
        Text by relative path, all below a folder of the target's name, in order of paths; empty where the
        cluster has nothing of the kind.
    """
    function = getattr(importlib.import_module(TARGETS[target].module), f"render_{target}")
    files: dict[str, str] = function(plan, cluster)
    return {f"{target}/{path.removeprefix(f'{target}/')}": text for path, text in sorted(files.items())}
