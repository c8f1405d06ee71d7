"""One step's input to the model: which tokens, where they stand, where their KV goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["StepBatch"]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A flat batch of T tokens belonging to S sequences; T and S may be 0.

    Args:
        token_ids_T, position_T: int64 [tokens]; a sequence's tokens are consecutive and ascending.
        slot_T: int64 [tokens], where each token's K and V go: block * block_size + offset.
        query_start_S1: S+1 ints; sequence s owns rows query_start[s] to query_start[s+1].
        context_S: S ints, tokens of the sequence in the cache once this step's are in.
        block_table_SB: int32 [sequences, most blocks], rows padded with 0.
        logit_row_N: int64 [N], the rows whose logits are wanted.
        decode_row_N: int64, the rows of tokens that are decoded, each the newest of its sequence; all
            others are prefilled. Only counted: they are computed alike.
        cut_experts: compute each layer's experts in two halves of the rows, and yield `MIDWAY` between them;
            the same on all ranks.
        on_kv: called as on_kv(layer, k_THd, v_THd) as soon as a layer's K (after RoPE) and V are in
            the cache, before its attention is computed; both are contiguous, never changed later.
    """

    token_ids_T: Tensor
    position_T: Tensor
    slot_T: Tensor
    query_start_S1: list[int]
    context_S: list[int]
    block_table_SB: Tensor
    logit_row_N: Tensor
    decode_row_N: Tensor | None = None
    on_kv: Callable[[int, Tensor, Tensor], None] | None = None
    cut_experts: bool = False
