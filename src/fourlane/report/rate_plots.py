"""Rates over sizes as a picture: what each way of moving bytes reaches, beside its yardsticks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure
from fourlane.report.tables import byte_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["plot_rates"]

_COLOURS = (BLUE, ORANGE, GREEN, "#8250df", "#bf3989")


def plot_rates(path: Path, rates: Mapping[str, Sequence[tuple[int, float]]], *, title: str) -> None:
    """Draw rate over size, a line a way; the first two ways are yardsticks, drawn broken.

    Args:
        path: where to; the suffix says the format (.html, .png, .svg, .pdf).
        rates: (bytes, bytes a second) by way, in order of size.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title) as figure:
        axes = figure.add_subplot()
        axes.set_title("Rate by size")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("a sequence")
        axes.set_ylabel("GB/s")
        for index, (way, points) in enumerate(rates.items()):
            yardstick = index < 2
            colour = GREY if yardstick else _COLOURS[(index - 2) % len(_COLOURS)]
            sizes, values = [size for size, _ in points], [rate / 1e9 for _, rate in points]
            dashes = ("--", ":")[index] if yardstick else "-"
            axes.plot(sizes, values, dashes, color=colour, marker="o", markersize=3.5, label=way)
        sizes = sorted({size for points in rates.values() for size, _ in points})
        axes.set_xticks(sizes, [byte_text(size) for size in sizes])
        axes.minorticks_off()
        axes.legend(loc="best", frameon=False)
        save_figure(figure, path)
