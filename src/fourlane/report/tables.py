"""Tables of measured figures: coloured on a terminal, plain aligned columns in a pipe or a file.

The same data goes to JSON beside the table (`write_json`); a table never holds a figure that the JSON lacks.
"""

from __future__ import annotations

from math import floor, isfinite, log10
from typing import IO, TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

__all__ = [
    "Table",
    "byte_text",
    "console",
    "milliseconds",
    "number",
    "percent",
    "print_table",
    "time_text",
    "write_json",
]

_KIBI = 1024


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of text under a title. The first column is left-aligned, as is every column named in `left`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: expected {len(self.columns)} cells, got {row}")


def console(file: IO[str] | None = None, *, width: int | None = None) -> Console:
    """Make a console that writes to `file` (standard output); plain and without wrapping where it is no terminal."""
    from rich.console import Console

    made = Console(file=file, width=width, highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(file=file, width=width or 120, highlight=False, color_system=None)


def print_table(out: Console, table: Table) -> None:
    """Print a table: with rules and colour on a terminal, as aligned plain text elsewhere."""
    if out.is_terminal:
        _print_rich(out, table)
    else:
        for line in plain_lines(table):
            out.print(line, markup=False, no_wrap=True, overflow="ignore", crop=False)


def plain_lines(table: Table) -> list[str]:
    """Return a table as lines of aligned text without trailing blanks."""
    cells = [table.columns, *table.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns))]
    left = [index == 0 or name in table.left for index, name in enumerate(table.columns)]
    lines = [table.title] if table.title else []
    for row in cells:
        padded = [
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def _print_rich(out: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(title=Text(table.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(table.columns):
        to_left = index == 0 or name in table.left
        rich.add_column(Text(name), justify="left" if to_left else "right", style="" if index == 0 else "cyan")
    for row in table.rows:
        rich.add_row(*(Text(cell) for cell in row))
    out.print(rich)


def write_json(path: Path, data: object) -> None:
    """Write figures as indented JSON.

    Raises:
        SpecError: the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror}") from error


def number(value: float, digits: int = 3) -> str:
    """Write a number with `digits` significant digits, never in exponents: 12.3, 1,234."""
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded == 0:
        return "0"
    decimals = max(0, digits - 1 - floor(log10(abs(rounded))))
    return f"{rounded if decimals else round(value):,.{decimals}f}"


def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds: "12.3 ms"."""
    return f"{number(seconds * 1e3)} ms"


def time_text(seconds: float | None) -> str:
    """Write seconds in the unit that suits them: "1.23 s", "45.6 ms", "7.89 us"; "-" where there are none."""
    if seconds is None or not isfinite(seconds):
        return "-"
    if abs(seconds) >= 1:
        return f"{number(seconds)} s"
    return milliseconds(seconds) if abs(seconds) >= 1e-3 or seconds == 0 else f"{number(seconds * 1e6)} us"


def percent(share: float) -> str:
    """Write a share of 1 in percent: "12.3 %"."""
    return f"{share * 100:.1f} %"


def byte_text(count: float) -> str:
    """Write a measured number of bytes with a binary unit, rounded: "1.50 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < _KIBI:
            return f"{number(count)} {unit}"
        count /= _KIBI
    return f"{number(count)} TiB"
