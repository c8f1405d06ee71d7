"""Row bookkeeping that every exchange shares: sort orders, and the fixed-order sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fourlane import _native

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Arrival",
    "Sorted",
    "decoded_counts",
    "join_ranges",
    "sort_by_slot",
    "sort_in_torch",
    "weighted_sum",
    "weighted_sum_in_torch",
]


@dataclass(frozen=True, slots=True)
class Sorted:
    """All (token, k) pairs by physical slot, then token, then k.

    order_R: int64 [tokens * K], the flat (token, k) index of each sorted row.
    rows_R: int64 [tokens * K], its token.
    count_E: int64 [experts], the pairs of each logical expert.
    """

    order_R: Tensor
    rows_R: Tensor
    count_E: Tensor


def sort_by_slot(topk_TK: Tensor, slot_of_E: Tensor, slots: int) -> Sorted:
    """Order (token, k) pairs by the slot of their expert.

    Args:
        topk_TK: logical experts, int64 [tokens, K].
        slot_of_E: the slot of each expert, int64, each in 0 to `slots` - 1.
    """
    if topk_TK.device.type != "cpu":
        return sort_in_torch(topk_TK, slot_of_E)
    order_R, rows_R = np.empty((2, topk_TK.numel()), dtype=np.int64)
    count_E = np.empty(slot_of_E.shape, dtype=np.int64)
    _native.sort_by_slot(topk_TK.contiguous().numpy(), slot_of_E.numpy(), slots, order_R, rows_R, count_E)
    return Sorted(torch.from_numpy(order_R), torch.from_numpy(rows_R), torch.from_numpy(count_E))


def sort_in_torch(topk_TK: Tensor, slot_of_E: Tensor) -> Sorted:
    """Do the same in PyTorch; the reference, and the way on CUDA."""
    topk_R = topk_TK.reshape(-1)
    order_R = torch.argsort(slot_of_E[topk_R], stable=True)
    rows_R = torch.div(order_R, topk_TK.shape[1], rounding_mode="floor")
    return Sorted(order_R, rows_R, torch.bincount(topk_R, minlength=slot_of_E.shape[0]))


def decoded_counts(topk_TK: Tensor, decode_rows: Tensor | None, count_E: Tensor) -> Tensor | None:
    """Return how many decoded tokens each expert gets, int64 [experts]; None if none is decoded.

    Args:
        topk_TK: logical experts, int64 [tokens, K].
        decode_rows: int64, the rows of tokens that are decoded, each once; None: none.
        count_E: the counts of all tokens.
    """
    if decode_rows is None or not decode_rows.numel():
        return None
    if decode_rows.numel() == topk_TK.shape[0]:
        return count_E
    return torch.bincount(topk_TK.index_select(0, decode_rows).reshape(-1), minlength=count_E.shape[0])


def join_ranges(firsts: np.ndarray, counts: np.ndarray, device: torch.device) -> Tensor:
    """Return int64 first, first + 1, ... (as many as counted) of every pair, one after the other.

    Args:
        firsts, counts: int64 [ranges].
        device: of the result.
    """
    joined = torch.from_numpy(_native.join_ranges(firsts, counts))
    return joined if device.type == "cpu" else joined.to(device)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Rows arrive by rank, then slot; a rank computes them by slot, then rank.

    by_slot_R: int64 [rows], which arrived row stands at each place.
    place_R: int64 [rows], the place of each arrived row.
    offset_S1: where each local slot's rows begin, and the end.
    """

    by_slot_R: Tensor
    place_R: Tensor
    offset_S1: list[int]

    @classmethod
    def of(cls, count_GS: np.ndarray, device: torch.device) -> Arrival:
        """Lay out the rows that each rank sends to each local slot, [ranks, slots]; the tensors are on `device`."""
        arrived_X, computed_X = count_GS.reshape(-1), count_GS.T.reshape(-1)
        begin_GS = (arrived_X.cumsum() - arrived_X).reshape(count_GS.shape)
        begin_SG = (computed_X.cumsum() - computed_X).reshape(count_GS.T.shape)
        return cls(
            by_slot_R=join_ranges(begin_GS.T.reshape(-1), computed_X, device),
            place_R=join_ranges(begin_SG.T.reshape(-1), np.ascontiguousarray(arrived_X), device),
            offset_S1=[*begin_SG[:, 0].tolist(), int(arrived_X.sum())],
        )


def weighted_sum(y_RD: Tensor, order_R: Tensor, weights_TK: Tensor) -> Tensor:
    """Undo `sort_by_slot` and sum a token's experts, weighted, in the order of K.

    The order of additions is written out, so the result does not depend on who computed what.

    Args:
        y_RD: [tokens * K, model dim] in sorted order.
        order_R: as returned by `sort_by_slot`.
        weights_TK: [tokens, K].
    """
    if y_RD.device.type != "cpu" or y_RD.dtype != torch.float32:
        return weighted_sum_in_torch(y_RD, order_R, weights_TK)
    x_TD = np.empty((weights_TK.shape[0], y_RD.shape[1]), dtype=np.float32)
    weights_TK = weights_TK.to(torch.float32).contiguous()
    _native.weighted_sum(y_RD.contiguous().numpy(), order_R.numpy(), weights_TK.numpy(), x_TD)
    return torch.from_numpy(x_TD)


def weighted_sum_in_torch(y_RD: Tensor, order_R: Tensor, weights_TK: Tensor) -> Tensor:
    """Do the same in PyTorch; the reference, and the way on CUDA."""
    tokens, top_k = weights_TK.shape
    place_R = torch.empty_like(order_R)
    place_R[order_R] = torch.arange(order_R.shape[0], device=order_R.device)
    y_TKD = y_RD.index_select(0, place_R).view(tokens, top_k, y_RD.shape[1])
    weights_TK1 = weights_TK.to(y_RD.dtype).unsqueeze(-1)
    x_TD = y_TKD[:, 0] * weights_TK1[:, 0]
    for k in range(1, top_k):
        x_TD.addcmul_(y_TKD[:, k], weights_TK1[:, k])
    return x_TD
