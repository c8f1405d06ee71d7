"""Continuous batching on one rank: who waits, who runs, whose pages, what the next step computes.

`schedule()` decides and `commit()` applies; between them nothing here changes, so a step that an
exchange could not complete is simply run again. No tensors: `batches` builds them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.engine.sequence import FinishReason, Sequence, finish_reason
from fourlane.policy.request_routing import pages_for
from fourlane.policy.scheduling import plan_step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.engine.kv_cache import BlockPool

__all__ = ["Limits", "Scheduled", "Scheduler", "Step"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a rank's steps and sequences.

    Units:
        chunk_tokens: tokens a step; max_length: tokens a sequence; block_size: tokens a page.
    """

    chunk_tokens: int
    max_running: int
    max_length: int
    block_size: int
    eos_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A sequence's part in a step: its next `tokens` tokens; `samples` if they reach its end.

    Of a part cut in two, one for each micro-batch, the second half has `skip` tokens of the same step
    before its own, and the first `left` tokens after them.
    """

    sequence: Sequence
    tokens: int
    skip: int = 0
    left: int = 0

    @property
    def first(self) -> int:
        """Return the position of the part's first token."""
        return self.sequence.computed + self.skip

    @property
    def samples(self) -> bool:
        """Tell whether this part ends with the sequence's last known token."""
        return self.skip + self.tokens == self.sequence.pending

    @property
    def decodes(self) -> bool:
        """Tell whether this part is one token after the client's prompt, not a piece of a prompt."""
        whole = not (self.skip or self.left)
        return whole and self.tokens == 1 and self.sequence.computed >= self.sequence.prompt_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What to compute next. `more`: this rank will have work after it, as far as one can know."""

    parts: list[Scheduled]
    more: bool

    @property
    def sampling(self) -> list[Sequence]:
        """Return the sequences that get a token from this step, in batch order."""
        return [part.sequence for part in self.parts if part.samples]


class Scheduler:
    """The sequences of one rank.

    A sequence is *waiting* (no pages), *reserved* (pages held for KV on its way), *running*, or
    *leaving* (computed, pages held until the receiver has its KV).
    """

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.reserved: dict[int, Sequence] = {}
        self.leaving: dict[int, Sequence] = {}
        self.evictions = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0

    @property
    def queued_tokens(self) -> int:
        """Return the prompt tokens still to compute."""
        running = sum(sequence.pending for sequence in self.running if sequence.pending > 1)
        return running + sum(sequence.pending for sequence in self.waiting)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence whose prompt is to be computed here."""
        self.waiting.append(sequence)

    def reserve(self, sequence: Sequence) -> bool:
        """Hold pages for a sequence whose KV will arrive; False if there are too few.

        One page a running sequence (at most a twentieth of the pool) is left for growth.
        """
        headroom = min(len(self.running), self.pool.total_blocks // 20)
        needed = pages_for(len(sequence.token_ids), self.limits.block_size)
        if self.pool.free_blocks < needed + headroom:
            return False
        sequence.blocks = self.pool.take(needed) or []
        self.reserved[sequence.sequence_id] = sequence
        return True

    def start(self, sequence_id: int, first_token_id: int) -> None:
        """Let a reserved sequence run: its KV is there and its first token known."""
        sequence = self.reserved.pop(sequence_id)
        sequence.computed = len(sequence.token_ids)
        sequence.token_ids.append(first_token_id)
        self.running.append(sequence)

    def unreserve(self, sequence_id: int) -> Sequence | None:
        """Forget a reservation, keeping its pages held: the caller releases them when it is safe."""
        return self.reserved.pop(sequence_id, None)

    def release(self, sequence: Sequence) -> None:
        """Give a sequence's pages back."""
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def left(self, sequence_id: int) -> Sequence | None:
        """Free a leaving sequence's pages: its KV has arrived, or nobody wants it any more."""
        sequence = self.leaving.pop(sequence_id, None)
        if sequence is not None:
            self.release(sequence)
        return sequence

    def cancel(self, sequence_id: int) -> Sequence | None:
        """Remove a waiting or running sequence and free its pages; None if there is none."""
        for queue in (self.waiting, self.running):
            for sequence in queue:
                if sequence.sequence_id == sequence_id:
                    queue.remove(sequence)
                    self.release(sequence)
                    return sequence
        return None

    def everyone(self) -> list[int]:
        """Return the ids of all sequences here, whatever their state."""
        queued = [sequence.sequence_id for sequence in (*self.waiting, *self.running)]
        return [*queued, *self.reserved, *self.leaving]

    def has_work(self) -> bool:
        """Tell whether a step would compute something."""
        return any(sequence.pending for sequence in self.running) or self._can_admit()

    def admit(self) -> list[Sequence]:
        """Move waiting sequences to running while pages last; return those that moved."""
        admitted = []
        while self._can_admit():
            sequence = self.waiting.popleft()
            self._give_pages(sequence)
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def make_room(self) -> list[Sequence]:
        """Give every running sequence the page its next token needs; return those evicted for it.

        The youngest goes first: the oldest always gets on, so the rank never stands still.
        """
        evicted: list[Sequence] = []
        for sequence in list(self.running):
            while sequence in self.running and self._lacks_page(sequence):
                block = self.pool.take(1)
                if block is not None:
                    sequence.blocks += block
                    continue
                youngest = self.running.pop()
                self.release(youngest)
                self.evictions += 1
                evicted.append(youngest)
        return evicted

    def schedule(self) -> Step:
        """Decide the next step; it may be empty."""
        shares = plan_step(
            [sequence.pending for sequence in self.running],
            chunk_tokens=self.limits.chunk_tokens,
            max_sequences=self.limits.max_running,
        )
        parts = [Scheduled(self.running[share.key], share.tokens) for share in shares]
        return Step(parts, more=len(parts) < len(self.running) or any(self._goes_on(part) for part in parts))

    def expected_after(self, step: Step) -> tuple[int, int]:
        """Return the prefill and decode tokens of the step after one, as far as one can know without running it."""
        decode = sum(part.samples and part.sequence.target is None for part in step.parts)
        decoding = sum(part.decodes for part in step.parts)
        prefilling = sum(part.tokens for part in step.parts) - decoding
        left = max(0, self.queued_tokens - prefilling)
        return min(left, max(0, self.limits.chunk_tokens - decode)), decode

    def commit(self, step: Step, token_ids: Iterable[int]) -> list[tuple[Sequence, int, FinishReason | None]]:
        """Apply a step that has run.

        Args:
            step: what ran.
            token_ids: the tokens sampled for `step.sampling`, in order.

        Returns:
            For each of them (sequence, token, finish reason); finished sequences have given their
            pages back, those bound for a decode rank are leaving.
        """
        tokens = iter(token_ids)
        results: list[tuple[Sequence, int, FinishReason | None]] = []
        for part in step.parts:
            sequence, samples = part.sequence, part.samples
            if not part.decodes:
                self.prompt_tokens += part.tokens
            sequence.computed += part.tokens
            self._name_pages(sequence)
            if not samples:
                continue
            token = next(tokens)
            sequence.token_ids.append(token)
            self.output_tokens += 1
            reason = finish_reason(sequence, token, eos_ids=self.limits.eos_ids, max_length=self.limits.max_length)
            self._move_on(sequence, finished=reason is not None)
            results.append((sequence, token, reason))
        return results

    def _move_on(self, sequence: Sequence, *, finished: bool) -> None:
        if sequence.target is not None:
            self.running.remove(sequence)
            self.leaving[sequence.sequence_id] = sequence
        elif finished:
            self.running.remove(sequence)
            self.release(sequence)

    def _goes_on(self, part: Scheduled) -> bool:
        sequence = part.sequence
        if not part.samples:
            return True
        return sequence.target is None and sequence.output_tokens + 1 < sequence.sampling.max_tokens

    def _can_admit(self) -> bool:
        if not self.waiting or len(self.running) >= self.limits.max_running:
            return False
        needed = pages_for(len(self.waiting[0].token_ids), self.limits.block_size)
        headroom = min(len(self.running), self.pool.total_blocks // 20)
        return self.pool.free_blocks >= needed + headroom

    def _give_pages(self, sequence: Sequence) -> None:
        block_size = self.limits.block_size
        whole_pages = (len(sequence.token_ids) - 1) // block_size  # one token at least is computed
        names = sequence.page_names(block_size)[:whole_pages] if self.pool.prefix_cache else []
        sequence.blocks = self.pool.match(names)
        sequence.named_pages = len(sequence.blocks)
        sequence.cached_tokens = sequence.computed = len(sequence.blocks) * block_size
        self.cached_tokens += sequence.cached_tokens
        more = self.pool.take(pages_for(len(sequence.token_ids), block_size) - len(sequence.blocks))
        assert more is not None, "admission checked that there are pages"
        sequence.blocks += more

    def _lacks_page(self, sequence: Sequence) -> bool:
        return len(sequence.token_ids) > len(sequence.blocks) * self.limits.block_size

    def _name_pages(self, sequence: Sequence) -> None:
        if not self.pool.prefix_cache:
            return
        names = sequence.page_names(self.limits.block_size)
        full = min(sequence.computed // self.limits.block_size, len(names))
        for page in range(sequence.named_pages, full):
            self.pool.name(sequence.blocks[page], names[page])
        sequence.named_pages = max(sequence.named_pages, full)
