"""Measures taken one after another as a picture: what each brings, in every quantity, and what was set when.

One column a state: where one begins, after each measure, where one ends. Above, a waterfall a quantity, all from zero;
below, a row a setting, whose bars say what held in which column.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from textwrap import fill
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure
from fourlane.report.tables import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Measured", "Setting", "Waterfall", "overall", "plot_waterfall", "waterfall_figure"]

_PALE_GREEN, _PALE_GREY, _LINE, _DARK = "#d7efe3", "#eef1f4", "#8c959f", "#1f2328"
_WIDE = 0.66
_HEAD, _HERO, _OTHER = 1.1, 3.3, 1.35
"""Heights in inches: of the head, of the first quantity, of each other."""
_TIMES = 1.5
"""From here on a change is told as a factor."""
_UNSEEN = 5e-4
"""A relative change below this is shown as none."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A quantity at every state, from the first to the last.

    Infinite or None where there is none: the service does not keep up, or the target is out of reach.
    """

    title: str
    unit: str
    values: tuple[float | None, ...]
    better: Literal["higher", "lower"]
    none: str = "out of reach"
    """What stands where there is no value."""
    headline: bool = True
    """Its whole change is told beside the title."""

    def known(self, state: int) -> float | None:
        """Return the value at a state, None if there is none."""
        value = self.values[state]
        return value if value is not None and math.isfinite(value) else None

    def better_from(self, before: float, after: float) -> bool:
        """Tell whether a change is for the better."""
        return (after > before) == (self.better == "higher")


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Something that measures change: its value at every state."""

    name: str
    values: tuple[str, ...]


class Waterfall(msgspec.Struct, frozen=True, kw_only=True):
    """What is drawn: the first quantity large, the others below it.

    Args:
        title: in large letters.
        subtitle: on what, and how it was worked out; lines are kept.
        states: the columns: the first state, each measure, the last state (which is that after the last measure).
        quantities: each with a value a state before the last column.
        settings: each with a value a state before the last column.
        footer: small, below everything.
    """

    title: str
    subtitle: str
    states: tuple[str, ...]
    quantities: tuple[Measured, ...]
    settings: tuple[Setting, ...]
    footer: str = ""

    def __post_init__(self) -> None:
        for each in (*self.quantities, *self.settings):
            if len(each.values) != len(self.states) - 1:
                raise ValueError(f"{each}: expected {len(self.states) - 1} values")


def plot_waterfall(paths: Sequence[Path], waterfall: Waterfall) -> None:
    """Draw it.

    Args:
        paths: where to; the suffixes say the formats (.png, .svg, .pdf, .html).

    Raises:
        SpecError: a file cannot be written.
    """
    with waterfall_figure(waterfall) as figure:
        for path in paths:
            save_figure(figure, path)


@contextmanager
def waterfall_figure(waterfall: Waterfall) -> Iterator[Figure]:
    """Make the figure."""
    more = len(waterfall.quantities) - 1
    strip = 0.34 * len(waterfall.settings) + 0.15
    heights = [_HEAD, _HERO, *[_OTHER] * more, strip]
    with figure_of("", height=sum(heights) + 0.5 + 0.2 * more, width=12.0) as figure:
        figure.set_layout_engine("constrained", h_pad=0.04, hspace=0.02, rect=(0.008, 0.008, 0.98, 0.98))
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        _draw_head(figure.add_subplot(grid[0]), waterfall)
        for row, measured in enumerate(waterfall.quantities, start=1):
            axes = figure.add_subplot(grid[row])
            _draw_quantity(axes, measured, waterfall, large=row == 1)
        _draw_settings(figure.add_subplot(grid[len(heights) - 1]), waterfall)
        if waterfall.footer:
            figure.supxlabel(waterfall.footer, x=0.01, ha="left", fontsize=7.5, color=GREY)
        yield figure


