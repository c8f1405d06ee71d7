"""Plain values as YAML: mappings, lists, text, numbers. What it writes, any YAML reader reads back equal."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["documents", "yaml"]

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def documents(values: Sequence[object], *, head: str) -> str:
    """Write several values as the documents of one file, below a comment."""
    return head + "".join(f"---\n{yaml(value)}" for value in values)


def yaml(value: object) -> str:
    """Write a value as YAML."""
    return "\n".join(_lines(value, 0)) + "\n"


def _lines(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield from _mapping(value, depth)
    elif isinstance(value, (list, tuple)) and value:
        yield from _items(value, depth)
    else:
        yield " " * depth + _scalar(value)


def _mapping(value: Mapping[str, object], depth: int) -> Iterator[str]:
    for key, item in value.items():
        head = " " * depth + _scalar(str(key)) + ":"
        if isinstance(item, (dict, list, tuple)) and item:
            yield head
            yield from _lines(item, depth + 2)
        elif isinstance(item, str) and _is_block(item):
            yield f"{head} |{'' if item.endswith(chr(10)) else '-'}"
            yield from (" " * (depth + 2) + line if line else "" for line in item.removesuffix("\n").split("\n"))
        else:
            yield f"{head} {_scalar(item)}"


def _items(value: Sequence[object], depth: int) -> Iterator[str]:
    for item in value:
        first, *others = _lines(item, depth + 2)
        yield f"{' ' * depth}- {first.lstrip(' ')}"
        yield from others


def _is_block(text: str) -> bool:
    """Tell whether text can stand as a block: several lines, none that YAML would read otherwise."""
    return (
        "\n" in text
        and not text.startswith((" ", "\n", "\t"))
        and not text.endswith("\n\n")
        and all(c.isprintable() or c == "\n" for c in text)
        and not any(line != line.rstrip() for line in text.split("\n"))
    )


def _scalar(value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return '"' + "".join(map(_character, value)) + '"'


def _character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
