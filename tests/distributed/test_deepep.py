"""The adapters of DeepEP among real processes, over a stand-in that holds them to the recorded signatures."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Launch = Callable[[str, int, str], None]

BODIES = Path(__file__).parent / "deepep_bodies.py"
LONGEST_S = 60
KINDS = ["v1", "low_latency", "v2", "ep"]


@pytest.fixture(scope="module")
def ranks_process() -> Iterator[subprocess.Popen[str]]:
    """The process that forks ranks."""
    process = subprocess.Popen(
        [sys.executable, str(BODIES)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BODIES.parents[1] / "support")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert _answer(process) == "ready"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def launch(ranks_process: subprocess.Popen[str], tmp_path: Path) -> Launch:
    """Run a body on forked ranks and fail with their output if one of them failed."""

    def run(body: str, ranks: int, kind: str) -> None:
        assert ranks_process.stdin is not None
        ranks_process.stdin.write(f"{body} {ranks} {tmp_path} {kind}\n")
        ranks_process.stdin.flush()
        answer = _answer(ranks_process)
        assert answer == "0", (tmp_path / "output").read_text()

    return run


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], LONGEST_S)
    return process.stdout.readline().strip() if ready else f"no answer for {LONGEST_S} s"


@pytest.mark.parametrize(("kind", "ranks"), [*[(kind, 2) for kind in KINDS], ("v1", 4), ("v2", 1), ("v2", 3)])
def test_ragged_batches_give_what_one_process_gives(kind: str, ranks: int, launch: Launch) -> None:
    launch("ragged_batches", ranks, kind)


@pytest.mark.parametrize("kind", [f"{kind}+float8" for kind in KINDS])
def test_float8_rows_arrive_as_they_were_packed(kind: str, launch: Launch) -> None:
    launch("ragged_batches", 2, kind)


@pytest.mark.parametrize("kind", [*KINDS, "v2+float8"])
def test_replicas_and_empty_slots_get_the_rows_of_the_split(kind: str, launch: Launch) -> None:
    launch("any_placement", 2, kind)


@pytest.mark.parametrize(("kind", "ranks"), [("v1", 4), ("low_latency", 2), ("v2", 4)])
def test_all_tokens_may_choose_experts_of_one_rank(kind: str, ranks: int, launch: Launch) -> None:
    launch("one_hot_expert", ranks, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_needs_to_have_a_token(kind: str, launch: Launch) -> None:
    launch("no_tokens", 2, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_two_micro_batches_may_be_under_way_at_once(kind: str, launch: Launch) -> None:
    launch("two_micro_batches", 2, kind)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_survivors_of_a_killed_peer_meet_its_successor_and_go_on(kind: str, launch: Launch) -> None:
    launch("peer_dies", 2, kind)
