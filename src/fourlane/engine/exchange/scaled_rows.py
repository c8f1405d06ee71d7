"""Rows as float8 with a float32 scale per 128 elements, apart, as kernels of GPU libraries take them.

The numbers are those of `payload.FLOAT8`, which keeps the scales behind the elements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fourlane.engine.exchange.installed import has_triton
from fourlane.engine.exchange.payload import FLOAT8

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["from_scaled", "to_scaled", "to_scaled_in_torch"]

_PER_SCALE = 128


def to_scaled(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Return elements [tokens, dim] as float8_e4m3fn and scales [tokens, dim / 128]; dim is a multiple of 128."""
    if x_TD.is_cuda and has_triton():
        from fourlane.engine.exchange.triton_kernels import quantise

        return quantise(x_TD)
    return to_scaled_in_torch(x_TD)


def to_scaled_in_torch(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same by the payload; the reference."""
    tokens, dim = x_TD.shape
    rows_TB = FLOAT8.pack(x_TD)
    elements_TD = rows_TB[:, :dim].contiguous().view(torch.float8_e4m3fn)
    scale_TX = rows_TB[:, dim:].reshape(-1).view(torch.float32).view(tokens, dim // _PER_SCALE)
    return elements_TD, scale_TX


def from_scaled(elements_RD: Tensor, scale_RX: Tensor, dtype: torch.dtype) -> Tensor:
    """Return elements times their scales, [rows, dim] of `dtype`; scales may lie in any order of memory."""
    rows, dim = elements_RD.shape
    x_RXE = elements_RD.float().view(rows, dim // _PER_SCALE, _PER_SCALE)
    return (x_RXE * scale_RX.unsqueeze(2)).view(rows, dim).to(dtype)
