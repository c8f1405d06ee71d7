"""Turn what a file holds into an array of the right shape and range, with every fault told by its place.

Not for reading files (`spec.expert_containers`) nor for what arrays mean (`spec.expert_files`).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["checked_array", "checked_count"]

MOST_FAULTS = 5


def checked_array(
    value: Any, place: str, faults: list[str], *, dims: tuple[str, ...], least: int = 0, whole: bool = False
) -> NDArray[Any] | None:
    """Return an array of int64 or float64, or None with its faults told.

    Args:
        value: nested lists, or an array.
        place: where it is, for messages, such as "slot_of_LP".
        faults: gets a sentence for each fault.
        dims: what shapes are allowed, such as ("[layers, experts]", "[windows, layers, experts]").
        least: the lowest number allowed.
        whole: whether fractions are refused.
    """
    before = len(faults)
    array = _as_array(value, place, faults, " or ".join(dims))
    if array is None:
        return None
    if array.ndim not in [text.count(",") + 1 for text in dims] or 0 in array.shape:
        faults.append(f"{place}: expected {' or '.join(dims)}, none of them 0, got shape {list(array.shape)}")
    else:
        faults.extend(_out_of_range(array, place, least=least, whole=whole))
    if len(faults) > before:
        return None
    return array.astype("int64" if whole or array.dtype.kind in "iu" else "float64")


def checked_count(value: Any, place: str, faults: list[str]) -> int | None:
    """Return a whole number of at least 1, or None with its fault told."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    faults.append(f"{place}: expected a whole number >= 1, got {_cut(value)}")
    return None


def _as_array(value: Any, place: str, faults: list[str], allowed: str) -> NDArray[Any] | None:
    import numpy as np

    if not isinstance(value, (list, np.ndarray)):
        faults.append(f"{place}: expected numbers as {allowed}, got {_cut(value)}")
        return None
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        array = np.empty(0, dtype=object)
    if array.dtype.kind in "iuf" or (not array.size and array.dtype.kind != "O"):
        return array
    told = list(islice(_misfits(value, place), MOST_FAULTS)) if isinstance(value, list) else []
    faults.extend(told or [f"{place}: expected numbers as {allowed}, got {array.dtype}"])
    return None


def _misfits(value: list[Any], place: str) -> Iterator[str]:
    """Tell where nested lists are ragged, or hold something else than numbers."""
    lists = [isinstance(item, list) for item in value]
    for index, item in enumerate(value):
        at = f"{place}[{index}]"
        if isinstance(item, list) != lists[0]:
            yield f"{at}: expected {'a list' if lists[0] else 'a number'} as in {place}[0], got {_cut(item)}"
        elif isinstance(item, list):
            if len(item) != len(value[0]):
                yield f"{at}: expected {len(value[0])} items as in {place}[0], got {len(item)}"
            yield from _misfits(item, at)
        elif isinstance(item, bool) or not isinstance(item, (int, float)):
            yield f"{at}: expected a number, got {_cut(item)}"
        elif isinstance(item, int) and abs(item) >= 1 << 63:
            yield f"{at}: expected a number below 2^63, got {_cut(item)}"


def _out_of_range(array: NDArray[Any], place: str, *, least: int, whole: bool) -> Iterator[str]:
    import numpy as np

    finite = np.isfinite(array)
    checks = [("a finite number", ~finite), (f"{least} or more", finite & (array < least))]
    if array.dtype.kind == "u":
        checks.append(("a number below 2^63", array >= np.uint64(1 << 63)))
    if whole and array.dtype.kind == "f":
        checks.append(("a whole number below 2^53", finite & ((array != np.trunc(array)) | (abs(array) >= 1 << 53))))
    for allowed, wrong in checks:
        places = np.argwhere(wrong)
        if len(places):
            at = "".join(f"[{index}]" for index in places[0])
            others = f" (and in {len(places) - 1} more places)" if len(places) > 1 else ""
            yield f"{place}{at}: expected {allowed}, got {array[tuple(places[0])].item()}{others}"


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
