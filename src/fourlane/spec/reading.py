"""Turn plain data (from TOML) into a msgspec struct, collecting every fault instead of the first.

Understands what specs are made of: structs, quantities, text, numbers, truth values, literals,
enums, lists, tuples, dicts and "or None". Not for messages on the wire (msgspec's own decoders).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import msgspec.inspect as kinds

from fourlane.units import Quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Fault", "did_you_mean", "expected", "read_struct", "shown"]


class Fault(NamedTuple):
    """What is wrong at a place such as "prefill.ranks" ("" is the whole file)."""

    place: str
    message: str


class _Wrong:
    """Stands for a value that could not be read; the fault is recorded already."""


_WRONG = _Wrong()


def read_struct(kind: type[msgspec.Struct], data: Mapping[str, object]) -> tuple[Any, list[Fault]]:
    """Read a struct of class `kind`.

    Returns:
        The struct, with defaults where a value was wrong (None if a required one was), and the faults.
    """
    faults: list[Fault] = []
    info = kinds.type_info(kind)
    assert isinstance(info, kinds.StructType)
    value = _struct(info, data, "", faults)
    return (None if value is _WRONG else value), faults


def _read(info: kinds.Type, value: object, place: str, faults: list[Fault]) -> Any:
    """Read one value, or record its fault and return `_WRONG`."""
    if isinstance(info, kinds.UnionType):
        return _union(info, value, place, faults)
    if isinstance(info, kinds.StructType):
        return _struct(info, value, place, faults)
    if isinstance(info, (kinds.ListType, kinds.VarTupleType)):
        return _sequence(info, value, place, faults)
    if isinstance(info, kinds.DictType):
        return _dict(info, value, place, faults)
    try:
        return _leaf(info, value)
    except ValueError as error:
        faults.append(Fault(place, str(error)))
        return _WRONG


def _struct(info: kinds.StructType, data: object, place: str, faults: list[Fault]) -> Any:
    if not isinstance(data, Mapping):
        faults.append(Fault(place, f"expected a table, got {shown(data)}"))
        return _WRONG
    names = [field.encode_name for field in info.fields]
    tag = [] if info.tag_field is None else [info.tag_field]
    faults.extend(Fault(_join(place, key), _unknown(key, tag + names)) for key in data if key not in tag + names)
    values: dict[str, Any] = {}
    for field in info.fields:
        at = _join(place, field.encode_name)
        if field.encode_name in data:
            value = _read(field.type, data[field.encode_name], at, faults)
            if value is not _WRONG:
                values[field.name] = value
        elif field.required:
            faults.append(Fault(at, f"expected {expected(field.type)}, but it is missing"))
    if any(field.required and field.name not in values for field in info.fields):
        return _WRONG
    return info.cls(**values)


def _union(info: kinds.UnionType, value: object, place: str, faults: list[Fault]) -> Any:
    """Read as the first member that fits; None is one only where there is nothing else to hold against it."""
    members = [member for member in info.types if not isinstance(member, kinds.NoneType)]
    if value is None and len(members) < len(info.types):
        return None
    if isinstance(value, Mapping):
        members = [member for member in members if isinstance(member, kinds.StructType)] or members
    if len(members) == 1:
        return _read(members[0], value, place, faults)
    tagged = [member for member in members if isinstance(member, kinds.StructType) and member.tag_field is not None]
    if isinstance(value, Mapping) and tagged == members:
        return _tagged(tagged, value, place, faults)
    for member in members:
        tried: list[Fault] = []
        found = _read(member, value, place, tried)
        if not tried:
            return found
    faults.append(Fault(place, f"expected {' or '.join(map(expected, members))}, got {shown(value)}"))
    return _WRONG


def _tagged(members: list[kinds.StructType], value: Mapping[str, object], place: str, faults: list[Fault]) -> Any:
    """Read as the struct that the tag names."""
    field = str(members[0].tag_field)
    tags = {member.tag: member for member in members}
    found = value.get(field)
    if isinstance(found, str) and found in tags:
        return _read(tags[found], value, place, faults)
    what = "it is missing" if field not in value else f"got {shown(found)}{did_you_mean(found, list(tags))}"
    faults.append(Fault(_join(place, field), f"expected {' or '.join(map(shown, tags))}, {what}"))
    return _WRONG


def _sequence(info: kinds.ListType | kinds.VarTupleType, value: object, place: str, faults: list[Fault]) -> Any:
    if not isinstance(value, (list, tuple)):
        faults.append(Fault(place, f"expected {expected(info)}, got {shown(value)}"))
        return _WRONG
    items = [_read(info.item_type, item, f"{place}[{index}]", faults) for index, item in enumerate(value)]
    if any(item is _WRONG for item in items):
        return _WRONG
    return tuple(items) if isinstance(info, kinds.VarTupleType) else items


def _dict(info: kinds.DictType, value: object, place: str, faults: list[Fault]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(Fault(place, f"expected {expected(info)}, got {shown(value)}"))
        return _WRONG
    pairs: dict[Any, Any] = {}
    wrong = False
    for key, item in value.items():
        at = _join(place, key)
        name = _read(info.key_type, key, at, faults)
        read = _WRONG if name is _WRONG else _read(info.value_type, item, at, faults)
        wrong = wrong or read is _WRONG
        pairs[name] = read
    return _WRONG if wrong else pairs


def _leaf(info: kinds.Type, value: object) -> Any:
    """Return a value without parts.

    Raises:
        ValueError: it is not what `info` describes.
    """
    if isinstance(info, kinds.CustomType) and issubclass(info.cls, Quantity):
        return info.cls.parse(value)
    if isinstance(info, (kinds.LiteralType, kinds.EnumType)):
        return _chosen(info, value)
    fits = _FITS.get(type(info))
    if fits is None:
        raise TypeError(f"a spec cannot hold {info!r}; extend fourlane.spec.reading")
    if not fits(value) or not _within(info, value):
        raise ValueError(f"expected {expected(info)}, got {shown(value)}")
    return float(value) if isinstance(info, kinds.FloatType) else value  # type: ignore[arg-type]


_FITS: Mapping[type[kinds.Type], Callable[[object], bool]] = {
    kinds.BoolType: lambda value: isinstance(value, bool),
    kinds.IntType: lambda value: isinstance(value, int) and not isinstance(value, bool),
    kinds.FloatType: lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ),
    kinds.StrType: lambda value: isinstance(value, str),
}


def _choices(info: kinds.LiteralType | kinds.EnumType) -> dict[Any, Any]:
    """Return what may be written, and what each stands for."""
    if isinstance(info, kinds.EnumType):
        return {member.value: member for member in info.cls}
    return {choice: choice for choice in info.values}


def _chosen(info: kinds.LiteralType | kinds.EnumType, value: object) -> Any:
    choices = _choices(info)
    if isinstance(value, (str, int)) and not isinstance(value, bool) and value in choices:
        return choices[value]
    raise ValueError(f"expected {expected(info)}, got {shown(value)}{did_you_mean(value, list(choices))}")


def _within(info: kinds.Type, value: Any) -> bool:
    if isinstance(info, (kinds.IntType, kinds.FloatType)):
        return (
            (info.ge is None or value >= info.ge)
            and (info.gt is None or value > info.gt)
            and (info.le is None or value <= info.le)
            and (info.lt is None or value < info.lt)
        )
    return True


def expected(info: kinds.Type) -> str:  # noqa: PLR0911 - a case a kind
    """Describe what a value must be, to follow "expected"."""
    if isinstance(info, kinds.CustomType) and issubclass(info.cls, Quantity):
        return f'a {info.cls.kind} such as "{info.cls.examples[0]}"'
    if isinstance(info, (kinds.IntType, kinds.FloatType)):
        return _expected_number(info)
    if isinstance(info, (kinds.LiteralType, kinds.EnumType)):
        return " or ".join(map(shown, _choices(info)))
    if isinstance(info, kinds.UnionType):
        return " or ".join(expected(member) for member in info.types if not isinstance(member, kinds.NoneType))
    if isinstance(info, (kinds.ListType, kinds.VarTupleType)):
        return f"an array, each item {expected(info.item_type)}"
    if isinstance(info, kinds.BoolType):
        return "true or false"
    return "text" if isinstance(info, kinds.StrType) else "a table"


def _expected_number(info: kinds.IntType | kinds.FloatType) -> str:
    bounds = ((">=", info.ge), (">", info.gt), ("<=", info.le), ("<", info.lt))
    limits = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
    return f"{'a whole number' if isinstance(info, kinds.IntType) else 'a number'} {limits}".rstrip()


def shown(value: object) -> str:
    """Write a value as it looks in TOML, cut to a readable length."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = '"' + value + '"'
    elif isinstance(value, Mapping):
        text = "a table"
    else:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown(key: str, names: list[str]) -> str:
    return f"unknown key{did_you_mean(key, names)}; known: {', '.join(names)}"


def did_you_mean(found: object, names: Iterable[object]) -> str:
    """Return " (did you mean ...?)" with the name most like what was found, "" if none is."""
    texts = {name.lower().replace("-", "_"): name for name in names if isinstance(name, str)}
    close = difflib.get_close_matches(found.lower().replace("-", "_"), texts, n=1) if isinstance(found, str) else []
    return f' (did you mean "{texts[close[0]]}"?)' if close else ""


def _join(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)
