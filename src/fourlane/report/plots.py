"""Plots of a load run, drawn into files; and what all plots share: style, figures, writing them.

matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import html
import io
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError
from fourlane.report.tables import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["RequestTimes", "figure_of", "plot_load", "save_figure"]

BLUE, ORANGE, GREEN, GREY = "#1f6feb", "#d9730d", "#1a7f5a", "#57606a"
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d8dee4",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 1.6,
    "savefig.dpi": 144,
    "svg.hashsalt": "fourlane",
    "figure.facecolor": "white",
}
_MARKS = ((0.50, "p50", GREEN), (0.99, "p99", ORANGE))


class RequestTimes(msgspec.Struct, frozen=True, kw_only=True):
    """When one request was due, when events with text came and when it ended, in seconds after the load began.

    `tokens` is how many tokens the events brought: one may bring several, as text is held back until it is whole.
    """

    due_s: float
    event_s: list[float]
    end_s: float
    tokens: int


def plot_load(path: Path, requests: Sequence[RequestTimes], *, title: str) -> None:
    """Draw TTFT and TPOT distributions, output tokens a second and requests under way over time.

    Args:
        path: where to; the suffix says the format (.png, .svg, .pdf, .html).

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title) as figure:
        grid = figure.add_gridspec(3, 2, height_ratios=[2.2, 1.3, 1.0])
        answered = [request for request in requests if request.event_s]
        ttft_ms = [(request.event_s[0] - request.due_s) * 1e3 for request in answered]
        tpot_ms = [
            (request.event_s[-1] - request.event_s[0]) * 1e3 / (request.tokens - 1)
            for request in answered
            if request.tokens > 1
        ]
        _draw_distribution(figure.add_subplot(grid[0, 0]), ttft_ms, "Time to first token")
        _draw_distribution(figure.add_subplot(grid[0, 1]), tpot_ms, "Time per output token")
        above = figure.add_subplot(grid[1, :])
        _draw_throughput(above, answered)
        below = figure.add_subplot(grid[2, :], sharex=above)
        _draw_under_way(below, requests)
        above.tick_params(labelbottom=False)
        save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix says the format: .html (one page, nothing to fetch), or what matplotlib knows.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    try:
        if path.suffix == ".html":
            path.write_text(_page(figure), encoding="utf-8")
        else:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: the plot cannot be written: {error}") from error


def _page(figure: Figure) -> str:
    """Return a figure as a page of its own."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    title = html.escape(figure.get_suptitle())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f'<body style="margin:1rem">{svg[svg.index("<svg") :]}</body></html>\n'
    )


@contextmanager
def figure_of(title: str, *, height: float = 6.6, width: float = 9.0) -> Iterator[Figure]:
    """Make a figure in the project's style, without a display or pyplot's global state.

    Units:
        height, width: inches; figures are 9 inches wide unless they hold more.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=GREY)
        yield figure


def _draw_distribution(axes: Axes, values_ms: list[float], name: str) -> None:
    """Draw the share of requests at or below each value, with p50 and p99 marked."""
    import numpy as np

    axes.set_title(name)
    axes.set_xlabel("ms")
    axes.set_ylabel("share of requests")
    axes.set_ylim(0, 1.04)
    if not values_ms:
        axes.text(0.5, 0.5, "no request was answered", transform=axes.transAxes, ha="center", color=GREY)
        return
    ordered = sorted(values_ms)
    shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
    axes.step([ordered[0], *ordered], [0.0, *shares], where="post", color=BLUE)
    margin = 0.06 * (ordered[-1] - ordered[0]) or 0.1 * ordered[-1]
    axes.set_xlim(max(0.0, ordered[0] - margin), ordered[-1] + margin)
    for place, (share, label, colour) in enumerate(_MARKS):
        at = float(np.percentile(ordered, share * 100))
        axes.axvline(at, color=colour, linestyle="--", linewidth=1.0)
        text = f"{label} {number(at)} ms"
        axes.text(0.76 + 0.24 * place, 1.03, text, transform=axes.transAxes, ha="right", color=colour, weight="bold")


def _draw_throughput(axes: Axes, requests: Sequence[RequestTimes]) -> None:
    """Draw output tokens a second in bins of equal length."""
    axes.set_title("Output tokens a second")
    if not requests:
        return
    last = max(request.event_s[-1] for request in requests)
    width = _bin_width(last)
    bins = int(last / width) + 1
    counts = [0.0] * bins
    for request in requests:
        for stamp in request.event_s:
            counts[int(stamp / width)] += request.tokens / len(request.event_s)
    rates = [count / width for count in counts]
    rates[-1] = counts[-1] / max(last - (bins - 1) * width, width / 4)
    edges = [index * width for index in range(bins)] + [last]
    axes.stairs(rates, edges, fill=True, color=BLUE, alpha=0.22)
    axes.stairs(rates, edges, color=BLUE, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, last * 1.01)


def _bin_width(span_s: float) -> float:
    """Return a round bin width in seconds that cuts the span into 30 to 90 bins."""
    width = 0.01
    for factor in (2, 2.5, 2) * 6:
        if span_s / width <= 90:
            break
        width *= factor
    return width


def _draw_under_way(axes: Axes, requests: Sequence[RequestTimes]) -> None:
    """Draw how many requests were under way, and how many of them still waited for a first token."""
    axes.set_title("Requests under way")
    axes.set_xlabel("s")
    first = [request.event_s[0] if request.event_s else request.end_s for request in requests]
    for ends, colour, label in (
        ([request.end_s for request in requests], BLUE, "all"),
        (first, ORANGE, "waiting for the first token"),
    ):
        changes = sorted([(request.due_s, 1) for request in requests] + [(end, -1) for end in ends])
        level, times, levels = 0, [0.0], [0]
        for at, change in changes:
            level += change
            times.append(at)
            levels.append(level)
        axes.fill_between(times, levels, step="post", color=colour, alpha=0.18)
        axes.step(times, levels, where="post", color=colour, linewidth=0.9, label=label)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0.1)
