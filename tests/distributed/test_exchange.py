"""The exchange among real processes, over every implementation."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from make_random_checkpoint import Shape, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Launch = Callable[[str, int], None]

BODIES = Path(__file__).parent / "rank_bodies.py"
LONGEST_S = 90


@pytest.fixture(params=["torch_all_to_all", "tcp"])
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


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
def launch(ranks_process: subprocess.Popen[str], tmp_path: Path, implementation: str) -> Launch:
    """Run a body on forked ranks and fail with their output if one of them failed."""

    def run(body: str, ranks: int) -> None:
        assert ranks_process.stdin is not None
        ranks_process.stdin.write(f"{body} {ranks} {tmp_path} {implementation}\n")
        ranks_process.stdin.flush()
        answer = _answer(ranks_process)
        assert answer == "0", (tmp_path / "output").read_text()

    return run


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], LONGEST_S)
    return process.stdout.readline().strip() if ready else f"no answer for {LONGEST_S} s"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_any_number_of_ranks_gives_bit_for_bit_what_one_process_gives(ranks: int, launch: Launch) -> None:
    launch("equal_to_one_process", ranks)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_placement_that_changes_from_step_to_step_gives_the_same_bits(ranks: int, launch: Launch) -> None:
    launch("any_placement", ranks)


def test_equal_shares_for_replicas_give_the_same_bits(launch: Launch) -> None:
    launch("any_placement_split_equally", 3)


@pytest.mark.parametrize("ranks", [2, 4])
def test_an_expert_that_every_rank_holds_is_computed_by_all_in_equal_parts(ranks: int, launch: Launch) -> None:
    launch("one_expert_everywhere", ranks)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("implementation", ["tcp"], indirect=True)
def test_a_models_logits_are_the_same_bits_over_replicas(ranks: int, launch: Launch, tmp_path: Path) -> None:
    shape = Shape(
        vocab=512, hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, experts=10, top_k=3, expert_dim=40, seed=6
    )
    write_checkpoint(tmp_path / "model", shape)
    launch("a_models_logits", ranks)


def test_connections_between_ranks_carry_the_mark_of_the_expert_lane(launch: Launch) -> None:
    launch("sockets_are_marked", 3)


def test_ranks_agree_on_what_all_have_staged_and_what_somebody_refused(launch: Launch) -> None:
    launch("ranks_agree_on_migrations", 3)


def test_all_tokens_may_go_to_one_rank(launch: Launch) -> None:
    launch("all_to_one_expert", 3)


def test_nobody_needs_to_have_a_token(launch: Launch) -> None:
    launch("no_tokens_at_all", 3)


def test_every_dtype_arrives_bit_for_bit(launch: Launch) -> None:
    launch("every_dtype", 2)


def test_messages_larger_than_socket_buffers_pass_both_ways_at_once(launch: Launch) -> None:
    launch("large_rows", 3)


def test_two_micro_batches_may_be_under_way_at_once(launch: Launch) -> None:
    launch("two_micro_batches_interleave", 2)


def test_survivors_of_a_killed_peer_meet_its_successor_and_go_on(launch: Launch) -> None:
    launch("peer_dies", 3)


def test_a_hanging_peer_is_an_error_within_the_timeout(launch: Launch) -> None:
    launch("peer_hangs", 2)


def test_a_peer_that_never_joins_is_an_error_within_the_timeout(launch: Launch) -> None:
    launch("absent_peer", 2)


@pytest.mark.parametrize("implementation", ["tcp"], indirect=True)
def test_a_rank_with_another_secret_is_not_let_in(launch: Launch) -> None:
    launch("another_secret", 2)


@pytest.mark.parametrize("implementation", ["tcp"], indirect=True)
def test_a_stranger_who_connects_is_sent_away_and_holds_nobody_up(launch: Launch) -> None:
    launch("stranger_at_the_door", 2)
