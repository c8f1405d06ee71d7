"""Sharing a step's tokens out among sequences."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fourlane.policy.scheduling import Share, plan_step


def test_decodes_come_before_prompts_whatever_the_order() -> None:
    shares = plan_step([100, 1, 1], chunk_tokens=10, max_sequences=8)
    assert shares == [Share(0, 8), Share(1, 1), Share(2, 1)]


def test_prompts_are_served_in_order_of_arrival() -> None:
    assert plan_step([6, 6, 6], chunk_tokens=10, max_sequences=8) == [Share(0, 6), Share(1, 4)]


def test_decodes_are_served_beyond_the_budget() -> None:
    assert len(plan_step([1] * 20, chunk_tokens=4, max_sequences=64)) == 20


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 64), st.integers(1, 16))
def test_no_share_exceeds_what_is_pending_and_something_is_done_if_anything_is(
    pending: list[int], chunk_tokens: int, max_sequences: int
) -> None:
    shares = plan_step(pending, chunk_tokens=chunk_tokens, max_sequences=max_sequences)
    assert len(shares) <= max_sequences
    assert all(1 <= share.tokens <= pending[share.key] for share in shares)
    assert bool(shares) == any(pending)
    decodes = sum(share.tokens == 1 == pending[share.key] for share in shares)
    assert sum(share.tokens for share in shares) <= max(chunk_tokens, decodes)
