"""docs/architecture.md names every module there is, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "fourlane"


def modules_named() -> set[str]:
    named, room = set(), ""
    for line in (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"### `([\w/]+)/`", line):
            room = heading[1]
        elif module := re.match(r"- `(\w+\.py)`", line):
            named.add(f"{room}/{module[1]}")
    return named


def test_the_tour_of_the_rooms_names_exactly_the_modules_there_are() -> None:
    there = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE and path.name != "__init__.py"
    }
    assert modules_named() == there
