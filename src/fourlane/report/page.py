"""Pages: headline figures, tables and pictures in one HTML file that fetches nothing.

What a command writes as `index.html`. Not for the live service's page (`fourlane.gateway`).
"""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.errors import SpecError
from fourlane.report.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from matplotlib.figure import Figure

__all__ = ["Card", "Page", "Section", "svg_of", "write_page"]

_STYLE = """
:root { --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --ground: #f6f8fa; --sheet: #fff;
  --good: #1a7f5a; --bad: #b35900; --mark: #1f6feb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #30363d; --ground: #0d1117;
  --sheet: #161b22; --good: #3fb98a; --bad: #e3944a; --mark: #6ea8ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.2rem 1.4rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.12rem; margin: 2.4rem 0 .3rem; }
h3 { font-size: .92rem; margin: 1.3rem 0 .1rem; color: var(--soft); font-weight: 600; }
p { margin: .2rem 0 .7rem; max-width: 110ch; color: var(--soft); white-space: pre-line; }
nav { margin: .8rem 0 0; font-size: .85rem; } nav a { color: var(--mark); text-decoration: none; margin-right: 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 1.3rem 0 0; }
.card { background: var(--sheet); border: 1px solid var(--line); border-radius: 10px; padding: .75rem .9rem; }
.card b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .8rem; display: block; }
.card.good b { color: var(--good); } .card.bad b { color: var(--bad); } .card.mark b { color: var(--mark); }
figure { margin: .8rem 0; background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: .8rem; }
figure svg { display: block; width: 100%; height: auto; }
.table { overflow-x: auto; margin: .5rem 0; background: var(--sheet); border: 1px solid var(--line);
  border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td { padding: .36rem .6rem; text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); white-space: nowrap; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; } td.left { white-space: normal; }
tbody tr + tr td { border-top: 1px solid var(--line); }
th.left, td.left { text-align: left; } tbody td:first-child { font-weight: 600; white-space: nowrap; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--mark); font-size: .9rem; }
footer { margin-top: 3rem; padding-top: .8rem; color: var(--soft); font-size: .8rem;
  border-top: 1px solid var(--line); }
@media print { body { background: #fff; } main { max-width: none; padding: 0; } details > * { display: block; } }
"""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A figure at a glance: its value large, what it is above, a word on it below."""

    name: str
    value: str
    note: str = ""
    mood: Literal["", "good", "bad", "mark"] = ""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a page: words, then pictures (as SVG), then tables; those `folded` show when clicked."""

    title: str
    text: str = ""
    figures: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A whole page."""

    title: str
    lead: str
    cards: tuple[Card, ...] = ()
    sections: tuple[Section, ...] = ()
    footer: str = ""


def svg_of(figure: Figure) -> str:
    """Return a figure as an SVG element to stand in a page."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def write_page(path: Path, page: Page) -> None:
    """Write a page.

    Raises:
        SpecError: the file cannot be written.
    """
    try:
        path.write_text(_html(page), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: the page cannot be written: {error.strerror}") from error


def _html(page: Page) -> str:
    shown = [section for section in page.sections if section.figures or section.tables or section.folded]
    links = "".join(f'<a href="#s{place}">{html.escape(each.title)}</a>' for place, each in enumerate(shown))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(page.title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        f"<h1>{html.escape(page.title)}</h1>\n<p>{html.escape(page.lead)}</p>\n"
        f"{_cards(page.cards)}<nav>{links}</nav>\n"
        + "\n".join(_section(each, f"s{place}") for place, each in enumerate(shown))
        + f"\n<footer>{html.escape(page.footer)}</footer>\n</main></body></html>\n"
    )


def _cards(cards: Iterable[Card]) -> str:
    told = "".join(
        f'<div class="card {card.mood}"><span>{html.escape(card.name)}</span><b>{html.escape(card.value)}</b>'
        f"<span>{html.escape(card.note)}</span></div>"
        for card in cards
    )
    return f'<div class="cards">{told}</div>\n' if told else ""


def _section(section: Section, name: str) -> str:
    parts = [f'<h2 id="{name}">{html.escape(section.title)}</h2>']
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    parts += [f"<figure>{figure}</figure>" for figure in section.figures]
    parts += [_table(table) for table in section.tables]
    parts += [
        f"<details><summary>{html.escape(table.title)}</summary>{_table(table, titled=False)}</details>"
        for table in section.folded
    ]
    return "\n".join(parts)


def _table(table: Table, *, titled: bool = True) -> str:
    left = [index == 0 or name in table.left for index, name in enumerate(table.columns)]

    def row(cells: Iterable[str], tag: str) -> str:
        each = (
            f"<{tag}{' class=left' if to_left else ''}>{html.escape(cell)}</{tag}>"
            for cell, to_left in zip(cells, left, strict=True)
        )
        return f"<tr>{''.join(each)}</tr>"

    title = f"<h3>{html.escape(table.title)}</h3>" if table.title and titled else ""
    rows = "\n".join(row(cells, "td") for cells in table.rows)
    head = row(table.columns, "th")
    return f'{title}<div class="table"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
