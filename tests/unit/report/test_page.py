"""Pages: everything told is in them, nothing is fetched, nothing told can break out."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.report.page import Card, Page, Section, svg_of, write_page
from fourlane.report.plots import figure_of
from fourlane.report.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

TABLE = Table(
    title="Sources", columns=("figure", "source"), rows=(("TTFT <p50>", "a & b"),), left=frozenset({"source"})
)
VOID = {"meta", "br", "path", "use", "rect", "image"}


class Balance(HTMLParser):
    """Follows which elements are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        del attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def written(folder: Path) -> str:
    with figure_of("a picture", height=2.0) as figure:
        figure.add_subplot().plot([1, 2], [3, 4])
        drawn = svg_of(figure)
    page = Page(
        title="deepseek <1>",
        lead="512 & more",
        cards=(Card(name="TTFT", value="1 s", mood="good"),),
        sections=(
            Section(title="Latency", text="as drawn", figures=(drawn,), tables=(TABLE,), folded=(TABLE,)),
            Section(title="Empty"),
        ),
        footer="seed 0",
    )
    write_page(folder / "index.html", page)
    return (folder / "index.html").read_text()


def test_a_page_is_whole_html_with_everything_escaped(tmp_path: Path) -> None:
    text = written(tmp_path)
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    for said in ("deepseek &lt;1&gt;", "512 &amp; more", "TTFT &lt;p50&gt;", "a &amp; b", "seed 0"):
        assert said in text
    assert text.count("<details>") == 1
    assert 'class="card good"' in text


def test_a_page_fetches_nothing(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", text)


def test_a_section_with_nothing_to_show_is_left_out(tmp_path: Path) -> None:
    assert "Empty" not in written(tmp_path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the page cannot be written"):
        write_page(tmp_path / "none" / "index.html", Page(title="t", lead="l"))
