"""The simulated gateway: its queue, its books of ranks, and which ranks a request goes to.

The books are those of `gateway.ledger` and `gateway.ranks`, the decisions `policy.request_routing`'s, over arrays of
all ranks. Not for what ranks do (`prefill_unit`, `decode_unit`).
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from fourlane.policy.request_routing import (
    DecodeCandidates,
    PrefillCandidates,
    choose_decode_among,
    choose_prefill_among,
    group_steps,
    pages_for,
    pages_wanted,
    queue_limit,
)
from fourlane.twin.serving.seen_prefixes import SeenPrefixes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.serving.prompt_names import PromptNames
    from fourlane.twin.serving.sequence import Sequence

__all__ = ["Gateway"]


class Gateway:
    """Requests that wait for room, and what every rank is counted with.

    Args:
        assembly: whose ranks it serves.
        names: of prompts' pages.
        send: called with each request that has been given ranks.
        catch_up: called before decode ranks are compared: pages that have grown since must be in the books.
    """

    def __init__(
        self,
        assembly: Assembly,
        names: PromptNames,
        *,
        send: Callable[[Sequence], None],
        catch_up: Callable[[], None],
    ) -> None:
        prefill, decode = assembly.prefill, assembly.decode
        self.block_size = assembly.twin.block_size
        self.prefill_ok_G = np.ones(prefill.ranks, np.bool_)
        self.decode_ok_G = np.ones(decode.ranks, np.bool_)
        self.queued_G = np.zeros(prefill.ranks, np.int64)
        self.pages_G = np.zeros(decode.ranks, np.int64)
        self.owned_G = np.zeros(decode.ranks, np.int64)
        self.seen = SeenPrefixes(prefill.ranks, prefill.memory.kv_blocks, names)
        self._largest = decode.memory.kv_blocks
        self._total_pages_G = np.full(decode.ranks, self._largest, np.int64)
        self._max_running_G = np.full(decode.ranks, decode.pool.max_running, np.int64)
        self._chunk_tokens, self._group_ranks = prefill.pool.chunk_tokens, prefill.pool.ranks
        self._queue_limit = queue_limit(self._chunk_tokens)
        self._none_cached_G = None if prefill.pool.prefix_cache else np.zeros(prefill.ranks, np.int64)
        self._send, self._catch_up = send, catch_up
        self._line: list[tuple[int, Sequence]] = []

    @property
    def token_limit(self) -> int:
        """Return the most tokens, prompt and answer, of a sequence that every rank can hold: all pages but one."""
        return (min(self._largest, self.seen.pages) - 1) * self.block_size

    def queue(self, sequence: Sequence) -> None:
        """Put a request in the line; one that comes back stands where its age puts it."""
        sequence.state = "waiting"
        heappush(self._line, (sequence.index, sequence))

    def pump(self, now: float) -> None:
        """Send off requests, oldest first, until one finds no room. None overtakes."""
        line = self._line
        while line:
            sequence = line[0][1]
            if sequence.state == "waiting":
                if not self._place(sequence):
                    return
                if sequence.attempt == 1:
                    sequence.placed_s = now
                self._send(sequence)
            heappop(line)

    def _place(self, sequence: Sequence) -> bool:
        """Enter an attempt into the books; False if no ranks have room."""
        tokens = sequence.request.prompt_tokens + sequence.emitted
        pages = pages_wanted(
            tokens,
            sequence.output_tokens - sequence.emitted,
            evictions=sequence.evictions,
            largest=self._largest,
            block_size=self.block_size,
        )
        self._catch_up()
        decode = choose_decode_among(
            DecodeCandidates(
                self._total_pages_G - self.pages_G,
                self._total_pages_G,
                self.owned_G,
                self._max_running_G,
                self.decode_ok_G,
            ),
            pages=pages,
            avoid=sequence.avoid_decode,
        )
        if decode is None:
            return False
        cached_G = self._none_cached_G if self._none_cached_G is not None else self.seen.tokens(sequence.runs, tokens)
        prefill = choose_prefill_among(
            PrefillCandidates(self.queued_G, cached_G, self.prefill_ok_G, self._group_steps()),
            prompt_tokens=tokens,
            queue_limit=self._queue_limit,
            avoid=sequence.avoid_prefill,
        )
        if prefill is None:
            return False
        sequence.attempt += 1
        sequence.state = "reserving"
        sequence.tokens, sequence.asked = tokens, pages
        sequence.cost = tokens - int(cached_G[prefill])
        sequence.prefill_rank, sequence.decode_rank = prefill, decode
        self.queued_G[prefill] += sequence.cost
        self.owned_G[decode] += 1
        self.pages_G[decode] += pages
        if self._none_cached_G is None:
            self.seen.remember(prefill, sequence.runs)
        return True

    def _group_steps(self) -> NDArray[np.int64]:
        return group_steps(self.queued_G, group_ranks=self._group_ranks, chunk_tokens=self._chunk_tokens)

    def computed(self, sequence: Sequence) -> None:
        """Note that a prompt is computed: it is no longer in its prefill rank's queue."""
        self.queued_G[sequence.prefill_rank] -= sequence.cost
        sequence.cost = 0

    def grow(self, sequence: Sequence, tokens: int) -> None:
        """Count the pages that so many tokens take."""
        pages = pages_for(tokens, self.block_size)
        if pages > sequence.asked:
            self.pages_G[sequence.decode_rank] += pages - sequence.asked
            sequence.asked = pages

    def release(self, sequence: Sequence) -> None:
        """Strike out an attempt."""
        self.computed(sequence)
        self.owned_G[sequence.decode_rank] -= 1
        self.pages_G[sequence.decode_rank] -= sequence.asked
        sequence.asked = 0
