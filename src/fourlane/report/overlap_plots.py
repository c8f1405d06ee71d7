"""Two streams as pictures: what they gain over one, and a pass of both, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.report.plots import BLUE, GREEN, GREY, ORANGE, figure_of, save_figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from fourlane.report.perfetto import Track

__all__ = ["Case", "plot_overlap", "plot_streams"]

_COLOURS = (BLUE, ORANGE, GREEN, "#8250df", "#bf3989")
_KINDS = {"compute": ("computes", BLUE), "wait": ("waits", "#eaeef2"), "communicate": ("travels", ORANGE)}


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Passes with so many tokens a rank over links of one rate: gloo, one stream, two, and nothing exchanged.

    With the rule on: `by_rule` is how many times faster passes were than the one stream's, of medians, `dual_share`
    how many of them ran in two streams, `predicted` the gain it told.

    Units:
        gloo_s, single_s, dual_s, alone_s: seconds of a pass, medians.
    """

    link: str
    tokens: int
    gloo_s: float
    single_s: float
    dual_s: float
    alone_s: float
    by_rule: float
    dual_share: float
    predicted: float | None

    @property
    def communication(self) -> float:
        """Return the share of the one stream's pass that is not computing."""
        return max(0.0, 1 - self.alone_s / self.single_s)

    @property
    def gain(self) -> float:
        """Return how many times faster two streams are than one."""
        return self.single_s / self.dual_s

    @property
    def most(self) -> float:
        """Return what the gain could be at most: the longer of computing and communicating remains."""
        return 1 / max(self.communication, 1 - self.communication)


def plot_overlap(path: Path, cases: Sequence[Case], *, title: str) -> None:
    """Draw pass times over tokens for the first link, and gain over the share of communication for all.

    Args:
        path: where to; the suffix says the format (.html, .png, .svg, .pdf).
        cases: in order of links, then of tokens.
        title: of the whole.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    links = list(dict.fromkeys(case.link for case in cases))
    with figure_of(title, height=3.9) as figure:
        left, right = figure.subplots(1, 2)
        _draw_times(left, [case for case in cases if case.link == links[0]])
        _draw_gains(right, cases, links)
        save_figure(figure, path)


def _draw_times(axes: Axes, cases: Sequence[Case]) -> None:
    axes.set_title(f"A pass, {cases[0].link}")
    axes.set_xlabel("tokens a rank")
    axes.set_ylabel("ms")
    tokens = range(len(cases))
    ways = (
        ("gloo, one stream", [case.gloo_s for case in cases], GREY),
        ("one stream", [case.single_s for case in cases], ORANGE),
        ("two streams", [case.dual_s for case in cases], BLUE),
    )
    for place, (name, seconds, colour) in enumerate(ways):
        axes.bar([at + 0.27 * (place - 1) for at in tokens], [1e3 * s for s in seconds], 0.25, color=colour, label=name)
    axes.set_xticks(list(tokens), [f"{case.tokens:,}" for case in cases])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(top=1.35e3 * max(max(case.gloo_s, case.single_s, case.dual_s) for case in cases))
    axes.legend(loc="upper left", frameon=False)


def _draw_gains(axes: Axes, cases: Sequence[Case], links: Sequence[str]) -> None:
    axes.set_title("Gain of two streams over one")
    axes.set_xlabel("share of the one stream's pass that is communication")
    axes.set_ylabel("times faster")
    shares = [share / 100 for share in range(101)]
    axes.plot(
        shares, [1 / max(share, 1 - share) for share in shares], "--", color=GREY, linewidth=1, label="all of it hidden"
    )
    axes.axhline(1.0, color=GREY, linewidth=0.8)
    for link, colour in zip(links, _COLOURS * len(links), strict=False):
        own = [case for case in cases if case.link == link]
        axes.plot([case.communication for case in own], [case.gain for case in own], "o", color=colour, label=link)
        for case in own:
            axes.annotate(
                f"{case.tokens:,}",
                (case.communication, case.gain),
                xytext=(5, 4),
                textcoords="offset points",
                color=GREY,
                size=8,
            )
    axes.set_xlim(0, 1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def plot_streams(path: Path, tracks: Sequence[Track], *, title: str, until_s: float) -> None:
    """Draw the rows of a trace as bars over time: what computes, waits and travels.

    Args:
        path: where to.
        tracks: rows from top to bottom.
        title: of the picture.
        until_s: where the time axis ends, in seconds from the beginning.

    Raises:
        SpecError: the file cannot be written or its suffix is no picture format.
    """
    with figure_of(title, height=0.9 + 0.42 * len(tracks)) as figure:
        axes = figure.add_subplot()
        for row, track in enumerate(tracks):
            for kind, (_, colour) in _KINDS.items():
                bars = [
                    (each.begin_s * 1e3, (each.end_s - each.begin_s) * 1e3)
                    for each in track.slices
                    if each.category == kind
                ]
                axes.broken_barh(bars, (row - 0.36, 0.72), color=colour, edgecolor="white", linewidth=0.4)
        for name, colour in _KINDS.values():
            axes.broken_barh([], (0, 0), color=colour, label=name)
        axes.set_yticks(range(len(tracks)), [f"{track.process}: {track.name}" for track in tracks])
        axes.set_ylim(len(tracks) - 0.5, -0.5)
        axes.set_xlim(0, until_s * 1e3)
        axes.set_xlabel("ms")
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
        save_figure(figure, path)
