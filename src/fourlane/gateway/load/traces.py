"""Request traces of real services: Azure's LLM inference CSV and Mooncake's JSON lines.

Azure: columns TIMESTAMP, ContextTokens, GeneratedTokens. Mooncake: `timestamp` (ms), `input_length`, `output_length`
and `hash_ids`, one for each 512 tokens of the prompt; requests with equal leading ids share that prefix, and so do
the prompts made here, so a prefix cache has as much to find as it had in the original. Traces hold no text.
"""

from __future__ import annotations

import csv
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError
from fourlane.gateway.load.workload import PlannedRequest, token_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Trace", "TraceRow", "read_trace"]

_HASH_BLOCK = 512


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trace. `at_s`: seconds after the first; lengths in tokens; `hash_ids` may be empty."""

    at_s: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


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
        block = max(1, round(_HASH_BLOCK * self.length_scale))
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
    readers = {".csv": _read_azure, ".jsonl": _read_mooncake}
    if path.suffix not in readers:
        raise SpecError(f"{path}: expected a trace in a .csv (Azure) or .jsonl (Mooncake) file, got {path.suffix!r}")
    try:
        rows = list(readers[path.suffix](path, limit))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: expected UTF-8 text: {error}") from error
    if not rows:
        raise SpecError(f"{path}: expected at least one request, found none")
    start = min(row.at_s for row in rows)
    shifted = sorted((msgspec.structs.replace(row, at_s=row.at_s - start) for row in rows), key=lambda row: row.at_s)
    return Trace(rows=tuple(shifted), speed=speed, length_scale=length_scale, max_length=max_length)


def _read_azure(path: Path, limit: int | None) -> Iterator[TraceRow]:
    columns = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or not set(columns) <= set(reader.fieldnames):
            raise SpecError(f"{path}:1: expected the columns {', '.join(columns)}, got {reader.fieldnames}")
        for number, row in enumerate(reader):
            if number == limit:
                return
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()  # 7 decimals there, 6 here
                yield _row(at, int(row["ContextTokens"]), int(row["GeneratedTokens"]), ())
            except (TypeError, ValueError) as error:
                raise SpecError(
                    f"{path}:{reader.line_num}: expected a time and two counts of tokens: {error}"
                ) from error


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def _read_mooncake(path: Path, limit: int | None) -> Iterator[TraceRow]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if number == limit:
                return
            try:
                row = decoder.decode(line)
                yield _row(row.timestamp / 1e3, row.input_length, row.output_length, row.hash_ids)
            except (msgspec.MsgspecError, ValueError) as error:
                raise SpecError(f"{path}:{number + 1}: not a line of a Mooncake trace: {error}") from error


def _row(at_s: float, input_length: int, output_length: int, hash_ids: tuple[int, ...]) -> TraceRow:
    if input_length < 0 or output_length < 0:
        raise ValueError(f"lengths must be 0 or more, got {input_length} and {output_length}")
    return TraceRow(at_s=at_s, input_length=input_length, output_length=output_length, hash_ids=hash_ids)
