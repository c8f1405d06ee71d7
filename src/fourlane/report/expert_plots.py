"""Experts as pictures: loads over time, placements, what redundancy buys, a batch before and after splitting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure
from fourlane.report.tables import number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "AdvicePicture",
    "BalanceCurve",
    "NeedCurve",
    "PhasePicture",
    "PlacementPicture",
    "SplitPicture",
    "plot_advice",
    "plot_choices",
    "plot_loads",
    "plot_placement",
    "plot_split",
]

PURPLE = "#8250df"
_COLOURS = (ORANGE, BLUE, GREEN, PURPLE, GREY)
_LEAST_SHARE, _MOST_SHARE = 0.125, 8.0
"""Loads of experts are drawn between these multiples of the layer's mean."""
_NEVER = 1e-2
"""Where an expert that gets no token stands on a logarithmic axis of loads over the mean."""


class BalanceCurve(NamedTuple):
    """One line of a plot over windows or redundancies: mean layer, and worst layer where that is known."""

    name: str
    mean: NDArray[Any]
    worst: NDArray[Any] | None = None


class PhasePicture(NamedTuple):
    """One phase: loads [layers, experts], and lines over its windows."""

    name: str
    load_LE: NDArray[Any]
    over_time: list[BalanceCurve]


class PlacementPicture(NamedTuple):
    """A placement: copies [layers, experts], and where a load is known that of ranks over the mean [layers, ranks]."""

    copies_LE: NDArray[Any]
    rank_load_LG: NDArray[Any] | None


class NeedCurve(NamedTuple):
    """Redundant slots a layer that a target takes: at least, and by a real placement (-1: none of the sweep)."""

    target: float
    least_L: NDArray[Any]
    reached_L: NDArray[Any]


class AdvicePicture(NamedTuple):
    """What redundancy buys: lines over `redundant` (slots more than experts), needs by layer, balance by means.

    Units:
        extra_bytes: memory a rank for each of `redundant`; None where an expert's size is unknown.
        means: max/mean, from nothing done to everything done, at the redundancy `chosen`.
    """

    redundant: NDArray[Any]
    extra_bytes: NDArray[Any] | None
    curves: list[BalanceCurve]
    needs: list[NeedCurve]
    means: list[tuple[str, float]]
    chosen: int


class SplitPicture(NamedTuple):
    """Tokens of each rank in one layer before and after splitting, and the least maximum there can be."""

    name: str
    before_G: NDArray[Any]
    after_G: NDArray[Any]
    lower_bound: float


def plot_loads(path: Path, phases: Sequence[PhasePicture], *, title: str) -> None:
    """Draw the load of every expert of every layer, how skewed it is, and lines over time; a row for each phase.

    Args:
        path: where to; the suffix says the format (.png, .svg, .pdf, .html).

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    deep = 1.5 + 0.035 * max(phase.load_LE.shape[0] for phase in phases)
    timed = any(len(phase.over_time) for phase in phases)
    with figure_of(title, height=0.5 + len(phases) * (deep + (2.1 if timed else 0.0))) as figure:
        rows = len(phases) * (2 if timed else 1)
        grid = figure.add_gridspec(
            rows, 2, width_ratios=[2.6, 1.0], height_ratios=([deep, 2.1] if timed else [deep]) * len(phases)
        )
        for index, phase in enumerate(phases):
            row = index * (2 if timed else 1)
            heat = figure.add_subplot(grid[row, 0])
            _draw_heat(figure, heat, phase)
            _draw_skew(figure.add_subplot(grid[row, 1]), phase.load_LE)
            if timed:
                _draw_over_time(figure.add_subplot(grid[row + 1, :]), phase)
        save_figure(figure, path)


def plot_placement(path: Path, picture: PlacementPicture, *, title: str) -> None:
    """Draw how many copies each expert has, and the load of each rank where one is known.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    deep = 1.5 + 0.035 * picture.copies_LE.shape[0]
    known = picture.rank_load_LG is not None
    with figure_of(title, height=0.5 + deep * (2 if known else 1)) as figure:
        grid = figure.add_gridspec(2 if known else 1, 1)
        axes = figure.add_subplot(grid[0, 0])
        _draw_copies(figure, axes, picture.copies_LE)
        if picture.rank_load_LG is not None:
            _draw_ranks(figure, figure.add_subplot(grid[1, 0]), picture.rank_load_LG)
        save_figure(figure, path)


