"""In which form a token's row travels to its experts.

A row is packed once, before it is multiplied for the experts it goes to; every copy is the same bytes.
Outputs always travel back as they are. Not for where rows go: that is an exchange's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AS_IS", "Payload"]


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
        return x_TD.contiguous().view(torch.uint8)

    def unpack(self, rows_RB: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        return rows_RB.view(dtype).view(rows_RB.shape[0], dim)


AS_IS: Payload = _AsIs()
