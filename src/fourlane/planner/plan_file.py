"""Plans as files: what was asked, and for every row a twin that can be fed back, with its figures.

JSON, because figures go to tables and scripts. Not for searching (`fourlane.planner.search`).
"""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from fourlane.errors import SpecError
from fourlane.spec.load import load_twin
from fourlane.spec.reading import read_struct
from fourlane.spec.twin import Twin
from fourlane.spec.writing import render

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import msgspec

__all__ = ["VERSION", "expectations", "plain", "read_row"]

VERSION = 1


def plain(spec: msgspec.Struct) -> dict[str, Any]:
    """Return a spec as values for JSON, quantities as text; `read_struct` reads them back."""
    return tomllib.loads(render(spec))


def read_row(path: Path, row: int | None) -> tuple[Twin, dict[str, str]]:
    """Read a row of a plan, or a twin file, which is a plan of one row.

    Args:
        path: a plan that `fourlane plan` wrote (.json), or a twin file or name of the catalog.
        row: its number in the table, from 1; None: the first.

    Returns:
        The twin, and what the plan expects of it, as text by name; nothing of a twin file.

    Raises:
        SpecError: no such file or row, or one that is no plan.
    """
    if path.suffix != ".json":
        if row not in (None, 1):
            raise SpecError(f"--row: {path} is a twin, not a plan, and has one row, got {row}")
        return load_twin(path), {}
    rows = _rows(path)
    wanted = 1 if row is None else row
    if not 1 <= wanted <= len(rows):
        raise SpecError(f"--row: expected 1 to {len(rows)}, the rows of {path.name}, got {wanted}")
    entry = rows[wanted - 1]
    twin, faults = read_struct(Twin, entry.get("twin", {}))
    if faults:
        raise SpecError(*(f"{path.name}: rows[{wanted - 1}].twin.{fault.place}: {fault.message}" for fault in faults))
    return twin, expectations(entry.get("point") or {})


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: expected a plan that fourlane plan wrote: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"{path.name}: expected a plan that fourlane plan wrote, which is JSON: {error}") from error
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise SpecError(f'{path.name}: expected a plan that fourlane plan wrote, with "rows"; found none')
    if data.get("version") != VERSION:
        raise SpecError(f"{path.name}: version: expected {VERSION}, got {data.get('version')!r}; plan again")
    return rows


def expectations(point: Mapping[str, Any]) -> dict[str, str]:
    """Return what an operating point promises, as text by name; nothing of an empty one."""
    if not point:
        return {}
    ttft, tpot = point["ttft"], point["tpot"]
    return {
        "requests a second": f"{point['rate']:,.1f}",
        "time to first token, p50 / p99": f"{ttft['p50'] * 1000:,.0f} / {ttft['p99'] * 1000:,.0f} ms",
        "time per output token, p50 / p99": f"{tpot['p50'] * 1000:,.1f} / {tpot['p99'] * 1000:,.1f} ms",
        "prompt tokens a second, each GPU": f"{point['input_tokens_s_gpu']:,.0f}",
        "answered tokens a second, each GPU": f"{point['output_tokens_s_gpu']:,.0f}",
        "what limits it": str(point["binds"]),
    }
