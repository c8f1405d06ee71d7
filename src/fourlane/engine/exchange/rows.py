"""Row bookkeeping that every exchange shares: slots, sort orders, the fixed-order sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from fourlane.policy.placement import Placement

__all__ = ["SlotTables", "sort_by_slot", "weighted_sum"]


def sort_by_slot(topk_TK: Tensor, slot_of_E: Tensor) -> tuple[Tensor, Tensor]:
    """Order all (token, k) pairs by physical slot, then token, then k.

    Returns:
        order_R: int64 [T*K], the flat (token, k) index of each sorted row;
        rows_R: int64 [T*K], its token.
    """
    slot_R = slot_of_E[topk_TK.reshape(-1)]
    order_R = torch.argsort(slot_R, stable=True)
    rows_R = torch.div(order_R, topk_TK.shape[1], rounding_mode="floor")
    return order_R, rows_R


def weighted_sum(y_RD: Tensor, order_R: Tensor, weights_TK: Tensor) -> Tensor:
    """Undo `sort_by_slot` and sum a token's experts, weighted, in the order of K.

    The order of additions is written out, so the result does not depend on who computed what.

    Args:
        y_RD: [T*K, model dim] in sorted order.
        order_R: as returned by `sort_by_slot`.
        weights_TK: [tokens, K].
    """
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
