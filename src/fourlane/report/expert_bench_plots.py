"""Balance of experts as pictures for the page of benchmarks: placements, splits of leaning batches, repairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Compared", "plot_placements", "plot_repairs", "plot_splits"]

_COLOURS = (ORANGE, BLUE, GREEN, "#8250df", "#bf3989", "#9a6700")


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Balance on one load by who placed: (mean layer, worst layer). The last is drawn as a bound."""

    load: str
    balance: dict[str, tuple[float, float]]


def plot_placements(path: Path, by_size: Mapping[str, Sequence[Compared]], *, title: str) -> None:
    """Draw a panel a size and a row a load: a dot for the mean layer, a line to the worst.

    Args:
        path: where to; the suffix says the format.
        by_size: what is compared, by size.
        title: over all panels.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    rows = max(map(len, by_size.values()))
    across = min(2, len(by_size))
    down = -(-len(by_size) // across)
    with figure_of(title, height=0.8 + down * (0.9 + 0.26 * rows)) as figure:
        grid = figure.add_gridspec(down, across)
        for index, (size, compared) in enumerate(by_size.items()):
            axes = figure.add_subplot(grid[index // across, index % across])
            axes.set_title(size)
            _draw_rows(axes, compared)
        _legend_below(figure)
        save_figure(figure, path)


def _draw_rows(axes: Axes, compared: Sequence[Compared]) -> None:
    names = list(compared[0].balance)
    for order, name in enumerate(names):
        bound = order == len(names) - 1
        colour = GREY if bound else _COLOURS[order]
        heights = [row + 0.2 * (order - (len(names) - 1) / 2) for row in range(len(compared))]
        means, worst = zip(*(each.balance[name] for each in compared), strict=True)
        axes.hlines(heights, means, worst, color=colour, linewidth=1.2)
        axes.plot(means, heights, "|" if bound else "o", color=colour, markersize=6 if bound else 4, label=name)
    axes.set_yticks(range(len(compared)), [each.load for each in compared])
    axes.invert_yaxis()
    axes.set_xlabel("max / mean: mean layer, line to the worst")
    axes.set_xlim(left=0.995)


def _legend_below(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def plot_splits(path: Path, by_size: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, title: str) -> None:
    """Draw a panel a size and a line a way: the fullest rank over the mean, by how much batches lean.

    Args:
        path: where to; the suffix says the format.
        by_size: (lean, fullest over mean) by way, by size; the last way is drawn as a bound.
        title: over all panels.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title, height=4.0) as figure:
        grid = figure.add_gridspec(1, len(by_size))
        for index, (size, ways) in enumerate(by_size.items()):
            axes = figure.add_subplot(grid[0, index])
            axes.set_title(size)
            axes.set_xlabel("lean, s.d. of log-popularity")
            for order, (way, points) in enumerate(ways.items()):
                bound = order == len(ways) - 1
                colour = GREY if bound else _COLOURS[order % len(_COLOURS)]
                axes.plot(*zip(*points, strict=True), ":" if bound else "-o", color=colour, markersize=3.5, label=way)
        _legend_below(figure)
        save_figure(figure, path)


def plot_repairs(path: Path, by_size: Mapping[str, Mapping[str, tuple[float, float]]], *, title: str) -> None:
    """Draw a panel a size: balance by experts moved a layer, a dot a way, named.

    Args:
        path: where to; the suffix says the format.
        by_size: (moves, balance) by way, by size.
        title: over all panels.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title, height=3.8) as figure:
        grid = figure.add_gridspec(1, len(by_size))
        for index, (size, ways) in enumerate(by_size.items()):
            axes = figure.add_subplot(grid[0, index])
            axes.set_title(size)
            axes.set_xlabel("experts moved, a layer")
            axes.set_ylabel("max / mean" if index == 0 else "")
            for order, (way, (moves, balance)) in enumerate(ways.items()):
                axes.plot([moves], [balance], "o", color=_COLOURS[order % len(_COLOURS)], label=way)
            axes.set_xlim(left=0)
            axes.legend(loc="best", frameon=False, fontsize=7)
        save_figure(figure, path)
