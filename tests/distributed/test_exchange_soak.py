"""Many exchanges, and ranks killed at random moments among them: see `exchange_soak`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

SOAK = Path(__file__).parent / "exchange_soak.py"


def soak(exchanges: int, *options: str, timeout_s: float) -> str:
    """Run a soak; return what it says."""
    path = os.pathsep.join(str(folder) for folder in (SOAK.parent, SOAK.parents[1] / "support"))
    done = subprocess.run(
        [sys.executable, str(SOAK), str(exchanges), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_survivors_of_ranks_killed_at_random_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    said = soak(400, timeout_s=100)
    assert "among 3 ranks" in said
    assert int(said.split(", ")[1].split()[0]) >= 2, said
    with capsys.disabled():
        sys.stdout.write(said)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif("FOURLANE_SOAK" not in os.environ, reason="set FOURLANE_SOAK to how many exchanges, such as 100000")
def test_as_many_exchanges_as_asked_for_go_through(capsys: pytest.CaptureFixture[str]) -> None:
    said = soak(int(os.environ["FOURLANE_SOAK"]), timeout_s=7000)
    with capsys.disabled():
        sys.stdout.write(said)
