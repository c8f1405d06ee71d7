"""A simulated service as pictures: latencies, what happened over time, what steps are made of, how full links are."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of
from fourlane.report.tables import number, percent, time_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Distribution",
    "MakeUp",
    "OverTime",
    "Span",
    "Use",
    "latency_figure",
    "make_up_figure",
    "over_time_figure",
    "use_figure",
]

_COLOURS = (BLUE, ORANGE, GREEN, "#8250df", "#bf3989", "#9a6700", "#0a7ea4", GREY)
_PART_COLOURS = {
    "attention": "#1f6feb",
    "experts": "#1a7f5a",
    "shared expert": "#6fbf9a",
    "router and mlp": "#8fb8f6",
    "embedding, output": "#b6c2cf",
    "dispatch": "#d9730d",
    "combine": "#f0a860",
    "other": "#8c959f",
}
_POINTS = 400
"""Of a distribution's line."""
_TO_LEFT = 0.68
"""Share of a panel's width from which on there is no room to the right."""


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """A time over requests; `bound` is what the SLO asks for.

    Units:
        values, bound: seconds.
    """

    title: str
    values: list[float]
    bound: float | None = None


class OverTime(msgspec.Struct, frozen=True, kw_only=True):
    """Quantities over time, in one panel; times in seconds."""

    title: str
    times: list[float]
    lines: dict[str, list[float]]
    limit: float | None = None
    share: bool = False
    """They are shares: shown in per cent."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time to be marked, in seconds; endless if it never ends."""

    name: str
    begin: float
    end: float


class MakeUp(msgspec.Struct, frozen=True, kw_only=True):
    """What a step is made of.

    Args:
        name: of the step: "prefill, 8,192 tokens".
        seconds: from begin to end.
        parts: seconds of each part (names of `policy.stages`, "dispatch", "combine").
    """

    name: str
    seconds: float
    parts: dict[str, float]


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """How much of something is used, 0 to 1; `group` says what it is drawn beside."""

    name: str
    share: float
    group: str = ""
    note: str = ""


@contextmanager
def latency_figure(distributions: Sequence[Distribution], *, title: str = "") -> Iterator[Figure]:
    """Draw the share of requests at or below each time, percentiles and bounds marked, a panel a time."""
    with figure_of(title, height=3.1) as figure:
        grid = figure.add_gridspec(1, len(distributions))
        for place, each in enumerate(distributions):
            _draw_distribution(figure.add_subplot(grid[0, place]), each)
        yield figure


