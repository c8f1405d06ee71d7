"""Draw the orders of `policy.overlap_order` as text, as the docs show them; run it to see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.policy.overlap_order import DECODE_ORDER, EXPERTS_ORDER, PREFILL_ORDER, Stretch, timeline

if TYPE_CHECKING:
    from fourlane.policy.overlap_order import Interval, OverlapOrder

__all__ = ["pictures"]

_LAYERS = 4
_CELL = 11
"""Columns of one unit of time."""
_CASES: dict[str, tuple[OverlapOrder, list[tuple[str, Stretch]]]] = {
    "prefill": (
        PREFILL_ORDER,
        [
            ("", Stretch(0.0, "turn")),
            ("attention", Stretch(1.0, "dispatch", 1.0)),
            ("experts", Stretch(1.0, "combine", 1.0)),
        ],
    ),
    "decode": (
        DECODE_ORDER,
        [
            ("attn 0", Stretch(1.0, "turn")),
            ("attn 1", Stretch(1.0, "dispatch", 1.0)),
            ("experts", Stretch(1.0, "combine", 1.0)),
        ],
    ),
    "experts": (
        EXPERTS_ORDER,
        [
            ("", Stretch(0.0, "turn")),
            ("attention", Stretch(1.0, "dispatch", 1.0)),
            ("experts 0", Stretch(1.0, "midway")),
            ("experts 1", Stretch(1.0, "combine", 1.0)),
        ],
    ),
}


def pictures() -> dict[str, str]:
    """Return a picture of each order: some steps from the middle of a pass of several layers."""
    return {name: _picture(*case) for name, case in _CASES.items()}


def _picture(order: OverlapOrder, layer: list[tuple[str, Stretch]]) -> str:
    stretches = [stretch for _ in range(_LAYERS) for _, stretch in layer]
    names = [name for _ in range(_LAYERS) for name, _ in layer]
    intervals = timeline([stretches, stretches], order)
    second_layer = next(i.begin_s for i in intervals if i.index == len(layer) and not i.travels)
    end = second_layer + 8
    rows = {"computes": [""] * 8, "travels ": [""] * 8}
    for interval in intervals:
        if second_layer <= interval.begin_s < end and interval.end_s > interval.begin_s:
            cell = round(interval.begin_s - second_layer)
            name = stretches[interval.index].then if interval.travels else names[interval.index]
            rows["travels " if interval.travels else "computes"][cell] = _cell(interval, name)
    return "\n".join(f"{name} |{'|'.join(cell.ljust(_CELL) for cell in cells)}|" for name, cells in rows.items())


def _cell(interval: Interval, name: str) -> str:
    return f"{'AB'[interval.stream]} {name}"


if __name__ == "__main__":
    for name, picture in pictures().items():
        print(f"{name}\n{picture}\n")  # noqa: T201 - to be copied into the docs
