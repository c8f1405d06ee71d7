"""Forms in which rows travel to experts."""

from __future__ import annotations

import pytest
import torch

from fourlane.engine.exchange.payload import AS_IS

_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64]


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_rows_as_they_are_come_back_bit_for_bit(dtype: torch.dtype, tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x_TD = (torch.randn((tokens, 24), generator=generator) * 50).to(dtype)
    rows = AS_IS.pack(x_TD)
    assert rows.dtype == torch.uint8
    assert rows.shape == (tokens, AS_IS.row_bytes(24, dtype))
    again = AS_IS.unpack(rows, 24, dtype)
    assert again.dtype == dtype
    assert torch.equal(again.contiguous().view(torch.uint8), x_TD.view(torch.uint8))


def test_rows_that_do_not_lie_side_by_side_are_packed_all_the_same() -> None:
    x_TD = torch.arange(12, dtype=torch.float32).view(3, 4)[:, ::2]
    assert torch.equal(AS_IS.unpack(AS_IS.pack(x_TD), 2, torch.float32), x_TD)
