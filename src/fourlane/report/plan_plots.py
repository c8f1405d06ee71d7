"""Candidates of a plan as a picture: what each GPU yields against how fast a request is answered, the front marked."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Candidate", "pareto_figure", "plot_pareto"]

_NEAR = 0.03
"""Of an axis: what is nearer is named together."""
_FEW = 8
"""Candidates that are named in the picture, best first."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the service.

    Args:
        row: its place in the ranked table, from 1.
        label: in a few words: "12 x EP32 : 4 x EP72".
        throughput: tokens a second, a GPU.
        meets: it meets the SLO.

    Units:
        tpot_s, ttft_s: seconds.
    """

    row: int
    label: str
    throughput: float
    tpot_s: float
    ttft_s: float
    meets: bool


def plot_pareto(paths: Sequence[Path], candidates: Sequence[Candidate], *, title: str, unit: str = "tokens/s") -> None:
    """Draw throughput a GPU over tokens a second a request sees, and over its time to first token.

    Args:
        paths: where to; the suffixes say the formats (.png, .svg, .pdf, .html).
        candidates: in the order of the table.
        title: over both panels.
        unit: of throughput.

    Raises:
        SpecError: a file cannot be written.
    """
    with pareto_figure(candidates, title=title, unit=unit) as figure:
        for path in paths:
            save_figure(figure, path)


@contextmanager
def pareto_figure(candidates: Sequence[Candidate], *, title: str, unit: str = "tokens/s") -> Iterator[Figure]:
    """Make the figure."""
    with figure_of(title, height=5.2, width=11.0) as figure:
        grid = figure.add_gridspec(1, 2)
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        seen = [each for each in candidates if each.tpot_s > 0]
        _draw(left, seen, [1.0 / each.tpot_s for each in seen], more_is_better=True)
        left.set(xlabel="tokens/s a request sees (1 / TPOT)", ylabel=f"{unit} per GPU")
        left.set_title("Throughput against interactivity")
        _draw(right, candidates, [each.ttft_s for each in candidates], more_is_better=False)
        right.set(xlabel="time to first token, s", ylabel=f"{unit} per GPU")
        right.set_title("Throughput against time to first token")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        yield figure


def _draw(axes: Axes, candidates: Sequence[Candidate], across: Sequence[float], *, more_is_better: bool) -> None:
    from matplotlib.patheffects import withStroke

    pairs = list(zip(across, candidates, strict=True))
    for meets, colour, label in ((True, BLUE, "meets the SLO"), (False, ORANGE, "does not")):
        drawn = [(x, each.throughput) for x, each in pairs if each.meets == meets]
        if drawn:
            x, y = zip(*drawn, strict=True)
            axes.plot(x, y, "o", color=colour, markersize=5, alpha=0.55, markeredgewidth=0, label=label)
    front = _front([(x, each.throughput) for x, each in pairs], more_is_better=more_is_better)
    if front:
        x, y = zip(*front, strict=True)
        style = "steps-pre" if more_is_better else "steps-post"
        axes.plot(x, y, color=GREEN, linewidth=1.6, label="Pareto front", zorder=1, drawstyle=style)
    axes.margins(0.14)
    white = [withStroke(linewidth=2.5, foreground="white")]
    for x, y, rows, meets in _named(axes, pairs):
        axes.plot([x], [y], "o", color=BLUE if meets else ORANGE, markersize=7)
        axes.annotate(
            ", ".join(map(str, rows)), (x, y), (6, 4), textcoords="offset points", fontsize=8.5, weight="bold",
            path_effects=white,
        )  # fmt: skip
    best = next((each for each in candidates if each.row == 1), None)
    if best is not None:
        axes.text(0.02, 0.03, f"1: {best.label}", transform=axes.transAxes, color=GREY, path_effects=white)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def _named(axes: Axes, pairs: Sequence[tuple[float, Candidate]]) -> list[tuple[float, float, list[int], bool]]:
    """Return where the first candidates are, those that lie on each other together: x, y, rows, whether one meets."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    groups: list[tuple[float, float, list[int], bool]] = []
    for x, each in pairs:
        if each.row > _FEW:
            continue
        for place, (other_x, other_y, rows, meets) in enumerate(groups):
            near = abs(x - other_x) < _NEAR * (right - left) and abs(each.throughput - other_y) < _NEAR * (high - low)
            if near:
                groups[place] = (other_x, other_y, [*rows, each.row], meets or each.meets)
                break
        else:
            groups.append((x, each.throughput, [each.row], each.meets))
    return groups


def _front(points: Sequence[tuple[float, float]], *, more_is_better: bool) -> list[tuple[float, float]]:
    """Return the points that no other beats in both, from left to right; y is always better when greater."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (-point[0] if more_is_better else point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return sorted(kept)
