"""In which form a token's row travels to its experts.

A row is packed once, before it is multiplied for the experts it goes to; every copy is the same bytes.
Outputs always travel back as they are. Not for where rows go: that is an exchange's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from fourlane import _native
from fourlane.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AS_IS",
    "FLOAT8",
    "FLOAT8_BLOCK",
    "Payload",
    "pack_float8_in_torch",
    "payload_of",
    "unpack_float8_in_torch",
]

FLOAT8_BLOCK = 128
"""Elements that share a scale."""
_GREATEST = 448.0  # of e4m3fn
_LEAST_MAXIMUM = _GREATEST * 2.0**-126  # keeps scales out of the subnormal numbers


class Payload(Protocol):
    """A form in which rows travel; the same on all ranks of a group."""

    def row_bytes(self, dim: int, dtype: torch.dtype) -> int:
        """Return how many bytes a packed row of `dim` elements has."""
        ...

    def pack(self, x_TD: Tensor) -> Tensor:
        """Return the rows as they travel, uint8 [tokens, row bytes], contiguous, on the same device."""
        ...

    def unpack(self, rows_RB: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        """Return what arrived as [rows, dim] of `dtype`, on the same device.

        Args:
            rows_RB: uint8 [rows, row bytes], contiguous.
        """
        ...


class _AsIs:
    """The activations' own bytes: what arrives is what was sent, bit for bit."""

    def row_bytes(self, dim: int, dtype: torch.dtype) -> int:
        return dim * dtype.itemsize

    def pack(self, x_TD: Tensor) -> Tensor:
        tokens, dim = x_TD.shape
        # by way of one dim: an empty tensor's strides may be anything
        return x_TD.contiguous().view(-1).view(torch.uint8).view(tokens, self.row_bytes(dim, x_TD.dtype))

    def unpack(self, rows_RB: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        return rows_RB.contiguous().view(-1).view(dtype).view(rows_RB.shape[0], dim)


class _Float8:
    """One byte an element (e4m3fn), and behind them a float32 scale for each 128 of them, the last perhaps for fewer.

    With `greatest` a block's greatest finite magnitude (at least 448 * 2^-126), its scale is greatest / 448 and x
    becomes float8(x * (448 / greatest)) * scale, every operation rounded to nearest. So zeros are exact, and

        |x - x'| <= max(|x| / 16, greatest * 2^-18)

    also after rounding to bfloat16 or float16 (there: plus half their least subnormal number). NaN and infinities
    arrive as NaN; they do not change their neighbours.
    Source: DeepSeek-V3 technical report, section 3.3 (tiles of 1 x 128); OCP 8-bit floating point specification 1.0.
    """

    def row_bytes(self, dim: int, dtype: torch.dtype) -> int:
        _check(dtype)
        return dim + 4 * -(-dim // FLOAT8_BLOCK)

    def pack(self, x_TD: Tensor) -> Tensor:
        width = self.row_bytes(x_TD.shape[1], x_TD.dtype)
        if x_TD.device.type != "cpu":
            return pack_float8_in_torch(x_TD)
        packed = np.empty((x_TD.shape[0], width), dtype=np.uint8)
        _native.pack_float8(x_TD.to(torch.float32).contiguous().numpy(), packed)
        return torch.from_numpy(packed)

    def unpack(self, rows_RB: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        _check(dtype)
        if rows_RB.device.type != "cpu":
            return unpack_float8_in_torch(rows_RB, dim, dtype)
        x_RD = np.empty((rows_RB.shape[0], dim), dtype=np.float32)
        _native.unpack_float8(rows_RB.numpy(), x_RD)
        return torch.from_numpy(x_RD).to(dtype)


AS_IS: Payload = _AsIs()
FLOAT8: Payload = _Float8()


def payload_of(dispatch: Literal["activations", "float8"]) -> Payload:
    """Return the form that a deployment's `exchange.dispatch` names."""
    return FLOAT8 if dispatch == "float8" else AS_IS


def pack_float8_in_torch(x_TD: Tensor) -> Tensor:
    """Do as `FLOAT8.pack`, in PyTorch: the reference, bit for bit, and the way on CUDA."""
    tokens, dim = x_TD.shape
    x_TXB = _in_blocks(x_TD.to(torch.float32))
    magnitude_TXB = x_TXB.abs().nan_to_num(nan=0.0, posinf=0.0)
    greatest_TX = magnitude_TXB.amax(dim=2).clamp(min=_LEAST_MAXIMUM)
    # torch's own cast, unlike the native one, would make infinities the largest number
    x_TXB = torch.where(x_TXB.isinf(), torch.copysign(x_TXB.new_tensor(torch.nan), x_TXB), x_TXB)
    # of a number and a tensor PyTorch makes a product with the reciprocal, which is rounded twice; on CUDA either way
    full_TX = torch.full_like(greatest_TX, _GREATEST)
    inverse_TX = full_TX / greatest_TX
    codes_TXB = (x_TXB * inverse_TX.unsqueeze(2)).to(torch.float8_e4m3fn)
    blocks = greatest_TX.shape[1]
    codes_TD = codes_TXB.view(torch.uint8).reshape(tokens, blocks * FLOAT8_BLOCK)[:, :dim]
    scales = (greatest_TX / full_TX).view(-1).view(torch.uint8).view(tokens, blocks * 4)
    return torch.cat([codes_TD, scales], dim=1)


def unpack_float8_in_torch(rows_RB: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Do as `FLOAT8.unpack`, in PyTorch."""
    rows, blocks = rows_RB.shape[0], -(-dim // FLOAT8_BLOCK)
    scale_RX = (
        rows_RB[:, dim:].clone(memory_format=torch.contiguous_format).view(-1).view(torch.float32).view(rows, blocks)
    )
    codes_RD = rows_RB[:, :dim].contiguous().view(torch.float8_e4m3fn).to(torch.float32)
    x_RXB = _in_blocks(codes_RD) * scale_RX.unsqueeze(2)
    return x_RXB.reshape(rows, blocks * FLOAT8_BLOCK)[:, :dim].to(dtype)


def _in_blocks(x_TD: Tensor) -> Tensor:
    """Return [tokens, blocks, 128], the last block filled up with zeros."""
    tokens, dim = x_TD.shape
    blocks = -(-dim // FLOAT8_BLOCK)
    filled = torch.nn.functional.pad(x_TD, (0, blocks * FLOAT8_BLOCK - dim))
    return filled.view(tokens, blocks, FLOAT8_BLOCK)


def _check(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise SpecError(
            f'exchange.dispatch: "float8" rounds activations of float32, bfloat16 or float16, not of {dtype}; '
            'set it to "activations"'
        )
