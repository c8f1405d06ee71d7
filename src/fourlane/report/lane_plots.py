"""A lane plan as a picture: who may use how much of a link, and of a switch's buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = ["ClassShare", "SwitchShares", "plot_lanes"]

_COLOURS = {
    "expert": BLUE,
    "collective": GREEN,
    "kv": ORANGE,
    "control": "#8250df",
    "bulk": "#9a6700",
    "default": GREY,
}


class ClassShare(msgspec.Struct, frozen=True, kw_only=True):
    """One class at one kind of switch.

    Units:
        share: percent of the link that its weight promises; None for a strict class. cap: percent of the link.
        longest: bytes its queue can grow to, by how many such queues are full at once.
    """

    name: str
    share: int | None
    cap: int | None
    longest: dict[int, int]


class SwitchShares(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of switch: its classes, and what becomes of its buffer in bytes by purpose."""

    name: str
    classes: list[ClassShare]
    buffer: dict[str, int]


def plot_lanes(path: Path, switches: Sequence[SwitchShares], *, title: str) -> None:
    """Draw shares of bandwidth and buffer by class, a row for each kind of switch.

    Args:
        path: where to; the suffix says the format (.png, .svg, .pdf, .html).

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title, height=0.6 + 2.6 * len(switches)) as figure:
        grid = figure.add_gridspec(len(switches), 3, width_ratios=[1.0, 1.1, 0.55])
        for row, switch in enumerate(switches):
            _draw_links(figure.add_subplot(grid[row, 0]), switch)
            _draw_queues(figure.add_subplot(grid[row, 1]), switch)
            _draw_buffer(figure.add_subplot(grid[row, 2]), switch)
        save_figure(figure, path)


def _draw_links(axes: Axes, switch: SwitchShares) -> None:
    axes.set_title(f"{switch.name}: share of a link")
    axes.set_xlabel("%")
    axes.set_xlim(0, 118)
    for place, lane in enumerate(switch.classes):
        colour = _COLOURS.get(lane.name, GREY)
        if lane.share is None:
            axes.barh(place, lane.cap or 100, color="white", edgecolor=colour, hatch="////", height=0.62)
            text = f"first, up to {lane.cap} %"
        else:
            axes.barh(place, lane.share, color=colour, height=0.62)
            text = f"{lane.share} %" + (f", at most {lane.cap} %" if lane.cap is not None else "")
        width = lane.share if lane.share is not None else lane.cap or 100
        if width > 60:
            axes.text(width - 2, place, text, va="center", ha="right", color="white", fontsize=8)
        else:
            axes.text(width + 2, place, text, va="center", color=GREY, fontsize=8)
    _name_classes(axes, switch)


def _draw_queues(axes: Axes, switch: SwitchShares) -> None:
    axes.set_title("longest queue of a port")
    axes.set_xlabel("MB (logarithmic)")
    axes.set_xscale("log")
    counts = sorted({count for lane in switch.classes for count in lane.longest})
    for place, lane in enumerate(switch.classes):
        for shade, count in enumerate(counts):
            offset = (shade - (len(counts) - 1) / 2) * 0.34
            size = max(lane.longest[count], 1) / 1e6
            colour = _COLOURS.get(lane.name, GREY)
            axes.barh(place + offset, size, height=0.32, color=colour, alpha=1.0 if shade == 0 else 0.45)
            text = f" {size:.3g}" + (f"  with {count} full" if place == 0 else "")
            axes.text(size, place + offset, text, va="center", color=GREY, fontsize=7)
    longest = [max(size, 1) / 1e6 for lane in switch.classes for size in lane.longest.values()]
    axes.set_xlim(min(longest) / 3, max(longest) * 30)
    _name_classes(axes, switch)


def _draw_buffer(axes: Axes, switch: SwitchShares) -> None:
    axes.set_title("buffer")
    axes.set_ylabel("MB")
    below = 0.0
    for (purpose, size), colour in zip(switch.buffer.items(), (ORANGE, BLUE, "#d0d7de"), strict=False):
        axes.bar(0, size / 1e6, bottom=below, width=0.5, color=colour, label=f"{purpose} {size / 1e6:.3g}")
        below += size / 1e6
    axes.set_xlim(-0.4, 0.4)
    axes.set_xticks([])
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), frameon=False, fontsize=7)


def _name_classes(axes: Axes, switch: SwitchShares) -> None:
    axes.set_yticks(range(len(switch.classes)), [lane.name for lane in switch.classes])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
