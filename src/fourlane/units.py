"""Quantities with a dimension: `Rate` (bit/s), `Duration` (ps), `Size` (bytes), `Length` (mm).

Each is an `int` in its base unit, so sums and comparisons are exact. People write them as text with
a unit, and only this module reads or writes that text. Not for measured floats (those stay floats,
with the unit in their name).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import ClassVar, Self

__all__ = ["Duration", "Length", "Quantity", "Rate", "Size"]

_TEXT = re.compile(r"([0-9](?:[0-9_]*[0-9])?(?:\.[0-9]+)?)\s*(\S*)")
_DECIMAL = (("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9), ("T", 10**12), ("P", 10**15))
_BINARY = (("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40), ("Pi", 1 << 50))


class Quantity(int):
    """Base of the four quantities: a non-negative int in its base unit, read from and written as text."""

    kind: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]
    base: ClassVar[str]
    scale_of: ClassVar[tuple[tuple[str, int], ...]]
    """Unit and its size in base units; `format` uses the first `written` of them, `parse` all."""
    written: ClassVar[int]

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read a quantity from text such as "64KiB".

        Args:
            text: a number and a unit; a value of this very class is returned as it is.

        Raises:
            ValueError: no unit, an unknown unit, a negative number, or finer than the base unit.
        """
        if isinstance(text, cls):
            return text
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(cls._expected(text) + cls._hint(text))
        number, unit = match.groups()
        scale = dict(cls.scale_of).get(unit)
        if scale is None:
            raise ValueError(cls._expected(text) + cls._suggest(number, unit))
        value = Fraction(number.replace("_", "")) * scale
        if value.denominator != 1:
            raise ValueError(cls._expected(text) + f" (finer than 1 {cls.base}; round it to whole {cls.base})")
        return cls(value.numerator)

    @classmethod
    def _expected(cls, found: object) -> str:
        shown = f'"{found}"' if isinstance(found, str) else repr(found)
        return f'expected a {cls.kind} such as "{cls.examples[0]}", got {shown}'

    @classmethod
    def _hint(cls, found: object) -> str:
        if isinstance(found, (int, float)) and not isinstance(found, bool):
            return f" (a bare number has no unit; write {cls._choices(str(found))})" if found >= 0 else ""
        return ""

    @classmethod
    def _suggest(cls, number: str, unit: str) -> str:
        """Return the likeliest spellings of what was meant, or the units there are."""
        if not unit:
            return f" (a bare number has no unit; write {cls._choices(number)})"
        known = [name for name, _ in cls.scale_of]
        folded = [name for name in known if name.lower() == unit.lower()]
        begun = folded or [name for name in known if name.lower().startswith(unit.lower())]
        if begun:
            return " (did you mean " + " or ".join(f'"{number}{name}"' for name in begun[:2]) + "?)"
        return f" (units: {', '.join(known)})"

    @classmethod
    def _choices(cls, number: str) -> str:
        units = [example.lstrip("0123456789.") for example in cls.examples]
        spelled = [f'"{number}{unit}"' for unit in units]
        return ", ".join(spelled[:-1]) + " or " + spelled[-1]

    def __str__(self) -> str:
        """Return the shortest exact text; `parse` reads it back."""
        texts = [f"{self // scale}{unit}" for unit, scale in self.scale_of[: self.written] if self % scale == 0]
        return min(texts, key=len)

    def __repr__(self) -> str:
        """Return the class and the text."""
        return f"{type(self).__name__}({str(self)!r})"

    def __format__(self, spec: str) -> str:
        """Format as text when `spec` is empty or a width, as an int for a number's presentation type."""
        return int.__format__(self, spec) if spec[-1:] in set("bcdoxXneEfFgG%") else format(str(self), spec)


class Rate(Quantity):
    """A data rate in bit/s: "400Gbps", "50GB/s"."""

    kind = "rate"
    examples = ("400Gbps", "50GB/s", "100Mbps")
    base = "bit/s"
    scale_of = (
        *((f"{prefix}bps", scale) for prefix, scale in _DECIMAL),
        *((f"{prefix}B/s", 8 * scale) for prefix, scale in _DECIMAL),
        *((f"{prefix}B/s", 8 * scale) for prefix, scale in _BINARY),
        *((f"{prefix}bit/s", scale) for prefix, scale in _DECIMAL),
    )
    written = len(_DECIMAL)

    @property
    def bytes_per_second(self) -> float:
        """Return the rate in bytes/s."""
        return int(self) / 8


class Duration(Quantity):
    """A time span in ps: "4us", "30s"."""

    kind = "duration"
    examples = ("4us", "20ms", "30s")
    base = "ps"
    scale_of = (
        ("ps", 1),
        ("ns", 10**3),
        ("us", 10**6),
        ("ms", 10**9),
        ("s", 10**12),
        ("min", 60 * 10**12),
        ("h", 3600 * 10**12),
    )
    written = 5

    @classmethod
    def from_seconds(cls, seconds: float) -> Self:
        """Return the duration nearest to a float of seconds."""
        return cls(round(seconds * 10**12))

    @property
    def seconds(self) -> float:
        """Return the duration in seconds."""
        return int(self) / 10**12


class Size(Quantity):
    """A number of bytes: "64KiB", "2GB"."""

    kind = "size"
    examples = ("64KiB", "256MiB", "2GB")
    base = "byte"
    scale_of = (
        *((f"{prefix}B", scale) for prefix, scale in _DECIMAL),
        *((f"{prefix}B", scale) for prefix, scale in _BINARY),
    )
    written = len(_DECIMAL) + len(_BINARY)


class Length(Quantity):
    """The length of a cable in mm: "5m", "300m"."""

    kind = "length"
    examples = ("5m", "30m", "2km")
    base = "mm"
    scale_of = (("mm", 1), ("m", 10**3), ("km", 10**6), ("cm", 10))
    written = 3

    @property
    def metres(self) -> float:
        """Return the length in metres."""
        return int(self) / 1000
