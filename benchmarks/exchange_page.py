"""Pages of what `bench_exchange.py` recorded: the dated page of results, and docs/validation/exchange.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from recorded_parts import bar_table, markdown, plain, read_parts
from result_page import write_page

from fourlane.report.exchange_plots import Line, plot_exchange
from fourlane.report.overlap_plots import Case, plot_overlap, plot_streams
from fourlane.report.perfetto import Track

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recorded_parts import Part

__all__ = ["write"]

DOCS = Path(__file__).parents[1] / "docs" / "validation"
IMAGES = DOCS / "images"
NAMES = {"torch_all_to_all": "gloo all_to_all_single"}
HEAD = """# Fast exchange and dual stream, measured

Made by `python benchmarks/bench_exchange.py --page` from what its parts recorded on one machine with two cores. Ranks
of a group take turns on them: with four and eight ranks, figures tell how well an exchange shares processors, not how
it would scale. Every ratio is of one run, of medians; a bar that is not reached says **miss**.

Parts over links want the machine for themselves: the lab forwards every packet on the same two cores. Packets of 1500
bytes cost them so much that communication is largely computing, which nothing hides, and four ranks cannot fill their
links, whatever exchanges; with packets of 9000 bytes there are a sixth as many. Both are shown: RDMA NICs cost no
processor at all. Load averages stand at the end; well above the number of ranks they mean that others computed beside
the measurement. Where the rule ran no pass in two streams its column compares one stream with itself, which is 1.00.
"""


def write(results: Path, *, order: Sequence[str]) -> list[Path]:
    """Write both pages and the pictures; return their paths."""
    recorded = read_parts(results)
    parts = {name: recorded[name] for name in order if name in recorded}
    lines = [line for part in parts.values() for line in plain(part)]
    lines += ["## Commands", "", *(f"- {part.when}: `{part.command}`" for part in parts.values())]
    page = write_page("exchange", title="Expert exchange and dual stream beside gloo", lines=lines)
    pictures = _pictures(parts)
    docs = DOCS / "exchange.md"
    docs.write_text("\n".join(_docs(parts, pictures, page)) + "\n", encoding="utf-8")
    return [page, docs, *(path for paths in pictures.values() for path in paths)]


def _docs(parts: dict[str, Part], pictures: dict[str, list[Path]], page: Path) -> list[str]:
    bars = [bar for part in parts.values() for bar in part.bars]
    lines = [HEAD, f"**{sum(bar.met for bar in bars)} of {len(bars)} bars are reached.**", "", *bar_table(bars), ""]
    for name, part in parts.items():
        lines += [f"## {part.title}", "", part.text, ""]
        for path in pictures.get(name, ()):
            lines += [f"![{part.title}](images/{path.name})", ""]
        for section in part.sections:
            lines += [f"{section.title}:", ""] if section.title else []
            lines += [*markdown(section.columns, section.rows), ""]
    whens = sorted({part.when for part in parts.values()})
    loads = ", ".join(f"{name} {part.load_average}" for name, part in parts.items())
    said = f"Recorded {', '.join(whens)}; load average of the machine after each part: {loads}. Hardware and versions:"
    return [*lines, f"{said} `benchmarks/results/{page.name}`."]


def _pictures(parts: dict[str, Part]) -> dict[str, list[Path]]:
    """Draw what there is to see; return the files by part."""
    IMAGES.mkdir(exist_ok=True)
    drawn: dict[str, list[Path]] = {}
    for name in ("here", "link", "link-9000"):
        if name in parts:
            path = IMAGES / f"exchange-{name}.png"
            drawn[name] = [path]
            title = f"All-to-all of equal blocks. {parts[name].title}; medians, 10th to 90th percentile"
            plot_exchange(path, _panels(parts[name].figures["summary"]), title=title)
    for name in ("prefill", "decode", "decode-1500"):
        if name in parts:
            path, figures = IMAGES / f"overlap-{name}.png", parts[name].figures
            cases = msgspec.convert(figures["cases"], list[Case])
            plot_overlap(path, cases, title=f"One stream and two: {name}, two ranks")
            drawn[name] = [path]
            if tracks := msgspec.convert(figures["tracks"], list[Track]):
                drawn[name].append(IMAGES / f"overlap-{name}-streams.png")
                place = f"{name}, {cases[-1].link}, {cases[-1].tokens} tokens a rank, as traced"
                end_s = max(each.end_s for track in tracks for each in track.slices)
                plot_streams(drawn[name][-1], tracks, title=f"A pass of rank 0: {place}", until_s=end_s)
    return drawn


def _panels(summary: list[dict[str, Any]]) -> dict[str, list[Line]]:
    plain_rows = [row for row in summary if row["way"] == "plain" and row["implementation"] != "memcpy alone"]
    panels: dict[str, list[Line]] = {}
    for ranks in sorted({row["ranks"] for row in plain_rows}):
        own = [row for row in plain_rows if row["ranks"] == ranks]
        lines = [_line([row for row in own if row["implementation"] == name]) for name in _names(own)]
        if own[0]["ideal_line_s"] is not None:
            sizes = sorted({row["bytes_per_pair"]: row["ideal_line_s"] for row in own}.items())
            seconds = [ideal for _, ideal in sizes]
            lines.append(Line(name="ideal line", sizes=[size for size, _ in sizes], seconds=seconds, yardstick=True))
        panels[f"{ranks} ranks"] = lines
    return panels


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["implementation"] for row in rows))


def _line(rows: list[dict[str, Any]]) -> Line:
    rows = sorted(rows, key=lambda row: row["bytes_per_pair"])
    name = rows[0]["implementation"]
    return Line(
        name=NAMES.get(name, name),
        sizes=[row["bytes_per_pair"] for row in rows],
        seconds=[row["p50_s"] for row in rows],
        band=[(row["p10_s"], row["p90_s"]) for row in rows],
        yardstick=name == "memcpy",
    )
