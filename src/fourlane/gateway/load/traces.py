"""Recorded loads as requests: a trace's rows (`spec.request_traces`) with prompts made for them.

Requests whose leading hash ids are equal get prompts with equal beginnings, so a prefix cache has as much to find as it
had in the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError
from fourlane.gateway.load.workload import PlannedRequest, token_ids
from fourlane.spec.request_traces import HASH_BLOCK, TraceRow, read_trace_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Trace", "read_trace"]


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in the order of their times, and how they become requests.

    `speed` 2 plays twice as fast. `length_scale` 0.1 makes prompts, answers and shared prefixes a tenth as long.
    `max_length`: prompt and answer together are cut to it (the answer keeps at most half); `cut` says how many.
    """

    rows: tuple[TraceRow, ...]
    speed: float = 1.0
    length_scale: float = 1.0
    max_length: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("--speed", self.speed), ("--length-scale", self.length_scale)):
            if not value > 0:
                raise SpecError(f"{name}: expected more than 0, got {value:g}")

    def requests(self, *, vocabulary: range, seed: int) -> Iterator[PlannedRequest]:
        """Yield the trace as requests; prompts depend on the seed and on hash ids alone."""
        for index, row in enumerate(self.rows):
            length, output = self._lengths(row)
            prompt = self._prompt(row, index, length, vocabulary=vocabulary, seed=seed)
            yield PlannedRequest(prompt=prompt, max_tokens=output, due_s=row.at_s / self.speed)

    def cut(self) -> int:
        """Return how many requests `max_length` shortens."""
        return sum(self._lengths(row) != self._scaled(row) for row in self.rows)

    def _scaled(self, row: TraceRow) -> tuple[int, int]:
        return tuple(max(1, round(n * self.length_scale)) for n in (row.input_length, row.output_length))  # type: ignore[return-value]

    def _lengths(self, row: TraceRow) -> tuple[int, int]:
        length, output = self._scaled(row)
        if self.max_length is None or length + output <= self.max_length:
            return length, output
        output = min(output, max(1, self.max_length // 2))
        return min(length, self.max_length - output), output

    def _prompt(self, row: TraceRow, index: int, length: int, *, vocabulary: range, seed: int) -> list[int]:
        block = max(1, round(HASH_BLOCK * self.length_scale))
        prompt: list[int] = []
        for hash_id in row.hash_ids[: -(-length // block)]:
            prompt += token_ids(f"{seed}/block/{hash_id}", block, vocabulary=vocabulary)
        missing = length - len(prompt)
        if missing > 0:
            prompt += token_ids(f"{seed}/row/{index}", missing, vocabulary=vocabulary)
        return prompt[:length]


def read_trace(
    path: Path,
    *,
    limit: int | None = None,
    speed: float = 1.0,
    length_scale: float = 1.0,
    max_length: int | None = None,
) -> Trace:
    """Read the first `limit` requests of a trace file; the format is known by its suffix, .csv or .jsonl.

    Raises:
        SpecError: no such file, another format, or a row that is not of it; names file and line.
    """
    rows = read_trace_rows(path, limit=limit)
    return Trace(rows=rows, speed=speed, length_scale=length_scale, max_length=max_length)