def plot_advice(path: Path, picture: AdvicePicture, *, title: str) -> None:
    """Draw balance over redundancy, the redundancy each layer needs for each target, and what each means brings.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title, height=7.4) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1.0], width_ratios=[1.25, 1.0])
        _draw_curves(figure.add_subplot(grid[0, :]), picture)
        _draw_needs(figure.add_subplot(grid[1, 0]), picture)
        _draw_means(figure.add_subplot(grid[1, 1]), picture)
        save_figure(figure, path)


def plot_choices(
    path: Path, panels: Sequence[tuple[str, Sequence[float]]], *, names: Sequence[str], title: str
) -> None:
    """Draw max/mean of several placements as bars, a panel for each way to use them, with the change from the first.

    Args:
        path: where to; the suffix says the format.
        panels: title and value of each placement.
        names: of the placements.
        title: of the picture.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    with figure_of(title, height=0.6 + down * (0.7 + 0.3 * len(names))) as figure:
        grid = figure.add_gridspec(down, across)
        for index, (name, values) in enumerate(panels):
            axes = figure.add_subplot(grid[index // across, index % across])
            axes.set_title(name)
            _draw_bars(axes, list(zip(names, values, strict=True)), [BLUE] * len(names))
            axes.tick_params(labelleft=index % across == 0)
        save_figure(figure, path)


def plot_split(path: Path, pictures: Sequence[SplitPicture], *, title: str) -> None:
    """Draw each rank's tokens before and after splitting, fullest rank first; a row for each picture.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title, height=0.5 + 2.5 * len(pictures)) as figure:
        grid = figure.add_gridspec(len(pictures), 1)
        for index, picture in enumerate(pictures):
            _draw_split(figure.add_subplot(grid[index, 0]), picture)
        save_figure(figure, path)


def _draw_heat(figure: Figure, axes: Axes, phase: PhasePicture) -> None:
    """Draw loads over their layer's mean as colours, a factor of two a step."""
    from matplotlib.colors import LogNorm

    share = _over_mean(phase.load_LE).clip(_LEAST_SHARE, _MOST_SHARE)
    mesh = axes.pcolormesh(share, cmap="RdBu_r", norm=LogNorm(_LEAST_SHARE, _MOST_SHARE), rasterized=True)
    axes.set_title(f"{phase.name}: load of each expert over its layer's mean")
    _name_heat(axes, "expert")
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, extend="both")
    ticks = [0.125, 0.25, 0.5, 1, 2, 4, 8]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()


def _draw_skew(axes: Axes, load_LE: NDArray[Any]) -> None:
    """Draw experts by popularity: the mean layer as a line, all layers as a band."""
    share = (-np.sort(-_over_mean(load_LE), axis=1)).clip(_NEVER, None)
    places = np.arange(1, share.shape[1] + 1)
    axes.fill_between(places, share.min(axis=0), share.max(axis=0), color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(places, share.mean(axis=0), color=BLUE)
    axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title("Hottest first")
    axes.set_xlabel("expert (mean layer; band: all)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlim(1, places[-1])
    axes.set_ylim(max(float(share.min()) * 0.7, _NEVER), max(float(share.max()) * 1.3, 2.0))


def _draw_over_time(axes: Axes, phase: PhasePicture) -> None:
    """Draw lines over the windows; the worst layer in a paler tone."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(f"{phase.name} over time: max/mean (pale: worst layer)")
    axes.set_xlabel("window")
    for curve, colour in zip(phase.over_time, _COLOURS, strict=False):
        at = np.arange(len(curve.mean))
        dots = "o" if len(at) < 40 else None
        axes.plot(at, curve.mean, color=colour, marker=dots, markersize=3, label=curve.name)
        if curve.worst is not None:
            axes.plot(at, curve.worst, color=colour, alpha=0.35, linewidth=1.1)
    axes.set_ylim(bottom=1.0)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(phase.over_time), frameon=False)


def _draw_copies(figure: Figure, axes: Axes, copies_LE: NDArray[Any]) -> None:
    """Draw copies as colours, a colour a number."""
    from matplotlib.colors import BoundaryNorm

    most = max(int(copies_LE.max()), 2)
    edges = np.arange(1, most + 2) - 0.5 if most <= 12 else np.linspace(0.5, most + 0.5, 13)
    mesh = axes.pcolormesh(copies_LE, cmap="YlGnBu", norm=BoundaryNorm(edges, 256), rasterized=True)
    axes.set_title("Copies of each expert")
    _name_heat(axes, "expert")
    bar = figure.colorbar(mesh, ax=axes, pad=0.015)
    if most <= 12:
        bar.set_ticks(list(range(1, most + 1)))


def _draw_ranks(figure: Figure, axes: Axes, rank_load_LG: NDArray[Any]) -> None:
    """Draw the load of ranks over their mean as colours around 1."""
    from matplotlib.colors import TwoSlopeNorm

    share = _over_mean(rank_load_LG)
    span = max(float(np.abs(share - 1).max()), 0.01)
    norm = TwoSlopeNorm(1.0, 1.0 - span, 1.0 + span)
    mesh = axes.pcolormesh(share, cmap="RdBu_r", norm=norm, rasterized=True)
    worst = float(share.max())
    axes.set_title(f"Load of each rank over the mean (fullest {worst:.3f}, mean layer {share.max(axis=1).mean():.3f})")
    _name_heat(axes, "rank")
    figure.colorbar(mesh, ax=axes, pad=0.015)


def _name_heat(axes: Axes, columns: str) -> None:
    axes.set_xlabel(columns)
    axes.set_ylabel("layer")
    axes.invert_yaxis()
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_curves(axes: Axes, picture: AdvicePicture) -> None:
    """Draw balance over redundancy, with the targets as lines across."""
    axes.set_title("Balance by redundant slots a layer (max/mean over ranks; pale: worst layer)")
    axes.set_ylabel("max / mean")
    colours = (GREY, BLUE, PURPLE, ORANGE, GREEN)
    for index, (curve, colour) in enumerate(zip(picture.curves, colours, strict=False)):
        line = "--" if index == 0 else "-"
        axes.plot(picture.redundant, curve.mean, line, color=colour, marker="o", markersize=3.5, label=curve.name)
        if curve.worst is not None:
            axes.plot(picture.redundant, curve.worst, line, color=colour, alpha=0.35, linewidth=1.1)
    for need in picture.needs:
        axes.axhline(need.target, color="#cf222e", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"{need.target:g}", (1.0, need.target), xycoords=("axes fraction", "data"), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=8, color="#cf222e",
        )  # fmt: skip
    axes.axvline(picture.chosen, color=GREY, linewidth=5, alpha=0.18)
    top = max(float(curve.mean.max()) for curve in picture.curves)
    axes.set_ylim(1.0, max(1.0 + (top - 1.0) * 1.12, 1.25))
    axes.set_xticks(picture.redundant, _redundancy_names(picture), fontsize=8)
    axes.legend(loc="upper right", frameon=False)


def _redundancy_names(picture: AdvicePicture) -> list[str]:
    if picture.extra_bytes is None:
        return [f"R={count}" for count in picture.redundant]
    pairs = zip(picture.redundant, picture.extra_bytes, strict=True)
    return [f"R={count}\n+{float(size) / 1e9:.1f} GB" for count, size in pairs]


def _draw_needs(axes: Axes, picture: AdvicePicture) -> None:
    """Draw how many layers hold each target with so many redundant slots: what is possible, and what was placed."""
    layers = len(picture.needs[0].least_L) if picture.needs else 0
    axes.set_title(f"Layers of {layers} that hold a target")
    axes.set_xlabel("redundant slots a layer (dashed: none can do with fewer)")
    end = float(picture.redundant[-1]) or 1.0
    for need, colour in zip(picture.needs, (GREEN, BLUE, ORANGE, PURPLE), strict=False):
        reached = need.reached_L[need.reached_L >= 0]
        for slots, line, name in ((need.least_L, "--", None), (reached, "-", f"{need.target:g}")):
            at = np.concatenate([[0.0], np.sort(slots), [end * 1.03]])
            count = np.concatenate([[0.0], np.arange(1, len(slots) + 1), [len(slots)]])
            axes.step(at, count, line, where="post", color=colour, linewidth=1.0 if line == "--" else 1.8, label=name)
    axes.set_xlim(-0.02 * end, end * 1.03)
    axes.set_ylim(0, layers * 1.04 or 1.0)
    if picture.needs:
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")


def _draw_means(axes: Axes, picture: AdvicePicture) -> None:
    """Draw the balance after each means as bars, and what of the experts' time each saves against the first."""
    axes.set_title(f"What each means brings at R={picture.chosen}")
    axes.set_xlabel("max / mean of a batch")
    _draw_bars(axes, picture.means, (GREY, ORANGE, GREEN, BLUE, PURPLE))


def _draw_bars(axes: Axes, bars: Sequence[tuple[str, float]], colours: Sequence[str]) -> None:
    """Draw max/mean as bars that begin at 1, with the change from the first."""
    first, most = bars[0][1], max(*(value for _, value in bars), 1.01)
    for place, ((_, value), colour) in enumerate(zip(bars, colours, strict=False)):
        axes.barh(place, value - 1.0, left=1.0, height=0.62, color=colour, alpha=0.85)
        change = "" if place == 0 else f"  ({(value / first - 1) * 100:+.0f} %)"
        text = f"{number(value, 4)}{change}"
        axes.text(value + (most - 1) * 0.02, place, text, va="center", fontsize=8, color=GREY)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.set_xlim(1.0, 1.0 + (most - 1.0) * 1.55)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _draw_split(axes: Axes, picture: SplitPicture) -> None:
    mean = float(picture.after_G.mean())
    order = np.argsort(-picture.before_G, kind="stable")
    edges = np.arange(len(order) + 1) - 0.5
    before, after = picture.before_G[order], picture.after_G[order]
    label = f"equal split: max/mean {number(before.max() / mean, 4)}"
    axes.stairs(before, edges, fill=True, color=ORANGE, alpha=0.35, label=label)
    axes.stairs(after, edges, color=BLUE, linewidth=1.6, label=f"split by batch: {number(after.max() / mean, 4)}")
    bound = picture.lower_bound / mean
    axes.axhline(picture.lower_bound, color=GREEN, linestyle="--", linewidth=1.0, label=f"bound: {number(bound, 4)}")
    axes.set_title(picture.name)
    axes.set_ylabel("tokens")
    axes.set_xlabel("rank, fullest before first")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, float(before.max()) * 1.1)
    axes.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")


def _over_mean(load: NDArray[Any]) -> NDArray[Any]:
    """Return each row over its mean; a row without load is all ones."""
    mean = load.mean(axis=1, keepdims=True)
    return np.where(mean > 0, load / np.where(mean > 0, mean, 1.0), 1.0)
