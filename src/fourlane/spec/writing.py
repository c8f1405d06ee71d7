"""Write a spec struct as TOML that reads back as an equal struct."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

import msgspec

from fourlane.units import Quantity

__all__ = ["inline", "render"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}


def render(spec: msgspec.Struct) -> str:
    """Return a struct as TOML text, defaults written out, `None` left out.

    Raises:
        ValueError: a field is None whose default is not None; TOML cannot say that.
    """
    lines: list[str] = []
    _table("", _items(spec), lines)
    return "\n".join(lines).strip("\n") + "\n"


def _items(value: object) -> dict[str, object]:
    """Return the parts of a struct or mapping that are there."""
    if isinstance(value, Mapping):
        return {str(_plain(key)): item for key, item in value.items()}
    assert isinstance(value, msgspec.Struct)
    config = value.__struct_config__
    items: dict[str, object] = {} if config.tag_field is None else {config.tag_field: config.tag}
    for field in msgspec.structs.fields(value):
        item = getattr(value, field.name)
        if item is not None:
            items[field.encode_name] = item
        elif field.default is not None:
            raise ValueError(f"{type(value).__name__}.{field.name}: None is not its default and TOML cannot write None")
    return items


def _table(place: str, items: dict[str, object], lines: list[str]) -> None:
    tables = {key: item for key, item in items.items() if isinstance(item, (msgspec.Struct, Mapping))}
    if place:
        lines += ["", f"[{place}]"]
    lines += [f"{_key(key)} = {inline(item)}" for key, item in items.items() if key not in tables]
    for key, item in tables.items():
        _table(f"{place}.{_key(key)}" if place else _key(key), _items(item), lines)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Quantity) else value


def inline(value: object) -> str:
    """Return a value as TOML writes it after the equals sign."""
    value = _plain(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, (msgspec.Struct, Mapping)):
        return "{" + ", ".join(f"{_key(key)} = {inline(item)}" for key, item in _items(value).items()) + "}"
    return repr(value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else _escaped(c)) for c in text) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
