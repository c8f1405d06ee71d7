"""What `fourlane bench exchange` measured, as tables, as lines of a plot, and as figures for JSON."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from fourlane.engine.exchange.measure import MEMCPY
from fourlane.report.exchange_plots import Line
from fourlane.report.tables import Table, byte_text, number, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.cli.bench.options import Link
    from fourlane.engine.exchange.measure import Measured, Way

__all__ = ["exchange_tables", "figures_of", "lines_of"]

BASELINE = "torch_all_to_all"
_NAMES = {BASELINE: "gloo all_to_all_single"}
_TITLES: dict[Way, str] = {
    "plain": "All-to-all of equal blocks",
    "pair": "Dispatch and combine, back to back: period of a pair",
}


def exchange_tables(found: Sequence[Measured], *, link: Link | None) -> list[Table]:
    """Return a table a way and number of ranks, then who waited for whom."""
    ways = dict.fromkeys((each.way, each.ranks) for each in found)
    tables = [
        _table([each for each in found if (each.way, each.ranks) == key], link) for key in sorted(ways, key=_order)
    ]
    return tables + [_waits(each) for each in found if each.way == "pair" and each.waited_s and _largest(each, found)]


def figures_of(found: Sequence[Measured], *, link: Link | None) -> dict[str, object]:
    """Return everything measured and what the tables say of it, for JSON."""
    summary = [
        {
            "way": each.way,
            "ranks": each.ranks,
            "implementation": each.implementation,
            "bytes_per_pair": each.size,
            "p10_s": _percentile(each, 0.1),
            "p50_s": _percentile(each, 0.5),
            "p90_s": _percentile(each, 0.9),
            "p99_s": _percentile(each, 0.99),
            "bytes_per_s": _bandwidth(each),
            "times_faster_than_gloo": _ratio(each, found),
            "share_of_memcpy": _share(each, found),
            "ideal_line_s": _ideal(each, link),
        }
        for each in found
    ]
    return {"summary": summary, "operations": list(found)}


def lines_of(found: Sequence[Measured], *, link: Link | None) -> dict[str, list[Line]]:
    """Return the lines of each panel of the plot, by the panel's title: all-to-alls only, a panel a number of ranks."""
    panels: dict[str, list[Line]] = {}
    for ranks in sorted({each.ranks for each in found}):
        plain = [each for each in found if each.way == "plain" and each.ranks == ranks]
        lines = []
        for name in dict.fromkeys(each.implementation for each in plain):
            if name == MEMCPY[1]:
                continue
            series = [each for each in plain if each.implementation == name]
            points = [tuple(_percentile(each, share) for share in (0.5, 0.1, 0.9)) for each in series]
            lines.append(
                Line(
                    name=_NAMES.get(name, name),
                    sizes=[each.size for each in series],
                    seconds=[median for median, _, _ in points],
                    band=[(low, high) for _, low, high in points],
                    yardstick=name in MEMCPY,
                )
            )
        if link is not None:
            sizes = sorted({each.size for each in plain})
            ideal = [_line_s(size, ranks, link) for size in sizes]
            lines.append(Line(name="ideal line", sizes=sizes, seconds=ideal, yardstick=True))
        panels[f"{ranks} ranks"] = lines
    return panels


def _order(key: tuple[Way, int]) -> tuple[int, int]:
    return list(_TITLES).index(key[0]), key[1]


def _table(found: Sequence[Measured], link: Link | None) -> Table:
    first = found[0]
    plain = first.way == "plain"
    columns = ["a pair", "over", "p50", "p90", "p99", "x gloo"]
    if link is not None:
        columns += ["ideal line", "over ideal"]
    else:
        columns += ["GB/s a rank", *(["of memcpy"] if plain else [])]
    rows = []
    for size in sorted({each.size for each in found}):
        for each in (each for each in found if each.size == size):
            cells = [
                byte_text(size),
                _NAMES.get(each.implementation, each.implementation) if plain else each.implementation,
            ]
            cells += [_microseconds(_percentile(each, share)) for share in (0.5, 0.9, 0.99)]
            ratio, share, ideal = _ratio(each, found), _share(each, found), _ideal(each, link)
            cells.append("" if ratio is None else f"{ratio:.2f}")
            if ideal is not None:
                cells += [_microseconds(ideal), f"{_percentile(each, 0.5) / ideal:.3f}"]
            else:
                cells += [number(_bandwidth(each) / 1e9), *([] if share is None else [percent(share)])]
            rows.append(tuple(cells))
    return Table(
        title=f"{_TITLES[first.way]}, {first.ranks} ranks",
        columns=tuple(columns),
        rows=tuple(rows),
        left=frozenset({"over"}),
    )


def _largest(each: Measured, found: Sequence[Measured]) -> bool:
    alike = [other for other in found if (other.way, other.ranks) == (each.way, each.ranks)]
    return each.size == max(other.size for other in alike)


def _waits(each: Measured) -> Table:
    """Return the table of who waited for whom: a slow rank stands out as a column, a bad path as a cell."""
    rows = tuple(
        (f"rank {rank} waited", *("" if peer == rank else _microseconds(s) for peer, s in enumerate(row)))
        for rank, row in enumerate(each.waited_s)
    )
    columns = ("", *(f"for rank {peer}" for peer in range(each.ranks)))
    title = f"{each.implementation}, {each.ranks} ranks, {byte_text(each.size)} a pair: waits in a dispatch and combine"
    return Table(title=title, columns=columns, rows=rows)


def _percentile(each: Measured, share: float) -> float:
    if share == 0.5:
        return statistics.median(each.seconds)
    ordered = sorted(each.seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _bandwidth(each: Measured) -> float:
    """Return what a rank gives away, what it keeps included, a second; a pair does so twice."""
    return each.travels * each.ranks / _percentile(each, 0.5)


def _ratio(each: Measured, found: Sequence[Measured]) -> float | None:
    return _beside(each, found, BASELINE) if each.implementation not in MEMCPY else None


def _share(each: Measured, found: Sequence[Measured]) -> float | None:
    return _beside(each, found, MEMCPY[0]) if each.way == "plain" else None


def _beside(each: Measured, found: Sequence[Measured], name: str) -> float | None:
    """Return how long the same takes over another implementation, in times of what it takes over this."""
    key = (each.way, each.ranks, each.size, name)
    for other in found:
        if (other.way, other.ranks, other.size, other.implementation) == key:
            return _percentile(other, 0.5) / _percentile(each, 0.5)
    return None


def _ideal(each: Measured, link: Link | None) -> float | None:
    """Return how long the line is busy with the bytes alone."""
    if link is None or each.implementation in MEMCPY:
        return None
    return _line_s(each.travels, each.ranks, link)


def _line_s(size: int, ranks: int, link: Link) -> float:
    return link.ideal_s(size) * (ranks - 1)


def _microseconds(seconds: float) -> str:
    return f"{number(seconds * 1e6)} us"