def _draw_head(axes: Axes, waterfall: Waterfall) -> None:
    """Write title and subtitle at the left, and what all measures bring together at the right."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0, 1.0, waterfall.title, fontsize=19, weight="bold", color=_DARK, va="top")
    axes.text(0, 0.42, waterfall.subtitle, fontsize=9.5, color=GREY, va="top", linespacing=1.45)
    told = [measured for measured in waterfall.quantities if measured.headline]
    for place, measured in enumerate(reversed(told)):
        at = 1.0 - place * 0.145
        axes.text(at, 1.0, measured.title.partition(",")[0], fontsize=9, color=GREY, ha="right", va="top")
        text, colour = overall(measured), _overall_colour(measured)
        axes.text(at, 0.80, text, fontsize=19, weight="bold", color=colour, ha="right", va="top")


def overall(measured: Measured) -> str:
    """Return the change from the first state to the last in words; without a first, the last."""
    first, last = measured.known(0), measured.known(-1)
    if last is None:
        return "-"
    if first is None or first == 0:
        return f"{number(last)} {measured.unit.partition(',')[0]}"
    ratio = last / first
    return f"\N{MULTIPLICATION SIGN}{number(ratio)}" if ratio >= _TIMES else _percent(ratio - 1)


def _overall_colour(measured: Measured) -> str:
    first, last = measured.known(0), measured.known(-1)
    if last is None:
        return GREY
    return BLUE if first is None or first == 0 else _colour(measured, last - first, first)


def _draw_quantity(axes: Axes, measured: Measured, waterfall: Waterfall, *, large: bool) -> None:
    axes.set_title(f"{measured.title} ({measured.unit})" if measured.unit else measured.title, fontsize=11, pad=8)
    known = [value for value in (measured.known(state) for state in range(len(measured.values))) if value is not None]
    top = max(known, default=1.0)
    size = 10.5 if large else 9.0
    last = len(waterfall.states) - 1
    for column in range(last + 1):
        if column in (0, last):
            _draw_total(axes, measured, column, min(column, last - 1), top=top, size=size)
        else:
            _draw_change(axes, measured, column, top=top, size=size)
    _draw_connectors(axes, measured, last)
    axes.set_xlim(-0.55, last + 0.55)
    axes.set_ylim(0, top * (1.16 if large else 1.3))
    axes.grid(visible=False, axis="x")
    axes.tick_params(length=0, labelsize=8.5)
    axes.spines["left"].set_visible(False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_xticks([])
    if large:
        names = [fill(name, 15) for name in waterfall.states]
        axes.set_xticks(range(last + 1), names, fontsize=9.5, weight="bold", color=_DARK, linespacing=1.2)


def _draw_total(axes: Axes, measured: Measured, column: int, state: int, *, top: float, size: float) -> None:
    """Draw a whole bar from zero: the first column or the last."""
    value = measured.known(state)
    if value is None:
        _draw_none(axes, measured, column, top=top)
        return
    axes.bar(column, value, _WIDE, color=_LINE if column == 0 else BLUE)
    axes.annotate(
        number(value), (column, value), (0, 4), textcoords="offset points", ha="center", fontsize=size + 1.5,
        weight="bold", color=_DARK,
    )  # fmt: skip


def _draw_change(axes: Axes, measured: Measured, column: int, *, top: float, size: float) -> None:
    """Draw what a measure changes: from the value before to the one after, green where that is better."""
    before, after = measured.known(column - 1), measured.known(column)
    if after is None:
        _draw_none(axes, measured, column, top=top)
        return
    if before is None:
        axes.bar(column, after, _WIDE, color=GREEN)
        text, colour, lift = number(after), GREEN, 4.0
    else:
        colour = _colour(measured, after - before, before)
        shown = _LINE if colour == GREY else colour
        axes.bar(column, after - before, _WIDE, bottom=before, color=shown)
        axes.hlines(after, column - _WIDE / 2, column + _WIDE / 2, color=shown, linewidth=2.0)
        text = _percent(after / before - 1) if before else number(after)
        rises = after > before and colour != GREY
        axes.annotate(
            number(after), (column, after), (0, 4 if rises else -5), textcoords="offset points", ha="center",
            va="bottom" if rises else "top", fontsize=size - 2, color=GREY,
        )  # fmt: skip
        lift = size + 5 if rises else 4
    axes.annotate(
        text, (column, max(after, before or 0.0)), (0, lift), textcoords="offset points", ha="center", fontsize=size,
        weight="bold" if colour != GREY else "normal", color=colour,
    )  # fmt: skip


def _draw_none(axes: Axes, measured: Measured, column: int, *, top: float) -> None:
    axes.bar(column, top, _WIDE, color="none", edgecolor=_LINE, hatch="////", linewidth=0)
    axes.text(
        column, top / 2, fill(measured.none, 11), ha="center", va="center", fontsize=8.5, color=GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 2.0},
    )  # fmt: skip


def _draw_connectors(axes: Axes, measured: Measured, last: int) -> None:
    """Draw thin lines at the height that one column hands on to the next."""
    for column in range(last):
        value = measured.known(min(column, last - 1))
        following = measured.known(min(column + 1, last - 1))
        if value is not None and following is not None:
            ends = (column + _WIDE / 2, column + 1 - _WIDE / 2)
            axes.plot(ends, (value, value), color=_LINE, linewidth=0.9, solid_capstyle="butt")


def _draw_settings(axes: Axes, waterfall: Waterfall) -> None:
    """Draw a row a setting: a bar for as long as it stays as it is, pale green once a measure has changed it."""
    from matplotlib.patches import FancyBboxPatch

    columns = len(waterfall.states)
    for row, setting in enumerate(waterfall.settings):
        values = (*setting.values, setting.values[-1])
        starts = [0, *(c for c in range(1, columns) if values[c] != values[c - 1])]
        for start, end in zip(starts, [*starts[1:], columns], strict=True):
            shape = FancyBboxPatch(
                (start - _WIDE / 2, row - 0.3), end - start - 1 + _WIDE, 0.6, linewidth=0,
                boxstyle="round,pad=0,rounding_size=0.12", facecolor=_PALE_GREEN if start else _PALE_GREY,
            )  # fmt: skip
            axes.add_patch(shape)
            axes.text(
                start - _WIDE / 2 + 0.06, row, values[start], va="center", fontsize=8.5, color=GREEN if start else GREY,
                weight="bold" if start else "normal",
            )  # fmt: skip
    axes.set_xlim(-0.55, columns - 1 + 0.55)
    axes.set_ylim(len(waterfall.settings) - 0.5, -0.6)
    axes.set_yticks(range(len(waterfall.settings)), [setting.name for setting in waterfall.settings], fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colour(measured: Measured, change: float, before: float) -> str:
    if abs(change) < _UNSEEN * abs(before):
        return GREY
    return GREEN if measured.better_from(before, before + change) else ORANGE


def _percent(share: float) -> str:
    """Write a relative change with its sign: "+12.3 %", and "0 %" for none to be seen."""
    if abs(share) < _UNSEEN:
        return "0 %"
    sign = "+" if share > 0 else "\N{MINUS SIGN}"
    return (
        f"{sign}{abs(share):.1%}".replace("%", " %")
        if abs(share) < 0.995
        else f"{sign}{abs(share):.0%}".replace("%", " %")
    )
