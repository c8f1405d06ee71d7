"""Names of prefixes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fourlane.policy.prefix import prefix_hashes

tokens = st.lists(st.integers(0, 5), max_size=40)


@given(tokens, tokens)
def test_two_sequences_share_exactly_the_names_of_their_common_full_pages(a: list[int], b: list[int]) -> None:
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    shared = sum(x == y for x, y in zip(prefix_hashes(a, 4), prefix_hashes(b, 4), strict=False))
    assert shared == common // 4


def test_a_page_that_is_not_full_has_no_name() -> None:
    assert [len(prefix_hashes(list(range(n)), 4)) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]
