"""Render a plan as environment files: for each role and library a file to source, for each role all of it as JSON."""

from __future__ import annotations

import shlex
from textwrap import fill
from typing import TYPE_CHECKING

import msgspec

from fourlane.lanes.environment.variables import ROLES, wanted_variables

if TYPE_CHECKING:
    from fourlane.lanes.environment.variables import LibraryVariables, Role, Variable
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

__all__ = ["render_env"]

_HOW = {
    "prefill": "prefill ranks",
    "decode": "decode ranks",
    "training": "training and weight updates, which move no KV cache",
}


def render_env(plan: LanePlan, cluster: Cluster) -> dict[str, str]:
    """Write `<role>/<library>.sh` for every library that carries a class of the role, and `<role>.json`."""
    files: dict[str, str] = {}
    for role in ROLES:
        wanted = wanted_variables(plan, cluster, role)
        for library, part in wanted.items():
            files[f"{role}/{library}.sh"] = _file(plan, cluster, role, part)
        encoded = msgspec.json.encode(list(wanted.values()))
        files[f"{role}.json"] = msgspec.json.format(encoded, indent=2).decode() + "\n"
    return files


def _file(plan: LanePlan, cluster: Cluster, role: Role, part: LibraryVariables) -> str:
    title = f"{part.library} for {_HOW[role]} of {cluster.name}, as the lane plan {plan.name} says."
    head = [
        _comment(" ".join(title.split())),
        _comment(
            "Written by fourlane lanes render --target env: change the plan, not this file. Source it before start."
        ),
        *(_comment(note) for note in part.notes),
    ]
    return "".join([*head, *("\n" + _export(variable) for variable in part.variables)])


def _export(variable: Variable) -> str:
    since = f" From {variable.since} on." if variable.since else ""
    said = f"{variable.traffic_class} ({variable.unit}): {variable.why}.{since}"
    return f"{_comment(said)}export {variable.name}={_quoted(variable.value)}\n"


def _quoted(value: str) -> str:
    """Quote what a shell might read otherwise: also "=mlx5_0", which zsh takes for a command's path."""
    return f"'{value}'" if value.startswith("=") else shlex.quote(value)


def _comment(text: str) -> str:
    return fill(text, width=116, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n"
