"""Simulated networks as pictures: one run (completion, latency, ports over time), and several runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure
from fourlane.report.tables import number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["BarPanel", "ClassTimes", "PortsOverTime", "RunPicture", "plot_comparison", "plot_run"]

_COLOURS = (BLUE, ORANGE, GREEN, "#8250df", "#bf3989", "#9a6700")
_PERCENTS = (1.0, 10.0, 50.0, 90.0, 99.0, 99.9, 99.99)
_MOST_PORTS = 24


class ClassTimes(NamedTuple):
    """One class: completion times of its flows, and (percent, latency) of its packets; all in us."""

    name: str
    completion_us: NDArray[Any]
    latency_us: list[tuple[float, float]]


class PortsOverTime(NamedTuple):
    """Ports by name, when they were sampled (us), their share of the line [samples, ports] and bytes queued."""

    names: list[str]
    time_us: NDArray[Any]
    utilisation: NDArray[Any]
    depth: NDArray[Any]


class RunPicture(NamedTuple):
    """All that the picture of a run shows. `hottest`: ports by name and share of the time, where none was sampled."""

    classes: list[ClassTimes]
    ports: PortsOverTime | None
    hottest: list[tuple[str, float]]


class BarPanel(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of several runs: a bar a run, and its factor over the best.

    `lower_is_better` says which of them that is; `logarithmic` where they differ by more than a bar can show.
    """

    title: str
    values: list[float]
    lower_is_better: bool = True


def plot_run(paths: Sequence[Path], run: RunPicture, *, title: str) -> None:
    """Draw completion times and latencies by class, and the busiest ports over time.

    Args:
        paths: where to; the suffixes say the formats (.png, .svg, .pdf, .html).

    Raises:
        SpecError: a file cannot be written.
    """
    shown = 0 if run.ports is None else min(len(run.ports.names), _MOST_PORTS)
    height = 3.4 + (1.6 + 0.17 * shown if shown else 0.9 + 0.22 * len(run.hottest))
    with figure_of(title, height=height) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=[3.2, height - 3.2])
        _draw_completion(figure.add_subplot(grid[0, 0]), run.classes)
        _draw_latency(figure.add_subplot(grid[0, 1]), run.classes)
        if run.ports is not None and shown:
            left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
            _draw_map(figure, left, run.ports, run.ports.utilisation * 100, "share of the line (%)")
            _draw_map(figure, right, run.ports, run.ports.depth / 1024, "queued (KiB)")
            right.tick_params(labelleft=False)
        else:
            _draw_hottest(figure.add_subplot(grid[1, :]), run.hottest)
        for path in paths:
            save_figure(figure, path)


def plot_comparison(
    paths: Sequence[Path], panels: Sequence[BarPanel], *, runs: Sequence[tuple[str, str]], title: str
) -> None:
    """Draw each figure of all runs as bars, with its factor over the best.

    Args:
        paths: where to; the suffixes say the formats.
        panels: one a figure.
        runs: (group, name) of each run; runs of a group stand together in one colour.

    Raises:
        SpecError: a file cannot be written.
    """
    groups = list(dict.fromkeys(group for group, _ in runs))
    at = [place + 0.6 * groups.index(group) for place, (group, _) in enumerate(runs)]
    with figure_of(title, height=1.2 + 0.29 * (len(runs) + 0.6 * len(groups))) as figure:
        grid = figure.add_gridspec(1, len(panels))
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(grid[0, index])
            _draw_bars(axes, panel, at, [_COLOURS[groups.index(group) % len(_COLOURS)] for group, _ in runs])
            axes.set_yticks(at, [name for _, name in runs])
            axes.tick_params(labelleft=index == 0)
        for path in paths:
            save_figure(figure, path)


