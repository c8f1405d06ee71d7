"""A window of a simulated service's time, slice by slice: units' steps, what is in them, and requests.

`fourlane.report.perfetto` writes it as a trace. Steps within a leap are laid out anew from its two ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fourlane.twin.serving.fast_steps import load_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.twin.serving.records import DecodeLeap, PrefillStep
    from fourlane.twin.serving.results import ServingResults
    from fourlane.twin.times import Phase

__all__ = ["WindowSlice", "WindowTrack", "window"]

DETAILED_STEPS = 40
"""Steps of a unit that are shown with what they compute and send, layer by layer; those after them without."""
MOST_REQUESTS = 200


@dataclass(frozen=True, slots=True)
class WindowSlice:
    """Something that took from `begin_s` to `end_s`, in seconds since the simulation's begin."""

    name: str
    category: str
    begin_s: float
    end_s: float
    notes: dict[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WindowTrack:
    """A row: slices that follow each other, of a process."""

    process: str
    name: str
    slices: list[WindowSlice]


def window(results: ServingResults, begin: float, end: float) -> list[WindowTrack]:
    """Return what happened between two moments, in seconds since the simulation's begin.

    Of at most 200 requests, and of each unit's first forty steps what they compute and send.
    """
    tracks: list[WindowTrack] = []
    for phase in ("prefill", "decode"):
        units = results.assembly.phases()[phase].pool.units
        for unit in range(units):
            tracks += _unit_tracks(results, phase, unit, begin, end)
    return [track for track in (*tracks, *_request_tracks(results, begin, end)) if track.slices]


@dataclass(frozen=True, slots=True)
class _Step:
    record: PrefillStep | DecodeLeap
    begin: float
    end: float
    notes: dict[str, int | str]
    context: float = 0.0


def _unit_tracks(results: ServingResults, phase: Phase, unit: int, begin: float, end: float) -> Iterator[WindowTrack]:
    process = f"{phase} unit {unit}"
    find = _prefill_steps if phase == "prefill" else _decode_steps
    steps = list(find(results, unit, begin, end))
    what = "prompts" if phase == "prefill" else "decoding"
    yield WindowTrack(process, "steps", [WindowSlice(what, "step", step.begin, step.end, step.notes) for step in steps])
    rows: dict[str, list[WindowSlice]] = {}
    for step in steps[:DETAILED_STEPS]:
        for row, each in _inside(step):
            rows.setdefault(row, []).append(each)
    for row in sorted(rows):
        yield WindowTrack(process, row, rows[row])


def _prefill_steps(results: ServingResults, unit: int, begin: float, end: float) -> Iterator[_Step]:
    for step, began, ended in results.prefill_steps:
        if step.unit == unit and began < end and ended > begin:
            notes: dict[str, int | str] = {"tokens": step.total, "tokens of the fullest rank": step.tokens}
            yield _Step(step, began, ended, notes)


def _decode_steps(results: ServingResults, unit: int, begin: float, end: float) -> Iterator[_Step]:
    for leap, began, ended in results.decode_leaps:
        if leap.unit != unit or began >= end or ended <= begin:
            continue
        contexts = leap.context + leap.growth * np.arange(leap.steps)
        first = leap.times.seconds(leap.rows, contexts[0], leap.mean)
        last = leap.times.seconds(leap.rows, contexts[-1], leap.mean)
        lasting = np.linspace(first, last, leap.steps)
        edges = began + np.concatenate([[0.0], np.cumsum(lasting)]) * ((ended - began) / lasting.sum())
        for number in range(leap.steps):
            if edges[number] < end and edges[number + 1] > begin:
                notes: dict[str, int | str] = {
                    "sequences": leap.sequences,
                    "rows of the fullest rank": round(leap.rows),
                    "context of the fullest rank": round(contexts[number]),
                }
                yield _Step(leap, float(edges[number]), float(edges[number + 1]), notes, float(contexts[number]))


def _inside(step: _Step) -> Iterator[tuple[str, WindowSlice]]:
    """Yield what a step computes and sends, by stream, fitted to the time it took."""
    record = step.record
    times = record.times
    steptime, intervals, names = times.model.timeline(load_of(record.point, times.ranks, times.phase))
    whole = max(steptime.seconds, 1e-12)
    scale = (step.end - step.begin) / whole
    for interval, name in zip(intervals, names, strict=True):
        row = f"stream {interval.stream + 1}: {'network' if interval.travels else 'computing'}"
        category = "travels" if interval.travels else "computes"
        begin, end = step.begin + interval.begin_s * scale, step.begin + interval.end_s * scale
        if end > begin:
            yield row, WindowSlice(name, category, begin, end)


def _request_tracks(results: ServingResults, begin: float, end: float) -> Iterator[WindowTrack]:
    """Yield a row for each request that is under way."""
    requests = results.requests
    shown = np.flatnonzero((requests.sent < end) & (requests.ended > begin))[:MOST_REQUESTS]
    for index in shown.tolist():
        marks = [
            ("waiting in the gateway", requests.sent[index], requests.placed[index]),
            ("reserving, waiting for a step", requests.placed[index], requests.started[index]),
            ("computing the prompt", requests.started[index], requests.first_token[index]),
            ("KV on its way", requests.first_token[index], requests.kv_done[index]),
            ("waiting for a step", requests.kv_done[index], requests.decoding[index]),
            ("decoding", requests.decoding[index], requests.ended[index]),
        ]
        notes: dict[str, int | str] = {
            "prompt tokens": int(requests.prompt_tokens[index]),
            "cached": int(requests.cached_tokens[index]),
            "answer tokens": int(requests.output_tokens[index]),
            "ranks": f"prefill/{requests.prefill_rank[index]}, decode/{requests.decode_rank[index]}",
        }
        slices = [
            WindowSlice(name, "request", float(since), float(until), notes)
            for name, since, until in marks
            if np.isfinite(until) and until > since
        ]
        yield WindowTrack("requests", f"request {index}", slices)
