"""Tables that come with the package, so that common clusters are answered at once: `filled.json`.

Made by `tools/fill_exchange_tables.py`, under the same keys as the cache's: where anything that goes into a table
differs, its key does, and it is filled anew.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from fourlane.twin.exchange.table import Measured

__all__ = ["Shipped", "ShippedRun", "shipped_slowdowns", "shipped_table"]


class ShippedRun(msgspec.Struct, frozen=True, array_like=True):
    """A packet run, as `Measured` has it."""

    operation: str
    tokens: int
    max_over_mean: float
    seconds: float
    nic: float
    nvlink: float


class Shipped(msgspec.Struct, frozen=True, kw_only=True):
    """All tables, and slowdowns beside KV cache, by key."""

    made: str
    simulator: str
    tables: dict[str, tuple[ShippedRun, ...]]
    beside_kv: dict[str, dict[str, float]]


@cache
def _shipped() -> Shipped:
    path = Path(__file__).parent / "filled.json"
    return msgspec.json.decode(path.read_bytes(), type=Shipped)


def shipped_table(key: str) -> tuple[Measured, ...] | None:
    """Return the runs of a table; None if it is not among them."""
    found = _shipped().tables.get(key)
    if found is None:
        return None
    return msgspec.convert([msgspec.structs.asdict(run) for run in found], tuple[Measured, ...])


def shipped_slowdowns(key: str) -> dict[str, float] | None:
    """Return slowdowns beside KV cache; None if they are not among them."""
    return _shipped().beside_kv.get(key)
