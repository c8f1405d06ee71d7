"""The exchange among real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BODIES = Path(__file__).parent / "rank_bodies.py"


def launch(body: str, ranks: int, folder: Path) -> None:
    """Run a body on forked ranks and fail with their output if one of them failed."""
    done = subprocess.run(
        [sys.executable, str(BODIES), body, str(ranks), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_gives_bit_for_bit_what_one_process_gives(ranks: int, tmp_path: Path) -> None:
    launch("equal_to_one_process", ranks, tmp_path)


def test_connections_between_ranks_carry_the_mark_of_the_expert_lane(tmp_path: Path) -> None:
    launch("sockets_are_marked", 3, tmp_path)


def test_all_tokens_may_go_to_one_rank(tmp_path: Path) -> None:
    launch("all_to_one_expert", 3, tmp_path)


def test_two_micro_batches_may_be_under_way_at_once(tmp_path: Path) -> None:
    launch("two_micro_batches_interleave", 2, tmp_path)


def test_survivors_of_a_killed_peer_meet_its_successor_and_go_on(tmp_path: Path) -> None:
    launch("peer_dies", 3, tmp_path)


def test_a_hanging_peer_is_an_error_within_the_timeout(tmp_path: Path) -> None:
    launch("peer_hangs", 2, tmp_path)


def test_a_peer_that_never_joins_is_an_error_within_the_timeout(tmp_path: Path) -> None:
    launch("absent_peer", 2, tmp_path)
