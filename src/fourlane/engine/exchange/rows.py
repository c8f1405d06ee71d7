"""Row bookkeeping that every exchange shares: slots, sort orders, the fixed-order sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fourlane import _native

if TYPE_CHECKING:
    from torch import Tensor

    from fourlane.policy.placement import Placement

__all__ = ["SlotTables", "Sorted", "sort_by_slot", "sort_in_torch", "weighted_sum", "weighted_sum_in_torch"]


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


class SlotTables:
    """A placement as the tensors and arrays an exchange looks things up in; made once, kept."""

    def __init__(self, placement: Placement, *, rank: int) -> None:
        if placement.replicated:
            raise ValueError("this exchange routes each expert to one slot; got a placement with replicas")
        self._placement = placement
        self._rank = rank
        self._slot_of_LE: dict[torch.device, Tensor] = {}

    def of(self, placement: Placement) -> SlotTables:
        """Return the tables for a placement: these, unless it is another one."""
        return self if placement is self._placement else SlotTables(placement, rank=self._rank)

    def slot_of(self, layer: int, device: torch.device) -> Tensor:
        """Return int64 [experts], the slot of each expert in a layer."""
        table = self._slot_of_LE.get(device)
        if table is None:
            table = torch.from_numpy(self._placement.first_slot_of_LE).to(device)
            self._slot_of_LE[device] = table
        return table[layer]

    def sort(self, layer: int, topk_TK: Tensor) -> Sorted:
        """Order a layer's (token, k) pairs by slot; see `sort_by_slot`."""
        slots = self._placement.ranks * self._placement.slots_per_rank
        return sort_by_slot(topk_TK, self.slot_of(layer, topk_TK.device), slots)

    def experts_in_slots(self, layer: int) -> np.ndarray:
        """Return the experts of this rank's slots, [slots_per_rank], -1 where empty."""
        return self._placement.experts_of(self._rank, layer)

    def rows_per_slot(self, layer: int, count_GE: np.ndarray, *, by_source: bool = False) -> np.ndarray:
        """Return rows each local slot receives, [slots_per_rank], or [ranks, slots_per_rank] by source."""
        experts = self.experts_in_slots(layer)
        count_GS = np.where(experts >= 0, count_GE[:, np.maximum(experts, 0)], 0)
        return count_GS if by_source else count_GS.sum(axis=0)

    def rows_per_rank(self, layer: int, count_E: np.ndarray) -> np.ndarray:
        """Return rows that go to each rank, [..., ranks], for counts a logical expert [..., experts]."""
        rank_E = self._placement.first_slot_of_LE[layer] // self._placement.slots_per_rank
        totals = np.zeros((*count_E.shape[:-1], self._placement.ranks), dtype=np.int64)
        for rank in range(self._placement.ranks):
            totals[..., rank] = count_E[..., rank_E == rank].sum(axis=-1)
        return totals
