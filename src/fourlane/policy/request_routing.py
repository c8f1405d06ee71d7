"""Which rank prefills a request, and which decodes it.

A prefill rank is chosen by the tokens it has still to compute, less those its prefix cache saves;
a decode rank by free KV pages and running sequences. Not for the order of the queue in front
(`gateway.router`), nor for batching inside a rank (`policy.scheduling`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Sequence

__all__ = [
    "DecodeCandidate",
    "PrefillCandidate",
    "choose_decode",
    "choose_prefill",
    "choose_unified",
    "pages_for",
    "prefix_tokens",
]

RUNNING_TOKENS = 32
"""Queued prompt tokens that weigh as much as one running sequence when a rank does both phases."""


@dataclass(frozen=True, slots=True)
class PrefillCandidate:
    """A rank that could prefill.

    Args:
        queued_tokens: prompt tokens it was given and has not computed.
        cached_tokens: tokens of this prompt its prefix cache is believed to hold.
        available: whether it may be given work (not dead, starting or paused).
    """

    queued_tokens: int
    cached_tokens: int = 0
    available: bool = True


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
        roomy = self.free_pages - min(self.running, self.total_pages // 4) >= pages
        return self.available and self.running < self.max_running and roomy

    def load(self, pages: int, most_running: int) -> float:
        """Return the load after admission: share of pages in use plus running sequences against the busiest."""
        used = self.total_pages - self.free_pages + pages
        return used / max(1, self.total_pages) + (self.running + 1) / (most_running + 1)


def pages_for(tokens: int, block_size: int) -> int:
    """Return the KV pages that hold `tokens` tokens."""
    return -(-tokens // block_size)


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

    A token saved by the prefix cache is worth a token of queue. A rank whose queue would pass
    `queue_limit` tokens is passed over unless its queue is empty: requests beyond it wait where
    they can still go anywhere. Ranks in `avoid` are taken only if no other will do; ties go to
    the lowest index.
    """

    def admits(candidate: PrefillCandidate) -> bool:
        new = prompt_tokens - candidate.cached_tokens
        fits = candidate.queued_tokens == 0 or candidate.queued_tokens + new <= queue_limit
        return candidate.available and fits

    allowed = [index for index, candidate in enumerate(candidates) if admits(candidate)]
    return _least(allowed, avoid, lambda index: candidates[index].queued_tokens - candidates[index].cached_tokens)


def choose_decode(candidates: Sequence[DecodeCandidate], *, pages: int, avoid: Collection[int] = ()) -> int | None:
    """Return the index of the least loaded rank with room for `pages` pages, or None.

    Ranks in `avoid` are taken only if no other has room; ties go to the lowest index.
    """
    allowed = [index for index, candidate in enumerate(candidates) if candidate.admits(pages)]
    most = max((candidates[index].running for index in allowed), default=0)
    return _least(allowed, avoid, lambda index: candidates[index].load(pages, most))


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
    allowed = [index for index, candidate in enumerate(decode) if candidate.admits(pages)]

    def work(index: int) -> float:
        face = prefill[index]
        return face.queued_tokens - face.cached_tokens + RUNNING_TOKENS * decode[index].running

    return _least(allowed, avoid, work)


def _least(allowed: Sequence[int], avoid: Collection[int], cost: Callable[[int], float]) -> int | None:
    """Return the allowed index of least cost, one not in `avoid` if there is any; the lowest of equals."""
    preferred = [index for index in allowed if index not in avoid] or allowed
    return min(preferred, key=lambda index: (cost(index), index), default=None)