def _draw_distribution(axes: Axes, drawn: Distribution) -> None:
    from matplotlib.patheffects import withStroke

    values = np.sort(np.asarray([value for value in drawn.values if np.isfinite(value)], dtype=float))
    axes.set_title(drawn.title)
    axes.set_ylabel("share of requests")
    axes.set_ylim(0, 1.04)
    if not len(values):
        axes.text(0.5, 0.5, "no request got that far", transform=axes.transAxes, ha="center", color=GREY)
        return
    unit, scale = ("s", 1.0) if values[len(values) // 2] >= 1.0 else ("ms", 1e3)
    axes.set_xlabel(unit)
    shares = np.linspace(0.0, 1.0, min(_POINTS, max(2, len(values))))
    line = np.quantile(values, shares, method="inverted_cdf") * scale
    axes.step(line, shares, where="post", color=BLUE)
    axes.fill_between(line, shares, step="post", color=BLUE, alpha=0.10, linewidth=0)
    if line[-1] > 30 * max(line[len(line) // 2], 1e-9) and line[0] > 0:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for share, name in ((0.50, "p50"), (0.90, "p90"), (0.99, "p99")):
        seconds = float(np.quantile(values, share))
        at = seconds * scale
        axes.plot([at], [share], "o", color=BLUE, markersize=4)
        to_left = axes.transAxes.inverted().transform(axes.transData.transform((at, share)))[0] > _TO_LEFT
        axes.annotate(
            f"{name} {time_text(seconds)}", (at, share), (-7 if to_left else 7, -11), textcoords="offset points",
            ha="right" if to_left else "left", fontsize=8, color=GREY, path_effects=halo,
        )  # fmt: skip
    if drawn.bound is not None:
        met = float(np.mean(values <= drawn.bound))
        axes.axvline(drawn.bound * scale, color=ORANGE, linestyle="--", linewidth=1.1)
        text = f"{percent(met)} within {time_text(drawn.bound)}"
        axes.set_title(text, loc="right", color=ORANGE, fontsize=8.5)


@contextmanager
def over_time_figure(panels: Sequence[OverTime], *, spans: Sequence[Span] = (), title: str = "") -> Iterator[Figure]:
    """Draw panels under each other over one time axis, with spans of time shaded in all and named in the first."""
    with figure_of(title, height=0.5 + 1.55 * len(panels)) as figure:
        grid = figure.add_gridspec(len(panels), 1)
        first: Axes | None = None
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(grid[place, 0], sharex=first)
            first = first or axes
            _draw_over_time(axes, panel)
            _draw_spans(axes, spans, named=place == 0)
            axes.tick_params(labelbottom=place == len(panels) - 1)
        if first is not None:
            figure.axes[-1].set_xlabel("s")
        yield figure


def _draw_over_time(axes: Axes, panel: OverTime) -> None:
    axes.set_title(panel.title)
    for (name, values), colour in zip(panel.lines.items(), _COLOURS, strict=False):
        axes.fill_between(panel.times, values, color=colour, alpha=0.10, linewidth=0)
        axes.plot(panel.times, values, color=colour, linewidth=1.2, label=name)
    if panel.limit is not None:
        axes.axhline(panel.limit, color=GREY, linestyle="--", linewidth=1.0)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.0)
    if panel.share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if len(panel.lines) > 1:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, ncols=len(panel.lines), frameon=False,
            fontsize=8,
        )  # fmt: skip


def _draw_spans(axes: Axes, spans: Sequence[Span], *, named: bool) -> None:
    begin, end = axes.get_xlim()
    for span in spans:
        left, right = max(span.begin, begin), min(span.end, end)
        if left >= right:
            continue
        axes.axvspan(left, right, color=ORANGE, alpha=0.12, linewidth=0)
        if named:
            axes.text(left, 0.97, f" {span.name}", transform=axes.get_xaxis_transform(), va="top", fontsize=7.5)
    axes.set_xlim(begin, end)


@contextmanager
def make_up_figure(steps: Sequence[MakeUp], *, title: str = "") -> Iterator[Figure]:
    """Draw what steps are made of: above, what is computed, below, what travels meanwhile; and the step's whole time.

    Where one runs over the other they are longer, together, than the step: that is what two streams hide.
    """
    with figure_of(title, height=0.9 + 1.15 * len(steps)) as figure:
        grid = figure.add_gridspec(len(steps), 1)
        seen: set[str] = set()
        for place, step in enumerate(steps):
            seen |= set(_draw_make_up(figure.add_subplot(grid[place, 0]), step))
        named = [(name, colour) for name, colour in _PART_COLOURS.items() if name in seen]
        _legend_of(figure, named)
        yield figure


def _draw_make_up(axes: Axes, step: MakeUp) -> list[str]:
    """Draw one step; return the names of what was drawn."""
    grouped = _grouped(step.parts)
    rows = {"computes": ([name for name in grouped if name not in ("dispatch", "combine")], 1.0)}
    rows["travels"] = (["dispatch", "combine"], 0.0)
    for names, row in rows.values():
        left = 0.0
        for name in names:
            length = grouped.get(name, 0.0) * 1e3
            axes.barh(row, length, 0.72, left=left, color=_PART_COLOURS[name], edgecolor="white", linewidth=0.8)
            if length > 0.07 * step.seconds * 1e3:
                axes.text(left + length / 2, row, number(length), ha="center", va="center", fontsize=7.5, color="white")
            left += length
    axes.axvline(step.seconds * 1e3, color=GREY, linestyle="--", linewidth=1.1)
    axes.set_title(f"{step.name}: {number(step.seconds * 1e3)} ms", fontsize=9.5)
    axes.set_yticks([1.0, 0.0], list(rows))
    axes.set_xlim(left=0)
    axes.margins(x=0.04)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ms", fontsize=8)
    return list(grouped)


def _grouped(parts: Mapping[str, float]) -> dict[str, float]:
    """Add up parts that are shown as one, in the order of the colours."""
    found: dict[str, float] = {}
    for name, seconds in parts.items():
        found[_group_of(name)] = found.get(_group_of(name), 0.0) + seconds
    return {name: found[name] for name in _PART_COLOURS if found.get(name, 0.0) > 0.0}


def _group_of(part: str) -> str:
    if part.startswith("attention"):
        return "attention"
    if part in ("experts", "experts 0", "experts 1"):
        return "experts"
    if part in ("router", "mlp"):
        return "router and mlp"
    if part in ("embedding", "output"):
        return "embedding, output"
    return part if part in _PART_COLOURS else "other"


def _legend_of(figure: Figure, named: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, label=name) for name, colour in named]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) or 1, frameon=False, fontsize=8)


@contextmanager
def use_figure(uses: Sequence[Use], *, title: str = "") -> Iterator[Figure]:
    """Draw how much of each thing is used, a bar each; groups have a colour each."""
    groups = list(dict.fromkeys(each.group for each in uses))
    with figure_of(title, height=0.7 + 0.24 * len(uses)) as figure:
        axes = figure.add_subplot()
        for row, each in enumerate(uses):
            colour = _COLOURS[groups.index(each.group) % len(_COLOURS)]
            axes.barh(row, 1.0, 0.66, color="#eef1f4")
            axes.barh(row, min(each.share, 1.0), 0.66, color=colour)
            text = f"{percent(each.share)}  {each.note}".rstrip()
            axes.annotate(text, (1.0, row), (5, 0), textcoords="offset points", va="center", fontsize=8, color=GREY)
        axes.set_yticks(range(len(uses)), [each.name for each in uses], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        if len(groups) > 1:
            _legend_of(figure, [(name, _COLOURS[place % len(_COLOURS)]) for place, name in enumerate(groups)])
        yield figure
