"""Which scenario the subcommands of `fourlane fabric` simulate: one with a name, of the catalog, or of a file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import fourlane
from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.twin.fabric.scenario import Scenario

__all__ = ["scenario_of"]


def scenario_of(text: str, overrides: Sequence[str]) -> Scenario:
    """Return the scenario that an argument means: a name of `NAMED` or of the catalog, or else a file.

    Raises:
        SpecError: there is none of them, or the scenario or an override is wrong.
    """
    from fourlane.twin.fabric.named import NAMED, named_scenario
    from fourlane.twin.fabric.scenario_file import load_scenario

    file = Path(text)
    if text in NAMED:
        return named_scenario(text, overrides)
    if not file.suffix and not file.exists():
        return load_scenario(_in_catalog(text), overrides=overrides)
    return load_scenario(file, overrides=overrides)


def _in_catalog(name: str) -> Path:
    from fourlane.twin.fabric.named import NAMED

    folder = Path(fourlane.__file__).parent / "spec" / "catalog" / "scenarios"
    catalog = sorted(file.stem for file in folder.glob("*.toml"))
    if name not in catalog:
        known = [*NAMED, *catalog]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f' (did you mean "{close[0]}"?)' if close else ""
        raise SpecError(f"{name}: expected a scenario file or one of {', '.join(known)}, found neither{hint}")
    return folder / f"{name}.toml"
