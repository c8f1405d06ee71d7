"""Pages of what `bench_experts.py` recorded: the dated page of results, and docs/validation/experts.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recorded_parts import bar_table, markdown, plain, read_parts
from result_page import FOLDER, write_page

from fourlane.report.expert_bench_plots import Compared, plot_placements, plot_repairs, plot_splits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recorded_parts import Part

__all__ = ["write"]

DOCS = Path(__file__).parents[1] / "docs" / "validation"
IMAGES = DOCS / "images"
HEAD = """# Experts in balance, beside EPLB

Made by `python benchmarks/bench_experts.py --page` from what its parts recorded on one machine. The baseline is EPLB's
algorithm, written from its published description (`benchmarks/eplb.py`) and run in the same process; loads are drawn
by `fourlane.policy.load_generator`, whose statistics are held against published ones by tests. Unless said otherwise
they are of 58 layers with 256 experts, top 8. EP32+32 is 32 ranks with 32 redundant slots; balance is max / mean over
ranks, mean layer / worst layer. A bar that is not reached says **miss**; those of the live service are in
the last section.
"""
LIVE = ("live_balance", "Live: the bundled model under a skewed load")


def write(results: Path, *, order: Sequence[str]) -> list[Path]:
    """Write both pages and the pictures; return their paths."""
    recorded = read_parts(results)
    parts = {name: recorded[name] for name in order if name in recorded}
    lines = [line for part in parts.values() for line in plain(part)]
    lines += ["## Commands", "", *(f"- {part.when}: `{part.command}`" for part in parts.values())]
    page = write_page("experts", title="Experts in balance: placement, repair and splitting beside EPLB", lines=lines)
    pictures = _pictures(parts)
    docs = DOCS / "experts.md"
    docs.write_text("\n".join(_docs(parts, pictures)) + "\n", encoding="utf-8")
    return [page, docs, *(path for paths in pictures.values() for path in paths)]


def _docs(parts: dict[str, Part], pictures: dict[str, list[Path]]) -> list[str]:
    bars = [bar for part in parts.values() for bar in part.bars]
    lines = [HEAD, f"**{sum(bar.met for bar in bars)} of {len(bars)} bars are reached.**", "", *bar_table(bars), ""]
    for name, part in parts.items():
        lines += [f"## {part.title}", "", part.text, ""]
        lines += [f"![{part.title}](images/{path.name})\n" for path in pictures.get(name, ())]
        for section in part.sections:
            lines += [f"{section.title}:", ""] if section.title else []
            lines += [*markdown(section.columns, section.rows), ""]
    lines += _live()
    whens = sorted({part.when for part in parts.values()})
    return [
        *lines,
        f"Recorded {', '.join(whens)}; hardware and versions: `benchmarks/results/{_newest('experts').name}`.",
    ]


def _live() -> list[str]:
    """Return what `bench_live_balance.py` wrote, if it did, without its title."""
    name, title = LIVE
    if not list(FOLDER.glob(f"{name}_*.md")):
        return []
    text = _newest(name).read_text(encoding="utf-8")
    body = text.partition("\n")[2].partition("\n## How\n")[0].strip()
    return [f"## {title}", "", *body.replace("\n## ", "\n### ").splitlines(), ""]


def _newest(theme: str) -> Path:
    return max(FOLDER.glob(f"{theme}_*.md"), key=lambda path: path.stem.rpartition("_")[2])


def _pictures(parts: dict[str, Part]) -> dict[str, list[Path]]:
    """Draw what there is to see; return the files by part."""
    IMAGES.mkdir(exist_ok=True)
    drawn: dict[str, list[Path]] = {}
    if "balance" in parts:
        path = IMAGES / "experts-placement.png"
        plot_placements(path, _compared(parts["balance"].figures), title="Placement: max / mean tokens, equal split")
        drawn["balance"] = [path]
    splits = {name: part.figures for name, part in parts.items() if name.startswith("split-") and "0.2" in part.figures}
    if splits:
        path = IMAGES / "experts-splitting.png"
        titles = {parts[name].title.rpartition(", ")[2]: _lines(figures) for name, figures in splits.items()}
        plot_splits(path, titles, title="Batches that lean: the fullest rank's tokens over the mean")
        drawn[next(iter(splits))] = [path]
    if "repair" in parts:
        path = IMAGES / "experts-repair.png"
        points = {
            name: {way: (each["moves"], each["mean"]) for way, each in found.items()}
            for name, found in parts["repair"].figures.items()
        }
        plot_repairs(path, points, title="Repair: balance by experts moved a layer")
        drawn["repair"] = [path]
    return drawn


def _compared(figures: dict[str, Any]) -> dict[str, list[Compared]]:
    by_size: dict[str, list[Compared]] = {}
    for place, found in figures.items():
        size, _, load = place.partition("/")
        names = {"EPLB": "EPLB", "ours": "ours", "lower bound": "bound"}
        by_size.setdefault(size, []).append(
            Compared(load=load, balance={name: tuple(found[key]) for name, key in names.items()})
        )
    return by_size


def _lines(figures: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return (lean, fullest over mean) by what is compared."""
    ways = {
        "EPLB, hash": ("EPLB", "hash"),
        "EPLB, round robin": ("EPLB", "round robin"),
        "EPLB, equal": ("EPLB", "equal"),
        "EPLB's placement, split": ("EPLB", "global"),
        "ours, split": ("ours, for splitting", "global"),
        "lower bound of ours": ("ours, for splitting", "lower bound"),
    }
    return {
        name: [(float(lean), found[placement][way]) for lean, found in figures.items()]
        for name, (placement, way) in ways.items()
    }
