"""Which rank prefills a request, and which decodes it.

A prefill rank is chosen by the tokens it has still to compute and the step of its group it would
wait for, less those its prefix cache saves;
a decode rank by free KV pages and running sequences. Choices are made over arrays of ranks
(`PrefillCandidates`, `DecodeCandidates`), so that they are as quick among hundreds of them; lists of
single candidates are turned into arrays. Not for the order of the queue in front
(`gateway.router`), nor for batching inside a rank (`policy.scheduling`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Sequence

    from numpy.typing import NDArray

__all__ = [
    "DecodeCandidate",
    "DecodeCandidates",
    "PrefillCandidate",
    "PrefillCandidates",
    "choose_decode",
    "choose_decode_among",
    "choose_prefill",
    "choose_prefill_among",
    "choose_unified",
    "group_steps",
    "pages_for",
    "pages_wanted",
    "prefix_tokens",
    "queue_limit",
    "retry_delay",
]

RUNNING_TOKENS = 32
"""Queued prompt tokens that weigh as much as one running sequence when a rank does both phases."""

QUEUE_CHUNKS = 8
"""Prefill chunks a rank may have queued before further prompts wait in the gateway."""

GROWTH_TOKENS = 64
"""Room to grow asked for after a first eviction; doubles with each further one."""

MAX_RETRY_DELAY_S = 2.0


@dataclass(frozen=True, slots=True)
class PrefillCandidate:
    """A rank that could prefill.

    Args:
        queued_tokens: prompt tokens it was given and has not computed.
        cached_tokens: tokens of this prompt its prefix cache is believed to hold.
        available: whether it may be given work (not dead, starting or paused).
        step_tokens: what its group computes first, by `group_steps`: ranks of a group step together.
    """

    queued_tokens: int
    cached_tokens: int = 0
    available: bool = True
    step_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DecodeCandidate:
    """A rank that could decode.

    Args:
        free_pages: KV pages no live sequence owns.
        total_pages: all KV pages of the rank.
        running: sequences it owns.
        max_running: most sequences it may own.
        available: whether it may be given work.
    """

    free_pages: int
    total_pages: int
    running: int
    max_running: int
    available: bool = True

    def admits(self, pages: int) -> bool:
        """Tell whether a sequence of `pages` fits, leaving each running sequence a page to grow into."""
        return bool(DecodeCandidates.of([self]).admits(pages)[0])


@dataclass(frozen=True, slots=True)
class PrefillCandidates:
    """Ranks that could prefill, as arrays [ranks] of what `PrefillCandidate` has."""

    queued_G: NDArray[np.int64]
    cached_G: NDArray[np.int64]
    available_G: NDArray[np.bool_]
    step_G: NDArray[np.int64]

    @classmethod
    def of(cls, candidates: Sequence[PrefillCandidate]) -> PrefillCandidates:
        """Return candidates as arrays."""
        return cls(
            np.array([candidate.queued_tokens for candidate in candidates], np.int64),
            np.array([candidate.cached_tokens for candidate in candidates], np.int64),
            np.array([candidate.available for candidate in candidates], np.bool_),
            np.array([candidate.step_tokens for candidate in candidates], np.int64),
        )

    def admits(self, prompt_tokens: int, limit: int) -> NDArray[np.bool_]:
        """Tell which may be given a prompt: queues would stay within `limit` tokens, or are empty."""
        fits_G = (self.queued_G == 0) | (self.queued_G + (prompt_tokens - self.cached_G) <= limit)
        return self.available_G & fits_G


@dataclass(frozen=True, slots=True)
class DecodeCandidates:
    """Ranks that could decode, as arrays [ranks] of what `DecodeCandidate` has."""

    free_pages_G: NDArray[np.int64]
    total_pages_G: NDArray[np.int64]
    running_G: NDArray[np.int64]
    max_running_G: NDArray[np.int64]
    available_G: NDArray[np.bool_]

    @classmethod
    def of(cls, candidates: Sequence[DecodeCandidate]) -> DecodeCandidates:
        """Return candidates as arrays."""
        return cls(
            np.array([candidate.free_pages for candidate in candidates], np.int64),
            np.array([candidate.total_pages for candidate in candidates], np.int64),
            np.array([candidate.running for candidate in candidates], np.int64),
            np.array([candidate.max_running for candidate in candidates], np.int64),
            np.array([candidate.available for candidate in candidates], np.bool_),
        )

    def admits(self, pages: int) -> NDArray[np.bool_]:
        """Tell which have room for a sequence of `pages`, leaving each running sequence a page to grow into."""
        roomy_G = self.free_pages_G - np.minimum(self.running_G, self.total_pages_G // 4) >= pages
        return self.available_G & (self.running_G < self.max_running_G) & roomy_G

    def load(self, pages: int, most_running: int) -> NDArray[np.float64]:
        """Return loads after admission: share of pages in use plus running sequences against the busiest."""
        used_G = self.total_pages_G - self.free_pages_G + pages
        return used_G / np.maximum(1, self.total_pages_G) + (self.running_G + 1) / (most_running + 1)


def pages_for(tokens: int, block_size: int) -> int:
    """Return the KV pages that hold `tokens` tokens."""
    return -(-tokens // block_size)


def pages_wanted(tokens: int, left: int, *, evictions: int, largest: int, block_size: int) -> int:
    """Return the pages to ask a decode rank for: the tokens there are and one more, and after an eviction room to grow.

    Args:
        tokens: prompt, and what was answered before.
        left: tokens it may still be answered.
        evictions: how often it was evicted.
        largest: pages of the largest rank.
        block_size: tokens a page.
    """
    growth = min(max(1, left), GROWTH_TOKENS << min(evictions - 1, 20)) if evictions else 1
    return min(pages_for(tokens + growth, block_size), max(largest - 1, pages_for(tokens + 1, block_size)))


def queue_limit(chunk_tokens: int) -> int:
    """Return the tokens a prefill rank may have queued before further prompts wait in the gateway."""
    return QUEUE_CHUNKS * chunk_tokens


def group_steps(queued_G: NDArray[np.int64], *, group_ranks: int, chunk_tokens: int) -> NDArray[np.int64]:
    """Return for each rank the tokens of the step its group is at, or begins next: the fullest rank's, a chunk at most.

    Whoever joins a group at work waits for that step. It is the same for all ranks of a group, so it only tells groups
    apart; a rank that steps alone waits for nobody.

    Args:
        queued_G: prompt tokens of each rank, groups one after the other.
        group_ranks: ranks of a group.
        chunk_tokens: most tokens of a rank in a step.
    """
    if group_ranks == 1:
        return np.zeros_like(queued_G)
    fullest = np.minimum(queued_G.reshape(-1, group_ranks).max(axis=1), chunk_tokens)
    return np.repeat(fullest, group_ranks)


def retry_delay(retries: int, first_s: float) -> float:
    """Return how long to wait before retry number `retries`, in seconds: twice as long each time."""
    return min(MAX_RETRY_DELAY_S, first_s * 2 ** (retries - 1))


def prefix_tokens(hashes: Sequence[bytes], seen: Container[bytes], *, block_size: int, prompt_tokens: int) -> int:
    """Return how many leading tokens of a prompt a rank has seen, by the names `prefix.prefix_hashes` gives.

    The last token of a prompt is always computed, so the answer is less than `prompt_tokens`.
    """
    blocks = next((block for block, name in enumerate(hashes) if name not in seen), len(hashes))
    return max(0, min(blocks * block_size, prompt_tokens - 1))


def choose_prefill(
    candidates: Sequence[PrefillCandidate],
    *,
    prompt_tokens: int,
    queue_limit: int,
    avoid: Collection[int] = (),
) -> int | None:
    """Return the index of the rank that would have computed this prompt soonest, or None.

    A token saved by the prefix cache is worth a token of queue, and so is one less of the step its
    group has before it. A rank whose queue would pass
    `queue_limit` tokens is passed over unless its queue is empty: requests beyond it wait where
    they can still go anywhere. Ranks in `avoid` are taken only if no other will do; ties go to
    the lowest index.
    """
    return choose_prefill_among(
        PrefillCandidates.of(candidates), prompt_tokens=prompt_tokens, queue_limit=queue_limit, avoid=avoid
    )


def choose_prefill_among(
    candidates: PrefillCandidates, *, prompt_tokens: int, queue_limit: int, avoid: Collection[int] = ()
) -> int | None:
    """Return what `choose_prefill` does, of ranks in arrays."""
    allowed_G = candidates.admits(prompt_tokens, queue_limit)
    return _least(allowed_G, candidates.queued_G + candidates.step_G - candidates.cached_G, avoid)


def choose_decode(candidates: Sequence[DecodeCandidate], *, pages: int, avoid: Collection[int] = ()) -> int | None:
    """Return the index of the least loaded rank with room for `pages` pages, or None.

    Ranks in `avoid` are taken only if no other has room; ties go to the lowest index.
    """
    return choose_decode_among(DecodeCandidates.of(candidates), pages=pages, avoid=avoid)


def choose_decode_among(candidates: DecodeCandidates, *, pages: int, avoid: Collection[int] = ()) -> int | None:
    """Return what `choose_decode` does, of ranks in arrays."""
    allowed_G = candidates.admits(pages)
    most = int(candidates.running_G.max(where=allowed_G, initial=0))
    return _least(allowed_G, candidates.load(pages, most), avoid)


def choose_unified(
    prefill: Sequence[PrefillCandidate],
    decode: Sequence[DecodeCandidate],
    *,
    pages: int,
    avoid: Collection[int] = (),
) -> int | None:
    """Return the index of the rank, doing both phases, with room and the least work, or None.

    Args:
        prefill, decode: the two faces of the same ranks, in the same order.
    """
    faces, ranks = PrefillCandidates.of(prefill), DecodeCandidates.of(decode)
    work_G = faces.queued_G - faces.cached_G + RUNNING_TOKENS * ranks.running_G
    return _least(ranks.admits(pages), work_G, avoid)


def _least(allowed_G: NDArray[np.bool_], cost_G: NDArray[np.generic], avoid: Collection[int]) -> int | None:
    """Return the allowed index of least cost, one not in `avoid` if there is any; the lowest of equals."""
    if avoid:
        preferred_G = allowed_G.copy()
        preferred_G[[index for index in avoid if index < len(preferred_G)]] = False
        if preferred_G.any():
            allowed_G = preferred_G
    if not allowed_G.any():
        return None
    return int(np.where(allowed_G, cost_G, np.inf).argmin())
