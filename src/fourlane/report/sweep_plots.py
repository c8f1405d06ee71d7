"""A sweep as a picture: a panel a quantity, over the values of what was varied, a line for each other choice."""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Swept", "plot_sweep", "sweep_figure"]

_COLOURS = (BLUE, ORANGE, GREEN, "#8250df", "#bf3989", "#9a6700", "#0a7ea4", GREY)


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity: by line, its value at each of what was varied; None or infinite where there is none."""

    title: str
    unit: str
    lines: dict[str, list[float | None]]


def plot_sweep(
    paths: Sequence[Path], quantities: Sequence[Swept], *, varied: str, values: Sequence[str], title: str
) -> None:
    """Draw the panels, two a row.

    Args:
        paths: where to; the suffixes say the formats (.png, .svg, .pdf, .html).
        quantities: a panel each.
        varied: what is across: "decode.ranks".
        values: of it, in order; numbers stand at their distance, anything else side by side.
        title: over all panels.

    Raises:
        SpecError: a file cannot be written.
    """
    with sweep_figure(quantities, varied=varied, values=values, title=title) as figure:
        for path in paths:
            save_figure(figure, path)


@contextmanager
def sweep_figure(quantities: Sequence[Swept], *, varied: str, values: Sequence[str], title: str) -> Iterator[Figure]:
    """Make the figure."""
    rows = (len(quantities) + 1) // 2
    with figure_of(title, height=0.9 + 2.5 * rows) as figure:
        grid = figure.add_gridspec(rows, min(2, len(quantities)))
        for place, swept in enumerate(quantities):
            axes = figure.add_subplot(grid[place // 2, place % 2])
            _draw(axes, swept, values)
            axes.set_xlabel(varied)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        yield figure


def _draw(axes: Axes, swept: Swept, values: Sequence[str]) -> None:
    axes.set_title(f"{swept.title} ({swept.unit})" if swept.unit else swept.title)
    at = _numbers(values)
    for place, (name, line) in enumerate(swept.lines.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        known = [(x, y) for x, y in zip(at, line, strict=True) if y is not None and math.isfinite(y)]
        x, y = zip(*known, strict=True) if known else ((), ())
        axes.plot(x, y, "o-", color=colour, markersize=4, label=name)
    axes.set_xticks(at, list(values))
    axes.margins(y=0.1)
    axes.set_ylim(0, axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def _numbers(values: Sequence[str]) -> list[float]:
    """Return where values stand: at what they are, if they are numbers that grow, else one beside the other."""
    try:
        found = [float(value) for value in values]
    except ValueError:
        return [float(place) for place in range(len(values))]
    grows = all(before < after for before, after in itertools.pairwise(found))
    if grows and found[0] > 0 and found[-1] / found[0] >= 8:
        return [math.log2(value) for value in found]
    return found if grows else [float(place) for place in range(len(values))]
