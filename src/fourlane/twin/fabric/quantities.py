"""Quantities as callers give them: text with a unit or a value of `fourlane.units`, never a bare number."""

from __future__ import annotations

from typing import Any

import numpy as np

from fourlane.errors import SpecError
from fourlane.units import Duration, Quantity, Size

__all__ = ["bytes_of", "ps_of", "sizes_of"]


def _whole(kind: type[Quantity], name: str, value: object, least: int) -> int:
    try:
        found = int(kind.parse(value))
    except ValueError as error:
        raise SpecError(f"{name}: {error}") from error
    if found < least:
        raise SpecError(f"{name}: expected at least {kind(least)}, got {value}")
    return found


def bytes_of(name: str, value: object, *, least: int = 0) -> int:
    """Return a size in bytes.

    Raises:
        SpecError: it is no size, or below `least`.
    """
    return _whole(Size, name, value, least)


def ps_of(name: str, value: object, *, least: int = 0) -> int:
    """Return a duration in ps.

    Raises:
        SpecError: it is no duration, or below `least`.
    """
    return _whole(Duration, name, value, least)


def sizes_of(name: str, value: Any, *, least: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return sizes in bytes: of one size for all, of a sequence of sizes, or of an integer array of bytes.

    Raises:
        SpecError: one is no size, below `least`, not whole or not a number.
    """
    if isinstance(value, np.ndarray):
        if not np.issubdtype(value.dtype, np.integer):
            raise SpecError(f"{name}: expected whole bytes as an array of integers, got dtype {value.dtype}")
        if value.size and value.min() < least:
            place = int(np.argmin(value))
            raise SpecError(f"{name}[{place}]: expected at least {least} bytes, got {value.reshape(-1)[place]}")
        return value.astype(np.int64)
    if isinstance(value, (list, tuple)):
        items = [bytes_of(f"{name}[{place}]", item, least=least) for place, item in enumerate(value)]
        return np.array(items, np.int64)
    return np.full(1, bytes_of(name, value, least=least), np.int64)
