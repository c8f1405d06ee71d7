"""Rows as float8 that a GPU packs: the very bytes that a CPU does."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fourlane.engine.exchange.payload import FLOAT8  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [128, 200, 1024])
def test_a_gpu_packs_and_unpacks_rows_as_a_cpu_does(dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dim)
    spread_T1 = torch.logspace(-6, 4, 500).unsqueeze(1)
    x_TD = (torch.randn(500, dim, generator=generator) * spread_T1).to(dtype)
    packed = FLOAT8.pack(x_TD)
    found = FLOAT8.pack(x_TD.cuda())
    assert torch.equal(found.cpu(), packed)
    assert torch.equal(FLOAT8.unpack(found, dim, dtype).cpu(), FLOAT8.unpack(packed, dim, dtype))
