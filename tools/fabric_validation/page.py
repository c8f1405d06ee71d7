"""What an experiment says, and how pages of `docs/validation` show it: claims with verdicts, tables, plots."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["Claim", "Part", "Plot", "Table", "render", "within"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement that a run can refute."""

    what: str
    theory: str
    ours: str
    bar: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Figures of a run that stand behind its claims."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture: `draw(path)` writes it; `name` is its file's stem."""

    name: str
    caption: str
    draw: Callable[[Path], None]


@dataclass(slots=True)
class Part:
    """One section of a page. `against` heads the column that claims are held to; `figures` are kept for tests."""

    title: str
    text: str
    against: str = "theory"
    claims: list[Claim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[Claim]:
        """Return the claims that the run refuted."""
        return [claim for claim in self.claims if not claim.passed]


def within(what: str, theory: float, ours: float, *, percent: float, digits: int = 3, unit: str = "") -> Claim:
    """Claim that `ours` differs from `theory` by at most `percent`."""
    off = abs(ours / theory - 1) * 100
    suffix = f" {unit}" if unit else ""
    return Claim(
        what,
        f"{theory:.{digits}f}{suffix}",
        f"{ours:.{digits}f}{suffix} ({(ours / theory - 1) * 100:+.2f} %)",
        f"within {percent:g} %",
        off <= percent,
    )


def render(path: Path, head: str, parts: Sequence[Part]) -> None:
    """Write a page, its plots (`images/` beside it), and its figures as JSON where there are any."""
    images = path.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    claims = [claim for part in parts for claim in part.claims]
    passed = sum(claim.passed for claim in claims)
    lines = [head.strip(), "", f"**{passed} of {len(claims)} claims pass.**", ""]
    for part in parts:
        lines += _section(part, images)
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    figures = {name: figure for part in parts for name, figure in part.figures.items()}
    if figures:
        path.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _section(part: Part, images: Path) -> list[str]:
    lines = [f"## {part.title}", "", part.text.strip(), ""]
    if part.claims:
        rows = [(c.what, c.theory, c.ours, c.bar, "pass" if c.passed else "**miss**") for c in part.claims]
        lines += _grid(("claim", part.against, "simulated", "bar", "verdict"), rows)
    for table in part.tables:
        lines += [f"{table.caption}:", "", *_grid(table.columns, table.rows)]
    for plot in part.plots:
        file = images / f"{plot.name}.svg"
        plot.draw(file)
        lines += [f"![{plot.caption}](images/{file.name})", ""]
    for remark in part.remarks:
        lines += [remark.strip(), ""]
    return lines


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    text = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    first, *rest = (f"| {' | '.join(row)} |" for row in text)
    return [first, "|" + "---|" * len(columns), *rest, ""]
