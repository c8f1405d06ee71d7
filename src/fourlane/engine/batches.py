"""Turn a scheduled step into the model's input tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from fourlane.engine.batch import StepBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fourlane.engine.scheduler import Step

__all__ = ["build_batch"]


def build_batch(
    step: Step,
    *,
    block_size: int,
    device: torch.device,
    on_kv: Callable[[int, Tensor, Tensor], None] | None = None,
    cut_experts: bool = False,
) -> StepBatch:
    """Lay the step's sequences out one after the other; see `StepBatch` for the shapes, and what else there is."""
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    starts, contexts, rows, decoded = [0], list[int](), list[int](), list[int]()
    pages = [np.asarray(part.sequence.blocks, dtype=np.int64) for part in step.parts]
    for part, blocks in zip(step.parts, pages, strict=True):
        sequence = part.sequence
        end = part.first + part.tokens
        position = np.arange(part.first, end)
        tokens.append(np.asarray(sequence.token_ids[part.first : end], dtype=np.int64))
        positions.append(position)
        slots.append(blocks[position // block_size] * block_size + position % block_size)
        starts.append(starts[-1] + part.tokens)
        contexts.append(end)
        if part.samples:
            rows.append(starts[-1] - 1)
        if part.decodes:
            decoded.append(starts[-1] - 1)
    table_SB = np.zeros((len(pages), max((len(blocks) for blocks in pages), default=0)), dtype=np.int32)
    for row, blocks in zip(table_SB, pages, strict=True):
        row[: len(blocks)] = blocks
    return StepBatch(
        token_ids_T=_column(tokens, device),
        position_T=_column(positions, device),
        slot_T=_column(slots, device),
        query_start_S1=starts,
        context_S=contexts,
        block_table_SB=torch.from_numpy(table_SB).to(device),
        logit_row_N=torch.tensor(rows, dtype=torch.int64, device=device),
        decode_row_N=torch.tensor(decoded, dtype=torch.int64, device=device),
        on_kv=on_kv,
        cut_experts=cut_experts,
    )


def _column(pieces: list[np.ndarray], device: torch.device) -> Tensor:
    values = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
    return torch.from_numpy(values).to(device)
