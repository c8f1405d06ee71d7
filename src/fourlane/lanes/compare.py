"""Compare two lane plans, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from fourlane.spec.writing import inline

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan

__all__ = ["Difference", "differences"]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A field that two plans give different values, as TOML writes them; None where one has none."""

    place: str
    a: str | None
    b: str | None


def differences(a: LanePlan, b: LanePlan) -> list[Difference]:
    """Return where two plans differ, in the order of the first one's fields."""
    left, right = _flat(a), _flat(b)
    places = [*left, *(place for place in right if place not in left)]
    return [
        Difference(place=place, a=left.get(place), b=right.get(place))
        for place in places
        if left.get(place) != right.get(place)
    ]


def _flat(table: object, place: str = "") -> dict[str, str]:
    """Return every value below a table by its place."""
    if isinstance(table, msgspec.Struct):
        items = {name: getattr(table, name) for name in table.__struct_fields__}
    elif isinstance(table, Mapping):
        items = {kind.value: value for kind, value in table.items()}
    else:
        return {} if table is None else {place: inline(table)}
    found: dict[str, str] = {}
    for name, value in items.items():
        found |= _flat(value, f"{place}.{name}" if place else name)
    return found
