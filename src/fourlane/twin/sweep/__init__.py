"""A service over ranges of its fields: many twins at once, over processes or machines, gone on with where it ended.

    result = sweep(load_twin("deepseek-512"), {"decode.ranks": ["72", "144"]}, Path("found"))

A point is a twin with some fields changed. What comes of each is written down as it comes (`sweep.jsonl`), so that the
same call goes on after Ctrl-C, a crash or a machine's loss; with other inputs it is refused. Not for choosing a plan
(`fourlane.planner`).
"""

from __future__ import annotations

from fourlane.twin.sweep.points import FIGURES, Figure, SweepPoint, points_of
from fourlane.twin.sweep.rows import SweepRow
from fourlane.twin.sweep.run import SweepProgress, SweepResult, sweep

__all__ = [
    "FIGURES",
    "Figure",
    "SweepPoint",
    "SweepProgress",
    "SweepResult",
    "SweepRow",
    "points_of",
    "sweep",
]
