"""The exchange among real processes, over every implementation: one entry each in `exchanges` in tests/support."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from exchanges import IMPLEMENTATIONS
from make_random_checkpoint import Shape, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Launch = Callable[[str, int], None]

BODIES = Path(__file__).parent / "rank_bodies.py"
LONGEST_S = 90
PHASES = ("counts", "dispatch", "combine")


def plain(name: str) -> bool:
    return not IMPLEMENTATIONS[name].behind_thread


def hears_of_deaths(name: str) -> bool:
    return IMPLEMENTATIONS[name].hears_of_deaths


def carries_float32(name: str) -> bool:
    return torch.float32 in IMPLEMENTATIONS[name].dtypes


def over(*, ranks: tuple[int, ...], only: Callable[[str], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Run a test over all implementations that take so many ranks."""
    return pytest.mark.parametrize(
        ("implementation", "ranks"),
        [
            pytest.param(name, count, id=f"{name}-{count}")
            for name, kind in IMPLEMENTATIONS.items()
            for count in ranks
            if count <= kind.most_ranks and only(name)
        ],
    )


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


@over(ranks=(1, 2, 3, 4))
def test_every_case_holds(ranks: int, launch: Launch) -> None:
    launch("cases:all", ranks)


@over(ranks=(8, 16), only=plain)
def test_layouts_are_right_among_many_ranks(ranks: int, launch: Launch) -> None:
    launch("cases:few", ranks)


@over(ranks=(5, 6, 7, 9, 10, 11, 12, 13, 14, 15), only=plain)
def test_any_number_of_ranks_gives_what_one_process_gives(ranks: int, launch: Launch) -> None:
    launch("cases:ragged", ranks)


@over(ranks=(3,))
def test_equal_shares_for_replicas_give_the_same_bits(ranks: int, launch: Launch) -> None:
    launch("split_equally", ranks)


@over(ranks=(5, 6, 7, 8), only=lambda name: name == "hierarchical")
def test_bytes_between_two_to_eight_nodes_are_exactly_those_of_theory(ranks: int, launch: Launch) -> None:
    launch("bytes_between_nodes", ranks)


@over(ranks=(3, 4), only=lambda name: name == "hierarchical")
def test_all_ranks_choose_the_same_way_between_nodes(ranks: int, launch: Launch) -> None:
    launch("all_choose_alike", ranks)


@over(ranks=(3,), only=carries_float32)
def test_float8_rounds_alike_wherever_experts_are(ranks: int, launch: Launch) -> None:
    launch("float8", ranks)


@over(ranks=(2, 3), only=lambda name: name == "tcp")
@pytest.mark.parametrize("shared", [0, 48])
def test_a_models_logits_are_the_same_bits_over_replicas(
    ranks: int, shared: int, launch: Launch, tmp_path: Path
) -> None:
    sizes = {"vocab": 512, "hidden": 64, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "expert_dim": 40}
    write_checkpoint(tmp_path / "model", Shape(**sizes, experts=10, top_k=3, shared_expert_dim=shared, seed=6))
    launch("a_models_logits", ranks)


@over(ranks=(3,), only=lambda name: plain(name) and IMPLEMENTATIONS[name].marked)
def test_connections_between_ranks_carry_the_mark_of_the_expert_lane(ranks: int, launch: Launch) -> None:
    launch("sockets_are_marked", ranks)


@over(ranks=(3, 4), only=plain)
def test_ranks_tell_each_other_texts_and_numbers(ranks: int, launch: Launch) -> None:
    launch("ranks_tell_each_other", ranks)


@over(ranks=(3,), only=carries_float32)
def test_messages_larger_than_socket_buffers_pass_both_ways_at_once(ranks: int, launch: Launch) -> None:
    launch("large_rows", ranks)


@pytest.mark.parametrize("phase", PHASES)
@over(ranks=(3,), only=hears_of_deaths)
def test_survivors_of_a_killed_peer_meet_its_successor_and_go_on(phase: str, ranks: int, launch: Launch) -> None:
    launch(f"peer_dies:{phase}", ranks)


@pytest.mark.parametrize("phase", PHASES)
@over(ranks=(3,))
def test_a_hanging_peer_is_an_error_within_the_timeout(phase: str, ranks: int, launch: Launch) -> None:
    launch(f"peer_hangs:{phase}", ranks)


@over(ranks=(3,), only=hears_of_deaths)
def test_with_two_batches_under_way_both_are_told_of_a_dead_peer(ranks: int, launch: Launch) -> None:
    launch("both_batches_are_lost", ranks)


@over(ranks=(2,))
def test_who_has_left_the_group_is_told_so(ranks: int, launch: Launch) -> None:
    launch("nothing_begins_after_close", ranks)


@over(ranks=(2,), only=plain)
def test_a_peer_that_never_joins_is_an_error_within_the_timeout(ranks: int, launch: Launch) -> None:
    launch("absent_peer", ranks)


@over(ranks=(2,), only=lambda name: name == "tcp")
def test_a_rank_with_another_secret_is_not_let_in(ranks: int, launch: Launch) -> None:
    launch("another_secret", ranks)


@over(ranks=(2,), only=lambda name: name == "tcp")
def test_a_stranger_who_connects_is_sent_away_and_holds_nobody_up(ranks: int, launch: Launch) -> None:
    launch("stranger_at_the_door", ranks)


@over(ranks=(2,), only=lambda name: name == "shared_memory")
def test_a_killed_peer_is_missed_though_its_child_lives_on(ranks: int, launch: Launch) -> None:
    launch("child_outlives_peer", ranks)
