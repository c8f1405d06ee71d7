"""Rows of recorded loads: what is read, in which order, and how a faulty file is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import SpecError
from fourlane.spec.request_traces import read_trace_rows

if TYPE_CHECKING:
    from pathlib import Path

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.4799600,110,27
"""
MOONCAKE = """{"timestamp": 1000, "input_length": 1500, "output_length": 50, "hash_ids": [0, 1, 2]}
{"timestamp": 1500, "input_length": 1300, "output_length": 40, "hash_ids": [0, 1, 9]}
{"timestamp": 1200, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}
"""


def test_rows_come_in_the_order_of_their_times_the_first_at_nought(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(MOONCAKE)
    rows = read_trace_rows(path)
    assert [row.at_s for row in rows] == pytest.approx([0.0, 0.2, 0.5])
    assert [row.hash_ids for row in rows] == [(0, 1, 2), (7, 8), (0, 1, 9)]


def test_a_limit_takes_the_first_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    assert len(read_trace_rows(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.txt", "", "expected a trace in a .csv"),
        ("t.csv", "", "t.csv:1: expected the columns"),
        ("t.csv", "a,b\n1,2\n", "t.csv:1: expected the columns"),
        ("t.csv", AZURE + "yesterday,1,2\n", "t.csv:4: expected a time"),
        ("t.csv", AZURE + "2023-11-16 18:17:05,x,2\n", "t.csv:4: expected a time"),
        ("t.csv", AZURE + "2023-11-16 18:17:05,-3,2\n", "t.csv:4: expected a time"),
        ("t.csv", AZURE.splitlines()[0] + "\n", "expected at least one request"),
        ("t.jsonl", "", "expected at least one request"),
        ("t.jsonl", MOONCAKE + "{}\n", "t.jsonl:4: not a line of a Mooncake trace"),
        ("t.jsonl", MOONCAKE + "nonsense\n", "t.jsonl:4: not a line of a Mooncake trace"),
    ],
)
def test_a_faulty_trace_is_refused_with_file_and_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_trace_rows(path)
    assert said in str(caught.value)


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_trace_rows(tmp_path / "missing.csv")
