"""The kernels in Triton against their references: by Triton's interpreter, and on a GPU where there is one.

`scripts/test-kernels` makes an environment that has Triton and runs this. Without a GPU the interpreter
computes what the kernels say, and Triton compiles them for GPUs that are not here.
"""

from __future__ import annotations

import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="Triton is not installed here; scripts/test-kernels runs this")

from fourlane.engine.exchange import triton_kernels  # noqa: E402 - after the skip
from fourlane.engine.exchange.payload import pack_float8_in_torch  # noqa: E402
from fourlane.engine.exchange.sparse_rows import fold_in_torch, sort_held  # noqa: E402

# numpy, by which the interpreter computes, warns of infinities and NaN where they belong
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows(count: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator).to(dtype).to(DEVICE)


def rounded(x_TD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return float32 rounded as kernels round it where they run; Triton's interpreter cuts bfloat16 off."""
    if GPU or dtype != torch.bfloat16:
        return x_TD.to(dtype)
    return (x_TD.contiguous().view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8])
@pytest.mark.parametrize("dim", [1, 100, 128, 1024, 1500])
def test_permuted_rows_are_those_named(dim: int, dtype: torch.dtype) -> None:
    x_TD = (rows(7, dim) * 20).to(dtype)
    rows_R = torch.tensor([6, 0, 0, 3, 5], device=DEVICE)
    assert torch.equal(triton_kernels.permute(x_TD, rows_R), x_TD[rows_R])


def test_permuting_none_of_some_rows_or_some_of_a_wider_tensor_works() -> None:
    x_TD = rows(5, 64)
    assert triton_kernels.permute(x_TD, torch.empty(0, dtype=torch.int64, device=DEVICE)).shape == (0, 64)
    assert torch.equal(triton_kernels.permute(x_TD[:, 3:20], torch.tensor([4, 1], device=DEVICE)), x_TD[[4, 1], 3:20])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [128, 384, 1024, 1152])
def test_quantised_rows_are_the_payloads_bit_for_bit(dim: int, dtype: torch.dtype) -> None:
    assert_quantised(rows(9, dim, dtype))


def test_numbers_of_every_exponent_are_quantised_as_the_payload_does() -> None:
    bits = torch.arange(0, 1 << 32, 33_003, dtype=torch.int64)
    values = bits.to(torch.int32).view(torch.float32)
    assert_quantised(values[: values.numel() // 128 * 128].view(-1, 128).contiguous().to(DEVICE))


def test_every_magnitude_up_to_the_largest_is_rounded_to_the_nearest_code() -> None:
    values = torch.linspace(-448, 448, 127 * 256)
    small = torch.linspace(-0.04, 0.04, 127 * 256)
    blocks = torch.cat([values, small]).view(-1, 127)
    # one element of 448 a block makes its scale 1, so that codes are those of the numbers themselves
    assert_quantised(torch.cat([blocks, torch.full((blocks.shape[0], 1), 448.0)], dim=1).to(DEVICE))


def test_what_is_not_finite_and_rows_of_zeros_are_quantised_as_the_payload_does() -> None:
    x_TD = rows(4, 256)
    x_TD[0] = 0
    x_TD[1, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    x_TD[2, 128:] = torch.finfo(torch.float32).max
    x_TD[3, :128] = 1e-45
    assert_quantised(x_TD)
    codes_TD, scale_TX = triton_kernels.quantise(x_TD[:0])
    assert codes_TD.shape == (0, 256)
    assert scale_TX.shape == (0, 2)


def assert_quantised(x_TD: torch.Tensor) -> None:
    codes_TD, scale_TX = triton_kernels.quantise(x_TD)
    expected_TB = pack_float8_in_torch(x_TD)
    dim = x_TD.shape[1]
    assert torch.equal(scale_TX.view(torch.uint8), expected_TB[:, dim:])
    found, expected = codes_TD.view(torch.uint8), expected_TB[:, :dim]
    finite = x_TD.isfinite()
    assert torch.equal(found[finite], expected[finite])
    assert ((found[~finite] & 0x7F) == 0x7F).all()  # the sign of what is no number has no meaning


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "top_k", "dim"), [(1, 1, 64), (11, 3, 300), (6, 8, 1500)])
def test_outputs_are_weighted_and_summed_as_the_reference_does(
    tokens: int, top_k: int, dim: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    held_NK = torch.randint(-1, 4, (tokens, top_k), generator=generator).to(DEVICE)
    here = int((held_NK >= 0).sum())
    place_NK = sort_held(held_NK, 4, here).place_NK
    weights_NK = torch.rand(tokens, top_k, generator=generator).to(DEVICE)
    y_RD = rows(here, dim, dtype)
    expected_ND = rounded(fold_in_torch(y_RD.float(), place_NK, weights_NK), dtype)
    assert torch.equal(triton_kernels.fold(y_RD, place_NK, weights_NK), expected_ND)


def test_tokens_none_of_whose_experts_are_here_sum_to_zero() -> None:
    place_NK = torch.full((3, 2), -1, dtype=torch.int64, device=DEVICE)
    found_ND = triton_kernels.fold(rows(0, 128, torch.bfloat16), place_NK, torch.ones((3, 2), device=DEVICE))
    assert torch.equal(found_ND, torch.zeros((3, 128), dtype=torch.bfloat16, device=DEVICE))
