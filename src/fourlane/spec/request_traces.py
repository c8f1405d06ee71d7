"""Request traces of real services: Azure's LLM inference CSV and Mooncake's JSON lines.

Azure: columns TIMESTAMP, ContextTokens, GeneratedTokens. Mooncake: `timestamp` (ms), `input_length`, `output_length`
and `hash_ids`, one for each `HASH_BLOCK` tokens of the prompt; requests with equal leading ids share that prefix.
Traces hold no text.
"""

from __future__ import annotations

import csv
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["HASH_BLOCK", "TraceRow", "read_trace_rows"]

HASH_BLOCK = 512
"""Tokens of a prompt that one of a Mooncake trace's hash ids stands for."""


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trace. `at_s`: seconds after the first; lengths in tokens; `hash_ids` may be empty."""

    at_s: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_trace_rows(path: Path, *, limit: int | None = None) -> tuple[TraceRow, ...]:
    """Read the first `limit` requests of a trace file, in the order of their times, the first at 0.

    The format is known by the file's suffix, .csv or .jsonl.

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
    shifted = [msgspec.structs.replace(row, at_s=row.at_s - start) for row in rows]
    return tuple(sorted(shifted, key=lambda row: row.at_s))


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
