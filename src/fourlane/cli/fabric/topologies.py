"""Which topology the subcommands of `fourlane fabric` work on: a plain one, by its builder."""

from __future__ import annotations

import inspect
import tomllib
from typing import TYPE_CHECKING

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.twin.fabric.topology import Topology

__all__ = ["BUILDERS", "built"]

BUILDERS = ("single-switch", "leaf-spine", "fat-tree")


def built(builder: str, overrides: Sequence[str]) -> Topology:
    """Build a plain topology; each override gives one of the builder's arguments.

    Raises:
        SpecError: an argument is unknown or wrong.
    """
    from fourlane.twin.fabric import builders

    make: Callable[..., Topology] = getattr(builders, builder.replace("-", "_"))
    counts = [name for name, each in inspect.signature(make).parameters.items() if each.kind != each.VAR_KEYWORD]
    known = [*counts, *builders.Equipment.__annotations__]
    arguments: dict[str, object] = {}
    faults: list[str] = []
    for override in overrides:
        name, equals, text = (part.strip() for part in override.partition("="))
        if not equals or name not in known:
            faults.append(f"--set {override}: expected NAME=VALUE with a name of {builder}: {', '.join(known)}")
        else:
            arguments[name] = _value(text)
    if faults:
        raise SpecError(*faults)
    return make(**arguments)


def _value(text: str) -> object:
    """Return a TOML value, or the text itself."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if found.keys() == {"value"} else text
