"""Latency as a picture: where an idle path's time goes, and how percentiles of packets grow with load."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure
from fourlane.report.tables import number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = ["IdlePath", "LoadCurve", "plot_latency"]

_KINDS = (
    ("NIC", BLUE),
    ("PCIe", "#8250df"),
    ("bytes on the wire", GREY),
    ("cable", GREEN),
    ("error correction", "#bf3989"),
    ("switch", ORANGE),
)


class IdlePath(NamedTuple):
    """An idle path: its name and the us that each kind of piece takes of it, by the names the plot colours."""

    name: str
    parts_us: dict[str, float]


class LoadCurve(NamedTuple):
    """Percentiles by load, in us, and the idle time of the same packet."""

    loads: Sequence[float]
    percentiles_us: dict[str, list[float]]
    idle_us: float


def plot_latency(
    path: Path, idle: Sequence[IdlePath], loaded: LoadCurve | None, *, title: str, budget_us: float
) -> None:
    """Draw idle paths as stacked bars, and latency over load beside them.

    Args:
        path: where to; the suffix says the format (.png, .svg, .pdf, .html).
        idle: the paths.
        loaded: None to draw the idle paths alone.
        title: of the picture.
        budget_us: a line at so many us.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title, height=4.2) as figure:
        grid = figure.add_gridspec(1, 1 if loaded is None else 2)
        _draw_idle(figure.add_subplot(grid[0, 0]), idle, budget_us)
        if loaded is not None:
            _draw_loaded(figure.add_subplot(grid[0, 1]), loaded, budget_us)
        save_figure(figure, path)


def _draw_idle(axes: Axes, idle: Sequence[IdlePath], budget_us: float) -> None:
    axes.set_title("An idle path, piece by piece")
    axes.set_xlabel("us")
    for place, each in enumerate(idle):
        left = 0.0
        for kind, colour in _KINDS:
            width = each.parts_us.get(kind, 0.0)
            axes.barh(place, width, left=left, height=0.55, color=colour, label=kind if place == 0 else None)
            if width > 0.22:
                axes.text(left + width / 2, place, number(width), ha="center", va="center", color="white", fontsize=7)
            left += width
        axes.text(left, place, f" {left:.2f}", va="center", color=GREY, fontsize=8)
    axes.set_yticks(range(len(idle)), [each.name for each in idle])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.axvline(budget_us, color="#24292f", linestyle="--", linewidth=1.0)
    axes.set_xlim(0, max(budget_us, *(sum(each.parts_us.values()) for each in idle)) * 1.14)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, fontsize=7)


def _draw_loaded(axes: Axes, loaded: LoadCurve, budget_us: float) -> None:
    axes.set_title("Expert packets under load")
    axes.set_xlabel("load of every NIC, % of its rate")
    axes.set_ylabel("us")
    loads = [100 * load for load in loaded.loads]
    for (name, values), colour in zip(loaded.percentiles_us.items(), (GREEN, ORANGE, BLUE), strict=False):
        axes.plot(loads, values, color=colour, marker="o", markersize=3.5, label=name)
    axes.axhline(loaded.idle_us, color=GREY, linewidth=1.0, linestyle=":", label=f"idle, {loaded.idle_us:.2f} us")
    axes.axhline(budget_us, color="#24292f", linewidth=1.0, linestyle="--", label=f"budget, {budget_us:g} us")
    axes.set_xlim(0, 100)
    top = max(max(values) for values in loaded.percentiles_us.values())
    axes.set_ylim(min(loaded.idle_us, budget_us) * 0.93, max(top, budget_us) * 1.04)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
