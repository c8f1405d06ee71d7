"""What a rank computes in its next step: a pure function of its sequences, in order of arrival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Share", "plan_step"]


@dataclass(frozen=True, slots=True)
class Share:
    """Tokens of one sequence to compute in a step; `key` is its index in the list given."""

    key: int
    tokens: int


def plan_step(pending: Sequence[int], *, chunk_tokens: int, max_sequences: int) -> list[Share]:
    """Share a step's token budget out among sequences.

    Sequences that decode (one token pending) come first, so that a long prompt never holds up
    running answers; the rest of the budget goes to prompts in order of arrival, the last of
    which may get only a part of what it needs (a chunk).

    Args:
        pending: tokens known but not yet computed of each sequence, oldest first; 0 takes no part.
        chunk_tokens: most tokens a step computes; decoding sequences are served even beyond it.
        max_sequences: most sequences a step takes.

    Returns:
        Shares in ascending order of key; every share has at least one token.
    """
    decoding = [key for key, tokens in enumerate(pending) if tokens == 1][:max_sequences]
    shares = dict.fromkeys(decoding, 1)
    budget = chunk_tokens - len(decoding)
    for key, tokens in enumerate(pending):
        if tokens <= 1:
            continue
        if budget <= 0 or len(shares) >= max_sequences:
            break
        shares[key] = min(tokens, budget)
        budget -= shares[key]
    return [Share(key, shares[key]) for key in sorted(shares)]