def _draw_bars(axes: Axes, panel: BarPanel, at: Sequence[float], colours: Sequence[str]) -> None:
    axes.set_title(panel.title)
    best = (min if panel.lower_is_better else max)(panel.values)
    most = max(panel.values)
    axes.barh(at, panel.values, height=0.74, color=colours, alpha=0.85)
    for place, value in zip(at, panel.values, strict=True):
        factor = f"  x{value / best:.2f}" if best > 0 else ""
        axes.text(value + most * 0.015, place, number(value) + factor, va="center", fontsize=7, color=GREY)
    axes.set_xlim(0, (most or 1.0) * 1.42)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _draw_completion(axes: Axes, classes: Sequence[ClassTimes]) -> None:
    """Draw the share of flows finished within each time."""
    axes.set_title("Completion of flows")
    axes.set_xlabel("us")
    axes.set_ylabel("share of flows")
    axes.set_ylim(0, 1.04)
    spans = [each.completion_us for each in classes if len(each.completion_us)]
    for index, each in enumerate(classes):
        if not len(each.completion_us):
            continue
        ordered = sorted(each.completion_us.tolist())
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.step([ordered[0], *ordered], [0.0, *shares], where="post", color=colour, label=each.name)
    if not spans:
        axes.text(0.5, 0.5, "no flow finished", transform=axes.transAxes, ha="center", color=GREY)
        return
    if max(span.max() for span in spans) > 20 * min(span.min() for span in spans) > 0:
        axes.set_xscale("log")
    axes.legend(loc="lower right", frameon=False)


def _draw_latency(axes: Axes, classes: Sequence[ClassTimes]) -> None:
    """Draw percentiles of packet latency; every nine is as wide as the one before."""
    axes.set_title("Latency of packets")
    axes.set_xlabel("percentile")
    axes.set_ylabel("us")
    axes.set_yscale("log")
    drawn = False
    for index, each in enumerate(classes):
        points = [(_nines(percent), latency) for percent, latency in each.latency_us if latency > 0]
        if points:
            drawn = True
            places, values = zip(*points, strict=True)
            axes.plot(places, values, color=_COLOURS[index % len(_COLOURS)], label=each.name)
    axes.set_xticks([_nines(percent) for percent in _PERCENTS], [f"{percent:g}" for percent in _PERCENTS])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: number(value, 1) if f"{value:.0e}"[0] in "25" else "")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    if drawn:
        axes.legend(loc="upper left", frameon=False)


def _nines(percent: float) -> float:
    """Return where a percentile stands on an axis that grows by one a nine; its mirror image below 50."""
    from math import log10

    share = percent / 100
    return -log10(1 - share) + log10(0.5) if share >= 0.5 else log10(share) - log10(0.5)


def _draw_map(figure: Figure, axes: Axes, ports: PortsOverTime, values: NDArray[Any], name: str) -> None:
    """Draw values of ports over time as colours."""
    import numpy as np

    shown = _busiest(ports)
    axes.set_title(f"{name[0].upper()}{name[1:].partition(' (')[0]}, busiest ports")
    edges = np.concatenate([[0.0], ports.time_us])
    mesh = axes.pcolormesh(
        edges, np.arange(len(shown) + 1), values[:, shown].T, cmap="YlGnBu" if "%" in name else "YlOrBr", vmin=0
    )
    axes.set_yticks(np.arange(len(shown)) + 0.5, [ports.names[port] for port in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("us")
    axes.grid(visible=False)
    figure.colorbar(mesh, ax=axes, label=name, pad=0.02)


def _busiest(ports: PortsOverTime) -> list[int]:
    """Return the ports that sent most."""
    total = ports.utilisation.sum(axis=0)
    order = sorted(range(len(ports.names)), key=lambda port: -float(total[port]))
    return order[:_MOST_PORTS]


def _draw_hottest(axes: Axes, hottest: Sequence[tuple[str, float]]) -> None:
    axes.set_title("Busiest ports: share of the time sending (%)")
    places = range(len(hottest))
    axes.barh(places, [share * 100 for _, share in hottest], color=BLUE, alpha=0.85, height=0.7)
    for place, (_, share) in zip(places, hottest, strict=True):
        axes.text(share * 100 + 0.8, place, f"{share * 100:.1f}", va="center", fontsize=7, color=GREY)
    axes.set_yticks(places, [name for name, _ in hottest])
    axes.set_xlim(0, 106)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
