"""Tables and the text of figures."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fourlane.errors import SpecError
from fourlane.report.tables import Table, byte_text, console, milliseconds, number, percent, print_table, write_json

if TYPE_CHECKING:
    from pathlib import Path

POOLS = Table(
    title="Pools",
    columns=("rank", "state", "tokens"),
    rows=(("prefill/0", "serving", "1,204"), ("decode/0", "loading", "7")),
    left=frozenset({"state"}),
)


def test_a_table_in_a_pipe_is_plain_and_aligned() -> None:
    out = io.StringIO()
    print_table(console(out), POOLS)
    assert out.getvalue() == (
        "Pools\n"
        "rank       state    tokens\n"
        "prefill/0  serving   1,204\n"
        "decode/0   loading       7\n"
    )  # fmt: skip


def test_a_long_cell_is_neither_wrapped_nor_cut_in_a_pipe() -> None:
    out = io.StringIO()
    print_table(console(out), Table(title="", columns=("what",), rows=(("x" * 300 + "[bold]",),)))
    assert out.getvalue().splitlines()[1] == "x" * 300 + "[bold]"


def test_a_table_on_a_terminal_holds_every_cell() -> None:
    out = io.StringIO()
    print_table(Console(file=out, force_terminal=True, width=80), POOLS)
    for cell in (cell for row in POOLS.rows for cell in row):
        assert cell in out.getvalue()


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 cells"):
        Table(title="t", columns=("a", "b"), rows=(("1",),))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00123, "0.00123"), (0.9999, "1.00"), (9.999, "10.0"), (99.95, "100"), (123.4, "123"),
     (1234.5, "1,234"), (-3.14159, "-3.14"), (1e6, "1,000,000")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-6, 1e9))
def test_a_number_written_is_near_the_number(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.006)


def test_units_are_written_with_a_blank() -> None:
    assert (milliseconds(0.01234), percent(0.1234), byte_text(3 << 19)) == ("12.3 ms", "12.3 %", "1.50 MiB")


def test_json_is_indented_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, {"b": [1, 2], "a": POOLS})
    assert json.loads(path.read_text())["a"]["title"] == "Pools"
    assert path.read_text().startswith('{\n  "b"')


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be written"):
        write_json(tmp_path / "no" / "such" / "folder.json", {})
