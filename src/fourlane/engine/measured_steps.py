"""Steps that exist to be measured, and pages for them to read: of prompts, or of sequences that decode a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fourlane.engine.messages import Sampling
from fourlane.engine.scheduler import Scheduled, Step
from fourlane.engine.sequence import Sequence

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fourlane.engine.model.qwen3_moe import CausalLM

__all__ = ["BLOCK", "decoding_step", "filled_pages", "prompts_step"]

BLOCK = 16
"""Tokens a page."""


def prompts_step(rng: np.random.Generator, vocabulary: int, *, tokens: int, longest: int) -> Step:
    """Return a step of so many tokens of prompts of random ids, none longer than said, each on pages of its own."""
    pages = -(-longest // BLOCK)
    parts = []
    for turn, start in enumerate(range(0, tokens, longest)):
        length = min(longest, tokens - start)
        blocks = list(range(1 + turn * pages, 1 + (turn + 1) * pages))
        parts.append(_part(rng, vocabulary, tokens=length, computed=0, blocks=blocks))
    return Step(parts, more=True)


def decoding_step(rng: np.random.Generator, vocabulary: int, *, sequences: int, context: int) -> Step:
    """Return a step in which sequences that have so many tokens compute another; all read the same pages."""
    full, rest = divmod(context, BLOCK)
    shared = list(range(1, 1 + full))
    own = 1 + full + (rest > 0)
    return Step(
        [_part(rng, vocabulary, tokens=1, computed=context, blocks=[*shared, own + each]) for each in range(sequences)],
        more=True,
    )


def filled_pages(model: CausalLM, blocks: int, device: torch.device) -> Tensor:
    """Return so many pages, filled with small random numbers, [layers, 2 (K, V), blocks, block, kv heads, head dim]."""
    shape = model.kv_geometry(blocks, BLOCK)
    generator = torch.Generator().manual_seed(1)
    pages = torch.randn(shape.layers, 2, blocks, BLOCK, shape.kv_heads, shape.head_dim, generator=generator)
    return (pages * 0.1).to(device, getattr(torch, shape.dtype))


def _part(rng: np.random.Generator, vocabulary: int, *, tokens: int, computed: int, blocks: list[int]) -> Scheduled:
    token_ids = rng.integers(vocabulary, size=computed + tokens).tolist()
    sequence = Sequence(
        0, token_ids, computed or tokens, Sampling(max_tokens=1, temperature=0.0), blocks=blocks, computed=computed
    )
    return Scheduled(sequence, tokens)
