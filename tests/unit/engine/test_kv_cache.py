"""Pages: handed out, shared, cached, reused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.engine.kv_cache import BlockPool
from fourlane.policy.prefix import prefix_hashes


def names(count: int, *, seed: int = 0) -> list[bytes]:
    return prefix_hashes([seed, *range(4 * count - 1)], 4)


def test_taking_more_than_there_is_takes_nothing() -> None:
    pool = BlockPool(4, prefix_cache=True)
    assert pool.take(5) is None
    assert pool.free_blocks == 4


def test_a_released_prefix_is_found_again_and_not_handed_out_while_held() -> None:
    pool = BlockPool(4, prefix_cache=True)
    blocks = pool.take(2)
    assert blocks is not None
    for block, name in zip(blocks, names(2), strict=True):
        pool.name(block, name)
    pool.release(blocks)
    assert pool.free_blocks == 4
    assert pool.match(names(3)) == blocks
    assert pool.free_blocks == 2
    others = pool.take(2)
    assert others is not None
    assert set(others).isdisjoint(blocks)
    assert pool.take(1) is None


def test_cached_pages_are_reused_from_the_end_of_the_oldest_sequence() -> None:
    pool = BlockPool(4, prefix_cache=True)
    for seed in (1, 2):
        blocks = pool.take(2)
        assert blocks is not None
        for block, name in zip(blocks, names(2, seed=seed), strict=True):
            pool.name(block, name)
        pool.release(blocks)
    assert pool.take(1) is not None
    held = pool.match(names(2, seed=1))
    assert len(held) == 1, "the end of the oldest sequence was reused, its beginning was kept"
    pool.release(held)
    assert len(pool.match(names(2, seed=2))) == 2


def test_without_prefix_cache_nothing_is_found() -> None:
    pool = BlockPool(2, prefix_cache=False)
    blocks = pool.take(1)
    assert blocks is not None
    pool.name(blocks[0], names(1)[0])
    pool.release(blocks)
    assert pool.match(names(1)) == []


def test_releasing_what_is_not_held_is_refused() -> None:
    pool = BlockPool(2, prefix_cache=True)
    with pytest.raises(ValueError, match="page 0 is released but not held"):
        pool.release([0])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=60))
def test_no_page_is_ever_lost_or_handed_out_twice(steps: list[tuple[int, int]]) -> None:
    pool = BlockPool(8, prefix_cache=True)
    held: list[list[int]] = []
    for action, size in steps:
        if action == 0 and held:
            pool.release(held.pop(0))
            continue
        prefix = names(size, seed=action)
        blocks = pool.match(prefix)
        more = pool.take(size - len(blocks))
        if more is None:
            pool.release(blocks)
            continue
        fresh = {block for other in held for block in other}
        assert fresh.isdisjoint(more)
        blocks += more
        for block, name in zip(blocks, prefix, strict=True):
            pool.name(block, name)
        held.append(blocks)
        assert len({block for other in held for block in other}) + pool.free_blocks == 8
    for blocks in held:
        pool.release(blocks)
    assert pool.free_blocks == 8
