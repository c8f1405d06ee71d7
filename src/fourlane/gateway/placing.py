"""Find ranks for a choice: how many pages it needs, who could serve it, who does best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.policy.prefix import prefix_hashes
from fourlane.policy.request_routing import (
    choose_decode,
    choose_prefill,
    choose_unified,
    group_steps,
    pages_wanted,
    queue_limit,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fourlane.gateway.generation import Choice
    from fourlane.gateway.ranks import RankView

__all__ = ["Placing", "place"]


@dataclass(frozen=True, slots=True)
class Placing:
    """Where an attempt goes and what it is counted with there."""

    decode: RankView
    prefill: RankView
    pages: int
    prompt_cost: int


def place(choice: Choice, ranks: Collection[RankView], *, block_size: int, now: float) -> Placing | None:
    """Return where a choice goes, or None if no rank (or pair of ranks) has room for it now."""
    tokens = len(choice.spec.token_ids) + len(choice.tokens)
    if choice.hashed_tokens != tokens:
        choice.hashes = prefix_hashes([*choice.spec.token_ids, *choice.tokens], block_size)
        choice.hashed_tokens = tokens
    unified = [rank for rank in ranks if rank.role == "unified"]
    if unified:
        return _place_unified(choice, unified, tokens, block_size=block_size, now=now)
    return _place_pair(choice, ranks, tokens, block_size=block_size, now=now)


def _place_pair(
    choice: Choice, ranks: Collection[RankView], tokens: int, *, block_size: int, now: float
) -> Placing | None:
    decoders = [rank for rank in ranks if rank.role == "decode"]
    pages = _pages_wanted(choice, decoders, block_size)
    at = choose_decode([rank.decode_face(now) for rank in decoders], pages=pages, avoid=_avoided(choice, decoders))
    if at is None:
        return None
    prefillers = [rank for rank in ranks if rank.role == "prefill"]
    faces = [
        rank.prefill_face(choice.hashes, tokens, now, step_tokens=step)
        for rank, step in zip(prefillers, _group_steps(prefillers), strict=True)
    ]
    by = choose_prefill(
        faces,
        prompt_tokens=tokens,
        queue_limit=queue_limit(prefillers[0].pool.chunk_tokens),
        avoid=_avoided(choice, prefillers),
    )
    if by is None:
        return None
    return Placing(decoders[at], prefillers[by], pages, tokens - faces[by].cached_tokens)


def _place_unified(
    choice: Choice, ranks: Sequence[RankView], tokens: int, *, block_size: int, now: float
) -> Placing | None:
    pages = _pages_wanted(choice, ranks, block_size)
    faces = [rank.prefill_face(choice.hashes, tokens, now) for rank in ranks]
    at = choose_unified(faces, [rank.decode_face(now) for rank in ranks], pages=pages, avoid=_avoided(choice, ranks))
    if at is None:
        return None
    return Placing(ranks[at], ranks[at], pages, tokens - faces[at].cached_tokens)


def _pages_wanted(choice: Choice, ranks: Sequence[RankView], block_size: int) -> int:
    return pages_wanted(
        len(choice.spec.token_ids) + len(choice.tokens),
        choice.spec.sampling.max_tokens - len(choice.tokens),
        evictions=choice.evictions,
        largest=max((rank.total_pages for rank in ranks), default=0),
        block_size=block_size,
    )


def _group_steps(ranks: Sequence[RankView]) -> list[int]:
    pool = ranks[0].pool
    queued_G = np.array([rank.queued_tokens for rank in ranks], np.int64)
    group_ranks = pool.expert_parallel or len(ranks)
    return group_steps(queued_G, group_ranks=group_ranks, chunk_tokens=pool.chunk_tokens).tolist()


def _avoided(choice: Choice, ranks: Sequence[RankView]) -> set[int]:
    return {index for index, rank in enumerate(ranks) if rank.name in choice.avoid}
