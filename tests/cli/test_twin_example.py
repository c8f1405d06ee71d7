"""The example of the twin prints what is beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "05_twin"


def test_the_example_prints_what_is_expected() -> None:
    run = subprocess.run([sys.executable, EXAMPLE / "run.py"], capture_output=True, text=True, timeout=100, check=True)
    assert run.stdout == (EXAMPLE / "expected.out").read_text()
