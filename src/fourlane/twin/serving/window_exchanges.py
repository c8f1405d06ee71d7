"""What of a window of a simulated service's time is worth simulating packet by packet: exchanges beside each other.

For `fourlane.twin.window_packets`. Not for what else happened then (`window`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.serving.window import window
from fourlane.twin.window_packets import KvFlow, UnitExchange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fourlane.twin.serving.results import ServingResults
    from fourlane.twin.serving.window import WindowTrack
    from fourlane.twin.times import Phase

__all__ = ["window_exchanges"]


def window_exchanges(
    results: ServingResults, begin: float, end: float, *, units: int
) -> tuple[list[UnitExchange], list[KvFlow]]:
    """Return the next exchange of some units, and the KV cache of a layer of each prompt that is computed meanwhile.

    Args:
        results: of the simulation.
        begin: in seconds since the simulation's begin; what is returned starts after it.
        end: likewise.
        units: at most so many of each phase, those that exchange soonest.

    Raises:
        SpecError: nothing is exchanged then.
    """
    tracks = window(results, begin, end)
    found = [
        each for phase in results.assembly.phases() for each in _next_exchanges(results, phase, tracks, begin)[:units]
    ]
    if not found:
        raise SpecError(f"--packets: no unit begins to exchange between {begin:g} s and {end:g} s")
    return found, list(_kv_flows(results, begin))


def _next_exchanges(
    results: ServingResults, phase: Phase, tracks: Sequence[WindowTrack], begin: float
) -> list[UnitExchange]:
    """Return the next exchange of each unit of a phase that has one, the soonest first."""
    model = results.assembly.phases()[phase]
    found = []
    for unit in range(model.pool.units):
        rows = [track for track in tracks if track.process == f"{phase} unit {unit}" and track.name.endswith("network")]
        travelling = [each for track in rows for each in track.slices if each.begin_s >= begin]
        if not travelling:
            continue
        first = min(travelling, key=lambda each: each.begin_s)
        tokens = max(1, round(_mean_tokens(results, phase, unit, first.begin_s) / len(rows)))
        found.append(
            UnitExchange(
                phase,
                unit,
                "dispatch" if "dispatch" in first.name else "combine",
                tokens,
                model.balance.at(tokens).received_max_over_mean,
                first.begin_s - begin,
            )
        )
    return sorted(found, key=lambda each: each.start_s)


def _mean_tokens(results: ServingResults, phase: Phase, unit: int, at: float) -> float:
    """Return the tokens of the mean rank in the step that a unit is in."""
    records = results.prefill_steps if phase == "prefill" else results.decode_leaps
    return next((record.mean for record, began, ended in records if record.unit == unit and began <= at <= ended), 1.0)


def _kv_flows(results: ServingResults, begin: float) -> Iterator[KvFlow]:
    requests, assembly = results.requests, results.assembly
    computing = np.flatnonzero((requests.started <= begin) & (requests.first_token > begin))
    most = assembly.prefill.pool.chunk_tokens
    for index in computing.tolist():
        tokens = min(most, int(requests.prompt_tokens[index] - requests.cached_tokens[index]))
        size = round(tokens * assembly.kv_token_bytes / assembly.architecture.layers)
        if size > 0:
            yield KvFlow(int(requests.prefill_rank[index]), int(requests.decode_rank[index]), size)
