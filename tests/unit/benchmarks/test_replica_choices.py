"""Choices without counts send every token somewhere, and are what they say."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import replica_choices

from fourlane.policy.placement import Placement

PLACEMENT = Placement(np.array([[0, 1, 2, 0, 1, -1, 0, 3, 1]]), experts=4, ranks=3)
COUNT_GE = np.random.default_rng(0).integers(0, 40, size=(3, 4))


@pytest.mark.parametrize("seed", range(3))
def test_every_token_goes_to_a_replica_of_its_expert(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for choose in (
        partial(replica_choices.randomly, rng=rng),
        partial(replica_choices.by_hash, rng=rng, tokens=40),
        replica_choices.in_turn,
    ):
        quota_GP = choose(COUNT_GE, PLACEMENT, 0)
        assert quota_GP.min() >= 0
        for expert in range(4):
            assert (quota_GP[:, PLACEMENT.slot_of_LP[0] == expert].sum(axis=1) == COUNT_GE[:, expert]).all()
        assert not quota_GP[:, 5].any()


def test_tokens_in_turn_differ_by_one_at_most_and_ranks_begin_apart() -> None:
    quota_GP = replica_choices.in_turn(np.full((3, 4), 4), PLACEMENT, 0)
    assert quota_GP[:, [0, 3, 6]].tolist() == [[2, 1, 1], [1, 2, 1], [1, 1, 2]]


def test_the_hash_of_all_tokens_is_the_same_on_every_rank() -> None:
    # All 40 tokens of each rank choose expert 0: number n goes to replica (n * 2654435769 mod 2^32) mod 3.
    count_GE = np.zeros((3, 4), dtype=np.int64)
    count_GE[:, 0] = 40
    quota_GP = replica_choices.by_hash(count_GE, PLACEMENT, 0, tokens=40, rng=np.random.default_rng(0))
    wanted = np.bincount([n * 2654435769 % 2**32 % 3 for n in range(40)], minlength=3)
    assert (quota_GP[:, [0, 3, 6]] == wanted).all()
