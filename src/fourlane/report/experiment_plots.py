"""An experiment of the lab as a picture: a row an arrangement, a dot a repetition, a line for the median."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import msgspec

from fourlane.report.plots import BLUE, GREY, ORANGE, figure_of, save_figure
from fourlane.report.tables import number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = ["Panel", "plot_experiment"]


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: by arrangement its values over the repetitions."""

    title: str
    rows: dict[str, list[float]]
    logarithmic: bool = False


def plot_experiment(paths: Sequence[Path], panels: Sequence[Panel], *, title: str) -> None:
    """Draw the panels side by side.

    Args:
        paths: where to; the suffixes say the formats (.png, .svg, .pdf, .html).

    Raises:
        SpecError: a file cannot be written.
    """
    height = 1.5 + 0.45 * max(len(panel.rows) for panel in panels)
    with figure_of(title, height=height) as figure:
        grid = figure.add_gridspec(1, len(panels))
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(grid[0, index])
            _draw(axes, panel)
            axes.tick_params(labelleft=index == 0)
        for path in paths:
            save_figure(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    names = list(panel.rows)
    for place, name in enumerate(names):
        values, at = panel.rows[name], len(names) - 1 - place
        middle = median(values)
        axes.plot(values, [at] * len(values), "o", color=BLUE, alpha=0.45, markersize=4)
        axes.plot([middle, middle], [at - 0.28, at + 0.28], color=ORANGE, linewidth=2.0)
        axes.annotate(
            number(middle), (middle, at + 0.3), (0, 1), textcoords="offset points", ha="center", fontsize=7, color=GREY
        )
    if panel.logarithmic and all(value > 0 for values in panel.rows.values() for value in values):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.set_yticks(range(len(names)), reversed(names))
    axes.set_ylim(-0.6, len(names) - 0.3)
    axes.margins(x=0.15)
