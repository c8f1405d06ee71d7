"""Kernels for GPUs, in Triton: permute rows, quantise them, unpermute and weight what comes back.

Each moves every byte once and computes little, so a GPU's memory is its limit; `benchmarks/bench_kernels.py`
measures them against it. References are `Tensor.index_select`, `payload.pack_float8_in_torch` and
`sparse_rows.fold_in_torch`; scripts/test-kernels checks the kernels against those on any machine, by
Triton's interpreter. Imported only where Triton is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton  # pyrefly: ignore[missing-import]
import triton.language as tl  # pyrefly: ignore[missing-import]

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fold", "permute", "quantise"]

_ELEMENTS = 1024  # a program of `permute` and `fold` has at most so many of a row
_SCALED = 128  # elements a scale


def permute(x_TD: Tensor, rows_R: Tensor) -> Tensor:
    """Return the rows named, in that order: `x_TD.index_select(0, rows_R)`.

    Args:
        x_TD: [tokens, dim], rows contiguous.
        rows_R: int64 [rows].
    """
    rows, dim = rows_R.shape[0], x_TD.shape[1]
    out_RD = torch.empty((rows, dim), dtype=x_TD.dtype, device=x_TD.device)
    if out_RD.numel():
        block = min(_ELEMENTS, triton.next_power_of_2(dim))
        grid = (rows, triton.cdiv(dim, block))
        _permute[grid](x_TD, rows_R, out_RD, dim, x_TD.stride(0), BLOCK=block)
    return out_RD


def quantise(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows as float8_e4m3fn [tokens, dim] and their scales [tokens, dim / 128], as `payload.FLOAT8` has them.

    Args:
        x_TD: [tokens, dim], rows contiguous; dim is a multiple of 128.
    """
    tokens, dim = x_TD.shape
    codes_TD = torch.empty((tokens, dim), dtype=torch.uint8, device=x_TD.device)
    scale_TX = torch.empty((tokens, dim // _SCALED), dtype=torch.float32, device=x_TD.device)
    if codes_TD.numel():
        groups = min(8, triton.next_power_of_2(dim // _SCALED))
        grid = (tokens, triton.cdiv(dim // _SCALED, groups))
        _quantise[grid](x_TD, codes_TD, scale_TX, dim, x_TD.stride(0), GROUPS=groups, SIZE=_SCALED)
    return codes_TD.view(torch.float8_e4m3fn), scale_TX


def fold(y_RD: Tensor, place_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """Return sums of rows, weighted, in the order of K: float32 inside, rounded once; see `sparse_rows.fold_rows`.

    Args:
        y_RD: [rows, dim], rows contiguous.
        place_NK: int64 [tokens, K], the row of each pair, or -1 for none.
        weights_NK: float32 [tokens, K].
    """
    tokens, top_k = place_NK.shape
    dim = y_RD.shape[1]
    out_ND = torch.empty((tokens, dim), dtype=y_RD.dtype, device=y_RD.device)
    if out_ND.numel():
        block = min(_ELEMENTS, triton.next_power_of_2(dim))
        grid = (tokens, triton.cdiv(dim, block))
        # products are rounded before they are added, as the reference does
        _fold[grid](
            y_RD, place_NK.contiguous(), weights_NK.float().contiguous(), out_ND, dim, y_RD.stride(0),
            TOP_K=top_k, BLOCK=block, enable_fp_fusion=False,
        )  # fmt: skip
    return out_ND


@triton.jit
def _permute(
    x_ptr: tl.tensor, rows_ptr: tl.tensor, out_ptr: tl.tensor, dim: tl.tensor, stride: tl.tensor, BLOCK: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(rows_ptr + row)
    values = tl.load(x_ptr + source * stride + column, mask=column < dim)
    tl.store(out_ptr + row * dim + column, values, mask=column < dim)


@triton.jit
def _float8_code(x: tl.tensor) -> tl.tensor:
    """Return float32 as e4m3fn, rounded to nearest even; by integers, so that GPUs without such a type can do it."""
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    magnitude = bits & 0x7FFFFFFF
    # normal: of 23 bits behind the point 3 stay; a carry goes on into the exponent, whose bias is 7, not 127
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # below 2^-6 codes are multiples of 2^-9, which is what the last bit of numbers beside 2^14 counts
    below = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, below, normal)
    code = tl.where(magnitude < 0x7F800000, code, 0x7F)  # infinities become NaN
    return (code | sign).to(tl.uint8)


@triton.jit
def _quantise(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    dim: tl.tensor,
    stride: tl.tensor,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    column = group[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + token * stride + column, mask=column < dim, other=0.0).to(tl.float32)
    magnitude = tl.abs(x)
    finite = tl.where(magnitude < float("inf"), magnitude, 0.0)  # false for NaN too
    greatest = tl.maximum(tl.max(finite, axis=1), 448.0 * 1.1754943508222875e-38)  # 2^-126
    code = _float8_code(x * tl.div_rn(448.0, greatest)[:, None])
    tl.store(codes_ptr + token * dim + column, code, mask=column < dim)
    groups = dim // SIZE
    tl.store(scale_ptr + token * groups + group, tl.div_rn(greatest, 448.0), mask=group < groups)


@triton.jit
def _fold(  # noqa: PLR0913, PLR0917 - a kernel has no other way to be told
    y_ptr: tl.tensor,
    place_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    out_ptr: tl.tensor,
    dim: tl.tensor,
    stride: tl.tensor,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        place = tl.load(place_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        row = tl.load(y_ptr + place * stride + column, mask=column < tl.where(place >= 0, dim, 0), other=0.0)
        total += tl.where(place >= 0, row.to(tl.float32) * weight, 0.0)
    tl.store(out_ptr + token * dim + column, total.to(out_ptr.dtype.element_ty), mask=column < dim)
