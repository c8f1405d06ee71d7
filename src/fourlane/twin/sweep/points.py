"""The points of a sweep: twins with some fields changed, and the figures that are told of each."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fourlane.errors import SpecError
from fourlane.spec.load import parse, render
from fourlane.spec.twin import Twin
from fourlane.spec.twin_rules import twin_faults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["FIGURES", "Figure", "SweepPoint", "files_of", "points_of"]

MOST_POINTS = 100_000


class Figure(NamedTuple):
    """A figure of a point: what it is called in tables, in which unit, and whether less of it is better."""

    title: str
    unit: str
    less_is_better: bool = False


FIGURES: dict[str, Figure] = {
    "requests_s": Figure("Requests", "1/s"),
    "output_tokens_s_gpu": Figure("Output a GPU", "tokens/s"),
    "input_tokens_s_gpu": Figure("Input a GPU", "tokens/s"),
    "goodput": Figure("Goodput", "1/s"),
    "ttft_mean_s": Figure("TTFT, mean", "s", less_is_better=True),
    "ttft_p99_s": Figure("TTFT, p99", "s", less_is_better=True),
    "tpot_mean_s": Figure("TPOT, mean", "s", less_is_better=True),
    "tpot_p99_s": Figure("TPOT, p99", "s", less_is_better=True),
    "slo_share": Figure("Requests within the SLO", ""),
    "prefill_use": Figure("Prefill in use", ""),
    "decode_use": Figure("Decode in use", ""),
}
"""What is told of every point, by name; beside it `gpus`, `slo_met` and `binds`, which are no quantities."""


class SweepPoint(NamedTuple):
    """A twin of the sweep. `twin` is None where the values make none, and `error` says why."""

    values: dict[str, str]
    twin: Twin | None
    error: str = ""


def points_of(twin: Twin, vary: Mapping[str, Sequence[str]]) -> list[SweepPoint]:
    """Return a point for every combination of values, the last field's changing fastest.

    Args:
        twin: with all other fields.
        vary: values by field, as `--set` takes them: {"decode.ranks": ["32", "64"]}.

    Raises:
        SpecError: nothing varies, a field is unknown, or a value is none of its: all of that at once.
    """
    counts = {path: len(values) for path, values in vary.items()}
    if not counts or not all(counts.values()):
        empty = [path for path, count in counts.items() if not count]
        raise SpecError(f"sweep: expected fields to vary, each with values, got {empty[0] if empty else 'no field'}")
    total = 1
    for count in counts.values():
        total *= count
    if total > MOST_POINTS:
        raise SpecError(f"sweep: expected at most {MOST_POINTS:,} points, got {total:,}: vary fewer fields at a time")
    text = render(_absolute(twin))
    _refuse_misread(text, vary)
    chosen = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    return [_point(text, values) for values in chosen]


def _refuse_misread(text: str, vary: Mapping[str, Sequence[str]]) -> None:
    """Refuse fields there are not, and values that no other field could make right.

    Raises:
        SpecError: with every fault.
    """
    faults: list[str] = []
    for path, values in vary.items():
        for value in values:
            try:
                parse(text, Twin, [f"{path}={value}"], source="sweep")
            except SpecError as error:
                faults += error.faults
    if faults:
        raise SpecError(*dict.fromkeys(faults))


def _point(text: str, values: dict[str, str]) -> SweepPoint:
    overrides = [f"{path}={value}" for path, value in values.items()]
    try:
        return SweepPoint(values, _absolute(parse(text, Twin, overrides, source="sweep", rules=twin_faults)))
    except SpecError as error:
        return SweepPoint(values, None, str(error))


_NAMED = (("model",), ("cluster",), ("hardware",), ("lanes", "plan"), ("experts", "popularity"), ("workload", "trace"))
"""Fields that may name a file."""


def files_of(twin: Twin) -> dict[str, str]:
    """Return a hash of the contents of every file a twin names, by field."""
    found: dict[str, str] = {}
    for path in _NAMED:
        file = _file(twin, path)
        if file is not None:
            found[".".join(path)] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return found


def _absolute(twin: Twin) -> Twin:
    """Return a twin that other processes, with another working folder, read alike."""
    changed: Any = twin
    for path in _NAMED:
        file = _file(twin, path)
        if file is None:
            continue
        absolute = str(file.resolve())
        if len(path) == 1:
            changed = msgspec.structs.replace(changed, **{path[0]: absolute})
        else:
            inner = msgspec.structs.replace(getattr(changed, path[0]), **{path[1]: absolute})
            changed = msgspec.structs.replace(changed, **{path[0]: inner})
    return changed


def _file(twin: Twin, path: tuple[str, ...]) -> Path | None:
    value: Any = twin
    for name in path:
        value = getattr(value, name)
    if not isinstance(value, str) or not value:
        return None
    named = Path(value)
    if named.is_dir() and (named / "config.json").is_file():
        return named / "config.json"
    return named if named.is_file() else None
