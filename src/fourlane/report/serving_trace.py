"""A window of a simulated service's time as rows of a Perfetto trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.report.perfetto import Slice, Track
from fourlane.twin.serving.window import window

if TYPE_CHECKING:
    from fourlane.twin.serving.results import ServingResults

__all__ = ["window_tracks"]


def window_tracks(results: ServingResults, begin: float, end: float) -> list[Track]:
    """Return what happened between two moments: steps whole, requests as far as they lie within.

    Args:
        results: of the simulation.
        begin: in seconds since the simulation's begin.
        end: likewise.

    Raises:
        SpecError: nothing happened then.
    """
    found = window(results, begin, end)
    if not found:
        first, last = results.span
        raise SpecError(
            f"--window: nothing happened between {begin:g} s and {end:g} s; requests are simulated from {first:.6g} s "
            f"to {last:.6g} s"
        )
    return [
        Track(
            process=track.process,
            name=track.name,
            slices=[
                Slice(
                    name=each.name,
                    category=each.category,
                    begin_s=max(each.begin_s, begin) if each.category == "request" else each.begin_s,
                    end_s=min(each.end_s, end) if each.category == "request" else each.end_s,
                    notes=dict(each.notes),
                )
                for each in track.slices
                if each.category != "request" or (each.begin_s < end and each.end_s > begin)
            ],
        )
        for track in found
    ]
