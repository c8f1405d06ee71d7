"""What engines' balancers have in common: options, slots that stay, maps without empty slots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.errors import BalanceInputError, SpecError
from fourlane.integrations.eplb import (
    keep_slots,
    map_slots,
    read_moves,
    switched_on,
    without_doubles,
)
from fourlane.policy.load_generator import DECODE, ModelShape, drift
from fourlane.policy.placement import place_experts

SMALL = ModelShape(layers=6, experts=64, groups=4, top_k=4, tokens=1 << 12)


@pytest.fixture
def skewed_load() -> np.ndarray:
    return DECODE.draw(np.random.default_rng(1), SMALL)


def mapped(load_LE: np.ndarray, held_LP: np.ndarray | None = None, moves: int | None = None) -> np.ndarray:
    """Return the map of 64 experts on 16 ranks of six slots."""
    return map_slots(load_LE, ranks=16, slots=96, held_LP=held_LP, moves=moves)


def received(new_LP: np.ndarray, old_LP: np.ndarray) -> list[int]:
    """Return how many experts the ranks receive in each layer."""
    pairs = zip(new_LP.reshape(6, 16, 6).tolist(), old_LP.reshape(6, 16, 6).tolist(), strict=True)
    return [sum(len(set(new) - set(old)) for new, old in zip(*rows, strict=True)) for rows in pairs]


def test_every_slot_is_filled_and_no_rank_holds_an_expert_twice(skewed_load: np.ndarray) -> None:
    map_LP = mapped(skewed_load)
    assert map_LP.dtype == np.int64
    assert map_LP.shape == (6, 96)
    assert (np.diff(np.sort(map_LP.reshape(6, 16, 6)), axis=2) > 0).all()
    assert all(set(row) == set(range(64)) for row in map_LP.tolist())


def test_the_map_in_force_stays_where_the_load_has_not_changed(skewed_load: np.ndarray) -> None:
    map_LP = mapped(skewed_load)
    np.testing.assert_array_equal(mapped(skewed_load, map_LP), map_LP)


@pytest.mark.parametrize("moves", [0, 5, 20])
def test_a_layer_receives_no_more_experts_than_the_budget(skewed_load: np.ndarray, moves: int) -> None:
    map_LP = mapped(skewed_load)
    later_LE = drift(skewed_load, 0.7, np.random.default_rng(2), top_k=4)
    found = received(mapped(later_LE, map_LP, moves), map_LP)
    assert max(found) <= moves
    assert sum(found) > 0 or moves == 0


def test_a_budget_does_not_keep_slots_empty(skewed_load: np.ndarray) -> None:
    held_LP = np.full((6, 96), -1)
    held_LP.reshape(6, 16, 6)[:, :, :4] = np.arange(64).reshape(16, 4)
    assert (mapped(skewed_load, held_LP, 3) >= 0).all()


def test_a_map_in_force_with_an_expert_twice_on_a_rank_is_mended(skewed_load: np.ndarray) -> None:
    held_LP = np.tile(np.r_[0, 0, 1:64, 0:31], (6, 1))
    map_LP = mapped(skewed_load, held_LP, 3)
    assert (np.diff(np.sort(map_LP.reshape(6, 16, 6)), axis=2) > 0).all()


def test_loads_that_are_all_zero_still_give_a_map() -> None:
    map_LP = mapped(np.zeros((6, 64)))
    assert all(set(row) == set(range(64)) for row in map_LP.tolist())


@pytest.mark.parametrize("width", [48, 112])
def test_a_map_of_other_ranks_is_no_place_to_start_from(skewed_load: np.ndarray, width: int) -> None:
    held_LP = np.tile(np.arange(width) % 64, (6, 1))
    np.testing.assert_array_equal(mapped(skewed_load, held_LP), mapped(skewed_load))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"slots": 97}, "slots: "),
        ({"slots": 48}, "slots: "),
        ({"slots": 96, "ranks": 1}, "slots: "),
    ],
)
def test_sizes_that_do_not_fit_are_refused(skewed_load: np.ndarray, change: dict[str, int], says: str) -> None:
    sizes = {"ranks": 16, "slots": 96, **change}
    with pytest.raises(BalanceInputError, match=f"^{says}"):
        map_slots(skewed_load, **sizes, held_LP=None)


def test_loads_that_are_no_loads_are_refused(skewed_load: np.ndarray) -> None:
    with pytest.raises(BalanceInputError, match=r"^load: "):
        mapped(np.where(np.arange(64) == 3, np.nan, skewed_load))


def test_the_first_of_three_copies_on_a_rank_stays() -> None:
    assert without_doubles(np.array([[5, 5, 5, 5, 1, 5]]), ranks=2).tolist() == [[5, -1, -1, 5, 1, -1]]


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 6))
def test_keeping_slots_changes_no_ranks_experts_and_no_slot_of_one_that_stays(
    seed: int, ranks: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    new_LP = np.concatenate([rng.permutation(12)[:width] for _ in range(2 * ranks)]).reshape(2, -1)
    old_LP = rng.integers(-1, 12, new_LP.shape)
    kept_LP = keep_slots(new_LP, old_LP, ranks)
    groups = (table.reshape(-1, width).tolist() for table in (kept_LP, new_LP, old_LP))
    for kept_S, new_S, old_S in zip(*groups, strict=True):
        assert sorted(kept_S) == sorted(new_S)
        assert all(kept_S.index(expert) == old_S.index(expert) for expert in set(new_S) & set(old_S))


def test_a_switch_is_on_off_or_refused() -> None:
    with pytest.raises(SpecError, match=r"^X: expected 1 \(on\) or 0 \(off\), got 'yes'"):
        switched_on({"X": "yes"}, "X")


def test_a_budget_is_read_from_the_environment() -> None:
    assert read_moves({}) is None
    assert read_moves({"FOURLANE_EPLB_MOVES": ""}) is None
    assert read_moves({"FOURLANE_EPLB_MOVES": " 32 "}) == 32
    assert read_moves({"FOURLANE_EPLB_MOVES": "0"}) == 0


@pytest.mark.parametrize("moves", ["-1", "many", "1.5", "\N{SUPERSCRIPT TWO}"])
def test_a_budget_that_is_no_number_is_refused(moves: str) -> None:
    with pytest.raises(SpecError, match=r"^FOURLANE_EPLB_MOVES: expected how many"):
        read_moves({"FOURLANE_EPLB_MOVES": moves})


def test_slots_that_a_placement_has_no_use_for_are_filled_all_the_same() -> None:
    load_LE = drift(DECODE.draw(np.random.default_rng(6)), 0.95, np.random.default_rng(7))[:1]
    assert (place_experts(load_LE, ranks=32, slots=288, split_aware=False).slot_of_LP < 0).any()
    map_LP = map_slots(load_LE, ranks=32, slots=288, held_LP=None)
    assert (map_LP >= 0).all()
    assert (without_doubles(map_LP, 32) == map_LP).all()
