"""Where experts live at first, and what ranks agree on when they meet."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fourlane.engine.balance.initial import first_placement, newest_placement
from fourlane.engine.rank_config import RankBalance
from fourlane.errors import EngineError, SpecError
from fourlane.policy.placement import Placement, linear_placement
from fourlane.spec.expert_files import write_placement

if TYPE_CHECKING:
    from pathlib import Path


def first(balance: RankBalance | None, ranks: int = 4) -> Placement:
    return first_placement(balance, layers=2, experts=10, ranks=ranks)


def test_without_a_word_experts_lie_in_order_one_of_each() -> None:
    for balance in (None, RankBalance()):
        found = first(balance)
        assert not found.replicated
        assert found.slots_per_rank == 3


def test_redundant_experts_are_rounded_up_to_equally_many_a_rank() -> None:
    found = first(RankBalance(redundant_experts=3))
    assert found.slots == 16
    assert (found.slot_of_LP >= 0).all()
    assert found.copies_LE.sum(axis=1).tolist() == [16, 16]


def test_a_rank_that_is_alone_holds_each_expert_once() -> None:
    assert not first(RankBalance(redundant_experts=3), ranks=1).replicated


def test_more_redundant_experts_than_ranks_can_hold_are_refused() -> None:
    with pytest.raises(SpecError, match=r"balance\.redundant_experts: expected at most 30, .* got 31"):
        first(RankBalance(redundant_experts=31))


def test_a_file_says_where_groups_of_its_size_begin(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    wanted = Placement(np.array([[9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 8, 9]] * 2), experts=10, ranks=4)
    write_placement(path, wanted.slot_of_LP, experts=10, ranks=4)
    balance = RankBalance(initial=str(path), redundant_experts=2)
    assert first(balance).slot_of_LP.tolist() == wanted.slot_of_LP.tolist()
    assert first(balance, ranks=2).slots == 12, "another size: experts in order"
    with pytest.raises(SpecError, match="expected 3 layers of 10 experts, as the model has, got 2 of 10"):
        first_placement(balance, layers=3, experts=10, ranks=4)


class Meeting:
    """An exchange among threads: what each tells, all hear."""

    def __init__(self, ranks: int) -> None:
        self.rounds = 0
        self._gate = threading.Barrier(ranks, timeout=10)
        self._told: list[np.ndarray | None] = [None] * ranks

    def tell_all(self, rank: int, numbers: np.ndarray) -> np.ndarray:
        self._told[rank] = numbers
        self.rounds += self._gate.wait() == 0
        heard = np.stack([told for told in self._told if told is not None])
        self._gate.wait()
        return heard


class Seat:
    """One rank's end of it."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self._rank = meeting, rank

    def tell_all_numbers(self, numbers: np.ndarray) -> np.ndarray:
        return self._meeting.tell_all(self._rank, numbers)


def agreed(held: list[tuple[Placement, int]]) -> tuple[list[tuple[Placement, int]], int]:
    """Let ranks that hold these agree; return what each then has, and how often they told each other something."""
    meeting = Meeting(len(held))
    with ThreadPoolExecutor(len(held)) as threads:
        ends = [
            threads.submit(newest_placement, Seat(meeting, rank), *each)  # type: ignore[arg-type]
            for rank, each in enumerate(held)
        ]
        return [end.result() for end in ends], meeting.rounds


LINEAR = linear_placement(layers=2, experts=4, ranks=2)
MOVED = LINEAR.with_layer(1, [0, 2, 1, 3])


def test_ranks_take_the_placement_of_the_one_that_has_committed_most() -> None:
    found, _ = agreed([(LINEAR, 4), (MOVED, 5), (LINEAR, 0)])
    assert [version for _, version in found] == [5, 5, 5]
    assert all(placement.slot_of_LP.tolist() == MOVED.slot_of_LP.tolist() for placement, _ in found)


def test_ranks_that_hold_the_same_keep_it_without_telling_it() -> None:
    found, rounds = agreed([(LINEAR, 0), (LINEAR, 0)])
    assert found == [(LINEAR, 0), (LINEAR, 0)]
    assert rounds == 1


def test_ranks_with_unlike_numbers_of_slots_are_told_so() -> None:
    wide = linear_placement(layers=2, experts=4, ranks=2, redundant=2)
    with pytest.raises(EngineError, match="expected the same layers and slots on all ranks"):
        agreed([(LINEAR, 0), (wide, 0)])
