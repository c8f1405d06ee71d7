"""Which options programs have: own copies of what their parsers report, and a check of commands against them.

A parser would take a prefix of an option for the option; here a name must be exact. Not for what options mean.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fourlane.planner.launch import Expanded
from fourlane.spec.load import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.planner.launch import Command

__all__ = ["Flag", "FlagTable", "flag_faults", "flag_table"]


class Flag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An option: `switch`, it takes no value; `choices` those it takes (empty: any)."""

    switch: bool = False
    choices: tuple[str, ...] = ()


class FlagTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of an engine's programs that plans use: its server, its router, its benchmark."""

    engine: str
    version: str
    source: str
    programs: dict[str, dict[str, Flag]]


@cache
def flag_table(engine: str) -> FlagTable:
    """Return an engine's table."""
    return load(Path(__file__).parent / f"{engine}.toml", FlagTable)


def flag_faults(command: Command, flags: Mapping[str, Flag]) -> list[str]:
    """Return what is wrong with a command's options: names that are not exact, values that are no choice."""
    faults: list[str] = []
    for option in command.options:
        flag = flags.get(option.name)
        if flag is None:
            faults.append(f"{option.name}: no option of this program")
        elif flag.switch and option.values:
            faults.append(f"{option.name}: takes no value, got {' '.join(option.values)}")
        elif not flag.switch and not option.values:
            faults.append(f"{option.name}: takes a value, got none")
        elif flag.choices:
            faults += [
                f"{option.name}: expected one of {', '.join(flag.choices)}, got {value}"
                for value in option.values
                if not isinstance(value, Expanded) and value not in flag.choices
            ]
    return faults
