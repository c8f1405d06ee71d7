"""Rank choice: properties that hold for any ranks, and named cases."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fourlane.policy.prefix import prefix_hashes
from fourlane.policy.request_routing import (
    DecodeCandidate,
    PrefillCandidate,
    choose_decode,
    choose_prefill,
    choose_unified,
    group_steps,
    pages_for,
    prefix_tokens,
)

tokens = st.integers(0, 5000)


@st.composite
def prefill_ranks(draw: st.DrawFn) -> list[PrefillCandidate]:
    return draw(st.lists(st.builds(PrefillCandidate, tokens, st.integers(0, 400), st.booleans(), tokens), max_size=8))


@st.composite
def decode_ranks(draw: st.DrawFn) -> list[DecodeCandidate]:
    ranks = []
    for _ in range(draw(st.integers(0, 8))):
        total = draw(st.integers(1, 200))
        free = draw(st.integers(-3, total))
        ranks.append(DecodeCandidate(free, total, draw(st.integers(0, 20)), 16, draw(st.booleans())))
    return ranks


@given(prefill_ranks(), st.integers(401, 2000), st.integers(1, 8000))
def test_a_prefill_rank_is_available_has_queue_and_none_would_compute_sooner(
    ranks: list[PrefillCandidate], prompt: int, limit: int
) -> None:
    chosen = choose_prefill(ranks, prompt_tokens=prompt, queue_limit=limit)

    def admits(rank: PrefillCandidate) -> bool:
        within = rank.queued_tokens + prompt - rank.cached_tokens <= limit
        return rank.available and (rank.queued_tokens == 0 or within)

    fit = [index for index, rank in enumerate(ranks) if admits(rank)]
    if chosen is None:
        assert not fit
        return
    assert chosen in fit
    cost = [rank.queued_tokens + rank.step_tokens - rank.cached_tokens for rank in ranks]
    assert all(cost[chosen] <= cost[index] for index in fit)
    assert all(cost[index] > cost[chosen] for index in fit if index < chosen)


@given(decode_ranks(), st.integers(1, 50))
def test_a_decode_rank_has_room_and_none_with_room_is_better_in_both_ways(
    ranks: list[DecodeCandidate], pages: int
) -> None:
    chosen = choose_decode(ranks, pages=pages)
    if chosen is None:
        assert not any(rank.available and rank.running == 0 and rank.free_pages >= pages for rank in ranks)
        return
    best = ranks[chosen]
    assert best.available
    assert best.free_pages >= pages
    assert best.running < best.max_running
    for rank in ranks:
        used, least = rank.total_pages - rank.free_pages, best.total_pages - best.free_pages
        same_size = rank.total_pages == best.total_pages
        assert not (same_size and rank.admits(pages) and rank.running < best.running and used < least)


@given(decode_ranks(), st.integers(1, 50), st.sets(st.integers(0, 7)))
def test_avoided_ranks_are_chosen_only_if_no_other_has_room(
    ranks: list[DecodeCandidate], pages: int, avoid: set[int]
) -> None:
    chosen = choose_decode(ranks, pages=pages, avoid=avoid)
    others = [rank for index, rank in enumerate(ranks) if index not in avoid]
    assert (chosen is None) == (choose_decode(ranks, pages=pages) is None)
    if chosen in avoid:
        assert choose_decode(others, pages=pages) is None


@given(decode_ranks(), st.integers(1, 50))
def test_choice_does_not_depend_on_ranks_that_may_not_be_chosen(ranks: list[DecodeCandidate], pages: int) -> None:
    chosen = choose_decode(ranks, pages=pages)
    if chosen is not None:
        room = [rank for rank in ranks if rank.admits(pages)]
        again = choose_decode(room, pages=pages)
        assert again is not None
        assert room[again] == ranks[chosen]


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_seen_prefix_is_the_common_one_in_whole_blocks(first: list[int], second: list[int], block: int) -> None:
    seen = set(prefix_hashes(first, block))
    common = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    if common is None:
        common = min(len(first), len(second))
    expected = max(0, min(common // block * block, len(second) - 1))
    found = prefix_tokens(prefix_hashes(second, block), seen, block_size=block, prompt_tokens=len(second))
    assert found == expected


@given(st.integers(0, 10_000), st.integers(1, 128))
def test_pages_hold_their_tokens_and_no_page_is_spare(count: int, block: int) -> None:
    pages = pages_for(count, block)
    assert pages * block >= count > (pages - 1) * block or count == pages == 0


def test_affinity_is_worth_the_tokens_it_saves_and_no_more() -> None:
    near = PrefillCandidate(queued_tokens=300, cached_tokens=256)
    assert choose_prefill([PrefillCandidate(0), near], prompt_tokens=300, queue_limit=4096) == 0
    far = PrefillCandidate(queued_tokens=200, cached_tokens=256)
    assert choose_prefill([PrefillCandidate(0), far], prompt_tokens=300, queue_limit=4096) == 1


def test_an_idle_rank_takes_a_prompt_longer_than_the_queue_limit() -> None:
    assert choose_prefill([PrefillCandidate(1), PrefillCandidate(0)], prompt_tokens=9000, queue_limit=100) == 1


def test_ranks_that_are_not_available_are_never_chosen() -> None:
    assert choose_prefill([PrefillCandidate(0, 0, available=False)], prompt_tokens=1, queue_limit=10) is None
    gone = DecodeCandidate(100, 100, 0, 16, available=False)
    assert choose_decode([gone], pages=1) is None
    assert choose_unified([PrefillCandidate(0)], [gone], pages=1) is None


def test_decode_goes_to_the_rank_with_fewer_sequences_and_pages_in_use() -> None:
    busy, calm = DecodeCandidate(50, 100, 8, 16), DecodeCandidate(80, 100, 2, 16)
    assert choose_decode([busy, calm], pages=4) == 1


def test_running_sequences_keep_a_page_each_to_grow_into() -> None:
    rank = DecodeCandidate(free_pages=10, total_pages=100, running=6, max_running=16)
    assert choose_decode([rank], pages=4) == 0
    assert choose_decode([rank], pages=5) is None


def test_a_unified_rank_is_chosen_by_queue_cache_and_running_sequences() -> None:
    room = [DecodeCandidate(90, 100, running, 16) for running in (0, 4)]
    even = [PrefillCandidate(0), PrefillCandidate(0)]
    assert choose_unified(even, room, pages=2) == 0
    assert choose_unified([PrefillCandidate(0), PrefillCandidate(0, 256)], room, pages=2) == 1


def test_of_equal_ranks_the_first_is_chosen() -> None:
    assert choose_prefill([PrefillCandidate(5)] * 3, prompt_tokens=9, queue_limit=100) == 0
    assert choose_decode([DecodeCandidate(9, 9, 0, 4)] * 3, pages=1) == 0


def test_an_idle_group_is_better_than_an_idle_rank_of_a_group_at_work() -> None:
    queued_G = np.array([300, 0, 0, 0])
    steps = group_steps(queued_G, group_ranks=2, chunk_tokens=256).tolist()
    assert steps == [256, 256, 0, 0]
    ranks = [PrefillCandidate(int(queued), step_tokens=step) for queued, step in zip(queued_G, steps, strict=True)]
    assert choose_prefill(ranks, prompt_tokens=100, queue_limit=1000) == 2


@given(st.lists(tokens, min_size=1, max_size=6), st.integers(1, 5000), st.integers(1, 9000))
def test_within_one_group_the_step_makes_no_difference(queued: list[int], prompt: int, limit: int) -> None:
    steps = group_steps(np.array(queued), group_ranks=len(queued), chunk_tokens=512).tolist()
    with_step = [PrefillCandidate(each, step_tokens=step) for each, step in zip(queued, steps, strict=True)]
    without = [PrefillCandidate(each) for each in queued]
    chosen = [choose_prefill(ranks, prompt_tokens=prompt, queue_limit=limit) for ranks in (with_step, without)]
    assert chosen[0] == chosen[1]
