"""Rows of tokens that a rank has received once, though it may hold several of their experts, or few.

What normal kernels of GPU libraries hand over: every token once a rank, with its K slots, of which
those elsewhere are -1. Multiplied for the slots here, and added up again, in the order of K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fourlane.engine.exchange.installed import has_triton

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Held", "fold_in_torch", "fold_rows", "pick_rows", "sort_held"]


@dataclass(frozen=True, slots=True)
class Held:
    """Which (token, k) pairs are here, by slot, then token, then k.

    rows_R: int64 [rows], the received token of each row.
    place_NK: int64 [received tokens, K], where each pair stands among the rows; -1: it is not here.
    """

    rows_R: Tensor
    place_NK: Tensor


def sort_held(held_NK: Tensor, slots: int, rows: int) -> Held:
    """Order the pairs that are here by slot.

    Args:
        held_NK: the local slot of each pair, -1 if it is elsewhere.
        slots: held here.
        rows: pairs that are here.
    """
    held_X = held_NK.reshape(-1)
    order_R = torch.argsort(torch.where(held_X < 0, slots, held_X), stable=True)[:rows]
    place_X = torch.full_like(held_X, -1, dtype=torch.int64)
    place_X[order_R] = torch.arange(rows, device=held_X.device)
    return Held(torch.div(order_R, held_NK.shape[1], rounding_mode="floor"), place_X.view(held_NK.shape))


def pick_rows(x_TD: Tensor, rows_R: Tensor) -> Tensor:
    """Return the rows named, in that order, [rows, ...]; rows of any width."""
    if x_TD.is_cuda and x_TD.dim() == 2 and has_triton():
        from fourlane.engine.exchange.triton_kernels import permute

        return permute(x_TD, rows_R)
    return x_TD.index_select(0, rows_R)


def fold_rows(y_RD: Tensor, place_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """Return the weighted sum of each received token's rows, [received tokens, dim], in the order of K.

    Added in float32 and rounded once.
    """
    if y_RD.is_cuda and has_triton():
        from fourlane.engine.exchange.triton_kernels import fold

        return fold(y_RD, place_NK, weights_NK)
    return fold_in_torch(y_RD, place_NK, weights_NK)


def fold_in_torch(y_RD: Tensor, place_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """Do the same in PyTorch; the reference."""
    sum_ND = torch.zeros((place_NK.shape[0], y_RD.shape[1]), dtype=torch.float32, device=y_RD.device)
    if not y_RD.shape[0]:
        return sum_ND.to(y_RD.dtype)
    for place_N, weight_N in zip(place_NK.unbind(1), weights_NK.float().unbind(1), strict=True):
        term_ND = y_RD.index_select(0, place_N.clamp(min=0)).float() * weight_N.unsqueeze(1)
        sum_ND += torch.where((place_N >= 0).unsqueeze(1), term_ND, 0.0)
    return sum_ND.to(y_RD.dtype)
