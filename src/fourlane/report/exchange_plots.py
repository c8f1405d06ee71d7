"""All-to-alls as a picture: how long they take over the bytes of a pair, a panel a number of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = ["Line", "plot_exchange"]

_COLOURS = (ORANGE, BLUE, GREEN, "#8250df", "#bf3989")
_DASHES = ("--", ":")
_PANELS_A_ROW = 3


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One way of exchanging: medians, and between which most operations were.

    Units:
        sizes: bytes a pair of ranks, ascending; seconds: by size; band: 10th and 90th percentile by size, or none.
    """

    name: str
    sizes: list[int]
    seconds: list[float]
    band: list[tuple[float, float]] = []
    yardstick: bool = False


def plot_exchange(path: Path, panels: Mapping[str, Sequence[Line]], *, title: str) -> None:
    """Draw time over size, both logarithmic, a panel for each title.

    Args:
        path: where to; the suffix says the format (.html, .png, .svg, .pdf).
        panels: lines by the panel's title; yardsticks are drawn broken.
        title: of the whole.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    rows = -(-len(panels) // _PANELS_A_ROW)
    with figure_of(title, height=0.6 + 3.4 * rows) as figure:
        grid = figure.add_gridspec(rows, min(len(panels), _PANELS_A_ROW))
        first = None
        for place, (name, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(grid[divmod(place, _PANELS_A_ROW)], sharey=first)
            first = first or axes
            _draw(axes, name, lines)
            if place % _PANELS_A_ROW == 0:
                axes.set_ylabel("microseconds")
        handles, labels = first.get_legend_handles_labels() if first is not None else ([], [])
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        save_figure(figure, path)


def _draw(axes: Axes, title: str, lines: Sequence[Line]) -> None:
    axes.set_title(title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("a pair of ranks")
    colours, dashes = iter(_COLOURS * len(lines)), iter(_DASHES * len(lines))
    for line in lines:
        colour = GREY if line.yardstick else next(colours)
        dash = next(dashes) if line.yardstick else "-"
        axes.plot(line.sizes, _us(line.seconds), dash, color=colour, marker="o", markersize=3.5, label=line.name)
        if line.band:
            low, high = zip(*line.band, strict=True)
            axes.fill_between(line.sizes, _us(low), _us(high), color=colour, alpha=0.15, linewidth=0)
    sizes = sorted({size for line in lines for size in line.sizes})
    axes.set_xticks(sizes, [_size(size) for size in sizes])
    axes.minorticks_off()


def _size(count: int) -> str:
    """Write a number of bytes that is a multiple of 1 KiB as shortly as may be: "64 KiB"."""
    return f"{count >> 20} MiB" if count % (1 << 20) == 0 else f"{count / 1024:g} KiB"


def _us(seconds: Sequence[float]) -> list[float]:
    return [each * 1e6 for each in seconds]
