"""Write an engine's table of options anew from what its parser reports.

    python tools/record_engine_flags.py vllm options.json > new.toml

`options.json` holds `options`, a list of {flags, default, choices} as argparse has them. Only options that the table
has already are kept; add a new one to the table by hand, then run this. What it says of other programs stays.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from fourlane.planner.engines.flags import Flag, FlagTable, flag_table
from fourlane.spec.writing import inline


def is_switch(option: dict[str, object]) -> bool:
    """Tell whether an option takes no value, by its default and whether there is a --no- form of it."""
    flags = option["flags"]
    assert isinstance(flags, list)
    return option["default"] in ("False", "True") or any(str(flag).startswith("--no-") for flag in flags)


def recorded(table: FlagTable, options: list[dict[str, object]]) -> dict[str, Flag]:
    """Return the server's options as the JSON has them.

    Raises:
        SystemExit: one is gone.
    """
    by_name = {str(flag): option for option in options for flag in option["flags"]}  # type: ignore[union-attr]
    gone = [name for name in table.programs["server"] if name not in by_name]
    if gone:
        raise SystemExit(f"no longer an option: {', '.join(gone)}")
    return {
        name: Flag(
            switch=is_switch(by_name[name]),
            choices=tuple(str(choice) for choice in by_name[name]["choices"] or ()),  # type: ignore[union-attr]
        )
        for name in sorted(table.programs["server"])
    }


def rendered(table: FlagTable) -> str:
    """Write a table, an option a line."""
    lines = [f"{name} = {inline(getattr(table, name))}" for name in ("engine", "version", "source")]
    for program, flags in table.programs.items():
        lines += ["", f"[programs.{program}]"]
        for name, flag in sorted(flags.items()):
            what = {key: value for key, value in msgspec.structs.asdict(flag).items() if value}
            lines.append(f"{name} = {inline(what)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read, replace the server's options, write."""
    engine, path = sys.argv[1:]
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    table = flag_table(engine)
    programs = {**table.programs, "server": recorded(table, found["options"])}
    sys.stdout.write(rendered(msgspec.structs.replace(table, source=found["source"], programs=programs)))


if __name__ == "__main__":
    main()
