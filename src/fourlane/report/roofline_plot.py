"""Kernels under the roof that a GPU's memory puts over them, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Point", "plot_roofline"]

_COLOURS = (BLUE, ORANGE, GREEN, "#8250df", "#bf3989")


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel as it was measured.

    Units:
        operations: of arithmetic; moved: bytes that have to be read and written; seconds: median.
    """

    name: str
    operations: float
    moved: float
    seconds: float


def plot_roofline(path: Path, points: Sequence[Point], *, memory: float, title: str) -> None:
    """Draw operations a second over operations a byte, both logarithmic, under the line of the memory.

    Args:
        path: where to; the suffix says the format (.html, .png, .svg, .pdf).
        points: kernels; each computes something.
        memory: bytes a second that a plain copy reads and writes, measured in the same run.
        title: of the whole.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title) as figure:
        axes = figure.add_subplot()
        axes.set_title("Operations a second over operations a byte")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("operations a byte")
        axes.set_ylabel("Gop/s")
        intensities = [point.operations / point.moved for point in points]
        ends = [min(intensities) / 2, max(intensities) * 2]
        roof = [intensity * memory / 1e9 for intensity in ends]
        axes.plot(ends, roof, "--", color=GREY, label=f"memory, {memory / 1e9:.0f} GB/s")
        for index, (point, intensity) in enumerate(zip(points, intensities, strict=True)):
            share = point.moved / point.seconds / memory
            axes.plot(
                intensity,
                point.operations / point.seconds / 1e9,
                "o",
                color=_COLOURS[index % len(_COLOURS)],
                label=f"{point.name}: {share:.0%} of the memory's rate",
            )
        axes.legend(loc="best", frameon=False)
        save_figure(figure, path)
