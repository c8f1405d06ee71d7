"""Rows of tokens that a rank has received once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from fourlane.engine.exchange.payload import FLOAT8  # noqa: E402 - after the skip
from fourlane.engine.exchange.scaled_rows import from_scaled, to_scaled  # noqa: E402
from fourlane.engine.exchange.sparse_rows import fold_rows, sort_held  # noqa: E402


@given(st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), max_size=12))
def test_pairs_that_are_here_stand_by_slot_then_token_then_k(held: list[list[int]]) -> None:
    held_NK = torch.tensor(held, dtype=torch.int64).view(-1, 3)
    pairs = [(slot, token, k) for token, row in enumerate(held) for k, slot in enumerate(row) if slot >= 0]
    found = sort_held(held_NK, 5, len(pairs))
    assert found.rows_R.tolist() == [token for _, token, _ in sorted(pairs)]
    for place, (_, token, k) in enumerate(sorted(pairs)):
        assert found.place_NK[token, k] == place
    assert int((found.place_NK < 0).sum()) == held_NK.numel() - len(pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tokens_rows_are_weighted_and_added_in_the_order_of_k(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    held_NK = torch.randint(-1, 3, (7, 4), generator=generator)
    held = sort_held(held_NK, 3, int((held_NK >= 0).sum()))
    y_RD = torch.randn(held.rows_R.shape[0], 33, generator=generator).to(dtype)
    weights_NK = torch.rand(7, 4, generator=generator)
    found_ND = fold_rows(y_RD, held.place_NK, weights_NK)
    for token in range(7):
        total_D = torch.zeros(33)
        for k in range(4):
            if held_NK[token, k] >= 0:
                total_D = total_D + y_RD[held.place_NK[token, k]].float() * weights_NK[token, k]
        assert torch.equal(found_ND[token], total_D.to(dtype))


def test_tokens_without_rows_here_sum_to_zero() -> None:
    place_NK = torch.full((2, 3), -1)
    assert torch.equal(fold_rows(torch.empty(0, 5), place_NK, torch.ones(2, 3)), torch.zeros(2, 5))


@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_elements_and_scales_apart_are_what_the_payload_has_in_one(tokens: int) -> None:
    x_TD = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    elements_TD, scale_TX = to_scaled(x_TD)
    assert (elements_TD.shape, scale_TX.shape) == ((tokens, 256), (tokens, 2))
    column_major_TX = scale_TX.t().contiguous().t()
    packed = FLOAT8.pack(x_TD)
    assert torch.equal(from_scaled(elements_TD, column_major_TX, x_TD.dtype), FLOAT8.unpack(packed, 256, x_TD.dtype))
