"""The ladder as a picture: what each step of the network does to latencies and to KV bandwidth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure
from fourlane.report.tables import number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = ["Bar", "Panel", "plot_ladder"]


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One value at one step, its extremes over the repetitions, and its ratio to step 1 (None: not shown)."""

    value: float
    lowest: float
    highest: float
    ratio: float | None = None


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity: by name of what is drawn ("p50", "p99") its bar at each step."""

    title: str
    unit: str
    bars: dict[str, list[Bar]]
    limit: float | None = None
    """A line that no bar can pass, such as 1 for a fraction of the line."""


def plot_ladder(paths: Sequence[Path], panels: Sequence[Panel], *, steps: Sequence[str], title: str) -> None:
    """Draw the panels, two a row, with the steps from left to right.

    Args:
        paths: where to; the suffixes say the formats (.png, .svg, .pdf, .html).
        steps: their labels.

    Raises:
        SpecError: a file cannot be written.
    """
    rows = (len(panels) + 1) // 2
    with figure_of(title, height=0.7 + 3.1 * rows) as figure:
        grid = figure.add_gridspec(rows, 2)
        for index, panel in enumerate(panels):
            _draw(figure.add_subplot(grid[index // 2, index % 2]), panel, steps)
        for path in paths:
            save_figure(figure, path)


def _draw(axes: Axes, panel: Panel, steps: Sequence[str]) -> None:
    axes.set_title(f"{panel.title} ({panel.unit})" if panel.unit else panel.title)
    width = 0.8 / len(panel.bars)
    colours = (GREEN,) if len(panel.bars) == 1 else (BLUE, ORANGE)
    for place, ((name, bars), colour) in enumerate(zip(panel.bars.items(), colours, strict=True)):
        at = [step + (place - (len(panel.bars) - 1) / 2) * width for step in range(len(bars))]
        values = [bar.value for bar in bars]
        spans = [[bar.value - bar.lowest for bar in bars], [bar.highest - bar.value for bar in bars]]
        axes.bar(at, values, width * 0.92, color=colour, alpha=0.85, label=name)
        axes.errorbar(at, values, yerr=spans, fmt="none", ecolor=GREY, elinewidth=0.9, capsize=2)
        for x, bar in zip(at, bars, strict=True):
            if bar.ratio is not None:
                text = f"{number(bar.ratio, 2)}x"
                axes.annotate(text, (x, bar.highest), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    if panel.limit is not None:
        axes.axhline(panel.limit, color=GREY, linestyle="--", linewidth=1.0)
    axes.set_xticks(range(len(steps)), steps, fontsize=7)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    if len(panel.bars) > 1:
        axes.legend(loc="upper right", frameon=False, ncols=len(panel.bars))
