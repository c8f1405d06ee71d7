"""What benchmarks of several parts record: tables, bars and figures, in one JSON file a theme, machine and month.

Each part is measured by a command of its own and replaces its last record; pages are made from the records.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import result_page

from fourlane.report.tables import Table, plain_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = [
    "Bar",
    "Figures",
    "Part",
    "Rows",
    "Section",
    "bar_table",
    "markdown",
    "plain",
    "read_parts",
    "record",
    "results_file",
]


Rows = list[tuple[str, ...]]
Figures = dict[str, Any]


class Bar(msgspec.Struct, frozen=True):
    """A claim, what was wanted of it, what was found, and whether that is enough."""

    claim: str
    wanted: str
    found: str
    met: bool


class Section(msgspec.Struct, frozen=True):
    """A table as it is printed."""

    title: str
    columns: tuple[str, ...]
    rows: Rows


class Part(msgspec.Struct, kw_only=True):
    """What one part measured; `figures` are the numbers that pictures are drawn from."""

    title: str
    text: str
    sections: list[Section]
    bars: list[Bar] = []
    figures: Figures = {}
    command: str = ""
    when: str = ""
    load_average: float = 0.0


def results_file(theme: str = "experts") -> Path:
    """Return this machine's and month's file of records."""
    now = datetime.now(UTC)
    return result_page.FOLDER / f"{theme}_{result_page.hardware_slug()}_{now:%Y%m}.json"


def record(name: str, part: Part, path: Path, *, script: str = "bench_experts.py") -> None:
    """Put a part, measured by a script, into the file of records, in place of its last."""
    part.command = " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]])
    part.when = f"{datetime.now(UTC):%Y-%m-%d}"
    part.load_average = round(os.getloadavg()[0], 1)
    parts = read_parts(path) if path.exists() else {}
    parts[name] = part
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(parts, enc_hook=_plain), indent=1) + b"\n")


def _plain(value: Any) -> Any:
    """Return a scalar of NumPy as Python's."""
    return value.item()


def read_parts(path: Path) -> dict[str, Part]:
    """Return the records of a file by part."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Part])


def plain(part: Part) -> list[str]:
    """Return a part as plain text."""
    lines = [f"## {part.title}", "", part.text, ""]
    for section in part.sections:
        left = frozenset({"load", "over"})
        table = Table(title=section.title, columns=section.columns, rows=tuple(section.rows), left=left)
        lines += [f"    {line}" for line in plain_lines(table)] + [""]
    lines += [f"- {'pass' if bar.met else 'MISS'}: {bar.claim}: {bar.wanted}; found {bar.found}" for bar in part.bars]
    return [*lines, ""] if part.bars else lines


def bar_table(bars: Iterable[Bar]) -> list[str]:
    """Return bars as a table in Markdown."""
    rows = [(bar.claim, bar.wanted, bar.found, "pass" if bar.met else "**miss**") for bar in bars]
    return markdown(("claim", "bar", "found", "verdict"), rows)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
