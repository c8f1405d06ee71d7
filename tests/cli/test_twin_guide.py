"""The guide of the twin says what every field of a twin file is."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from fourlane.spec.twin import Assumptions, Experts, Fault, Lanes, Slo, Twin, TwinPool, Workload

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "twin.md"
TABLES = {"prefill", "decode", "lanes", "experts", "workload", "slo", "assumptions"}


def test_the_guide_names_every_field_of_a_twin_file_and_no_other() -> None:
    rows = re.findall(r"^\| (`[^|]*) \|", GUIDE.read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    kinds = (Twin, TwinPool, Lanes, Experts, Workload, Slo, Assumptions)
    there = {field.name for kind in kinds for field in msgspec.structs.fields(kind)} - TABLES
    assert set(named) == there
    assert len(named) == len(set(named))


def test_the_guide_names_every_field_of_a_fault() -> None:
    row = next(line for line in GUIDE.read_text().splitlines() if line.startswith("| `faults`"))
    for field in msgspec.structs.fields(Fault):
        assert f"`{field.name}`" in row
