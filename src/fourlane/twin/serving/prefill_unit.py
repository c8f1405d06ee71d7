"""A prefill unit: ranks that compute prompts in chunks and step together.

Admission, chunks and pages are those of `engine.scheduler`: prompts in order of arrival, as many as pages and the
step's budget allow (`policy.scheduling.plan_step`), one page a running sequence left over. A step lasts as long as its
fullest rank needs; a unit without work sleeps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fourlane.policy.request_routing import pages_for
from fourlane.policy.scheduling import plan_step
from fourlane.twin.assembly_parts import cold
from fourlane.twin.serving.page_pool import PagePool
from fourlane.twin.serving.records import PrefillStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.twin.assembly_parts import Overheads, PhaseModel
    from fourlane.twin.serving.fast_steps import FastSteps
    from fourlane.twin.serving.host import Surroundings
    from fourlane.twin.serving.prompt_names import PromptNames
    from fourlane.twin.serving.sequence import Sequence
    from fourlane.twin.times import Phase

__all__ = ["Part", "PrefillUnit"]


@dataclass(slots=True)
class Rank:
    """One rank: who waits for pages, who is computed, whose pages are held until their KV has arrived."""

    pool: PagePool
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    leaving: set[Sequence] = field(default_factory=set)


@dataclass(slots=True)
class Part:
    """What a step computes of a prompt: `tokens` after the first `computed`, of the attempt that is under way."""

    sequence: Sequence
    attempt: int
    tokens: int

    @property
    def stands(self) -> bool:
        """Tell whether the sequence is still here."""
        return self.sequence.attempt == self.attempt and self.sequence.state == "prefilling"


@dataclass(slots=True)
class Progress:
    """A step under way: full-speed seconds left at `since`."""

    parts: list[Part]
    record: PrefillStep
    began: float
    since: float
    left: float


class PrefillUnit:
    """One expert-parallel group of the prefill pool.

    Args:
        index: of the unit.
        model: of the phase.
        times: returns, by the unit, what its next step takes.
        names: of prompts' pages.
        around: what all units share.
        computed: called with each part computed, and from when to when.
        overheads: of requests and units.
    """

    phase: Phase = "prefill"

    def __init__(
        self,
        index: int,
        model: PhaseModel,
        times: Callable[[int], FastSteps],
        *,
        names: PromptNames,
        around: Surroundings,
        computed: Callable[[Part, float, float], None],
        overheads: Overheads,
    ) -> None:
        self.index = index
        self.ranks = model.pool.ranks
        self.paused = False
        self._first = index * self.ranks
        self._chunk, self._max_running = model.pool.chunk_tokens, model.pool.max_running
        self._names = names
        self._clock, self._host, self._records = around.clock, around.host, around.records
        self._times, self._computed = times, computed
        cache = model.pool.prefix_cache
        self._of = [Rank(PagePool(model.memory.kv_blocks, names, prefix_cache=cache)) for _ in range(self.ranks)]
        self._busy: dict[int, None] = {}
        """Ranks with prompts to compute, by number within the unit."""
        self._step: Progress | None = None
        self._speed = 1.0
        self._version = 0
        self._wake_s, self._cold_s = overheads.wake_s, overheads.cold_prefill_s
        self._idle_since = 0.0
        self._waking = False

    @property
    def stepping(self) -> bool:
        """Tell whether it is in a step."""
        return self._step is not None and not self.paused

    @property
    def exchanging(self) -> float:
        """Return the share of time, at this moment, in which it exchanges."""
        return self._step.record.exchanging if self._step is not None and not self.paused else 0.0

    @property
    def evenness(self) -> float:
        """Return the tokens of the mean rank as a share of those of the fullest."""
        return self._step.record.mean / self._step.record.tokens if self._step is not None else 1.0

    @property
    def held_pages(self) -> int:
        """Return the pages that its ranks' sequences hold."""
        return sum(rank.pool.total - rank.pool.free for rank in self._of)

    # sequences

    def submit(self, sequence: Sequence) -> None:
        """Queue a prompt to be computed."""
        rank = sequence.prefill_rank - self._first
        sequence.state = "prefilling"
        sequence.computed = 0
        self._of[rank].waiting.append(sequence)
        self._busy[rank] = None
        self.wake()

    def let_go(self, sequence: Sequence) -> None:
        """Free the pages of a sequence that is computed and delivered, or take one out that is not wanted any more."""
        rank = self._of[sequence.prefill_rank - self._first]
        if sequence in rank.leaving:
            rank.leaving.discard(sequence)
        elif sequence in rank.running:
            rank.running.remove(sequence)
        elif sequence in rank.waiting:
            rank.waiting.remove(sequence)
        rank.pool.release(sequence.held, sequence.nameless)
        sequence.held.clear()
        sequence.nameless = 0
        if rank.waiting:
            self.wake()

    def everyone(self, rank: int) -> list[Sequence]:
        """Return all sequences at a rank."""
        of = self._of[rank - self._first]
        return [*of.running, *of.waiting, *of.leaving]

    def everyone_here(self) -> list[Sequence]:
        """Return all sequences at its ranks."""
        return [each for rank in range(self._first, self._first + self.ranks) for each in self.everyone(rank)]

    def clear(self, rank: int) -> None:
        """Forget a rank's prefix cache: its process is another one."""
        self._of[rank - self._first].pool.clear()

    # steps

    def wake(self) -> None:
        """Begin a step, if none is under way and there is something to compute, with all that has come by then."""
        if self._step is not None or self.paused or not self._busy:
            return
        if not self._waking:
            self._waking = True
            now = self._clock.now
            self._clock.at(now + self._wake_s + self._cold_s * cold(now - self._idle_since), self._woken)

    def _woken(self) -> None:
        self._waking = False
        if self._step is None and not self.paused and self._busy:
            self._begin()

    def pause(self) -> None:
        """Stand still; the step under way is lost, and run again afterwards."""
        self.paused = True
        self._version += 1
        self._host.changed()

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        step, self._step = self._step, None
        parts = [part for part in step.parts if part.stands] if step is not None else []
        if parts:
            self._run(parts)
        else:
            self.wake()

    def pace(self, speed: float) -> None:
        """Go on at this share of full speed."""
        step, now = self._step, self._clock.now
        assert step is not None, "only units in a step are paced"
        step.left -= (now - step.since) * self._speed
        step.since = now
        self._speed = speed
        self._finish_later(step)

    def _begin(self) -> None:
        parts: list[Part] = []
        for number in list(self._busy):
            rank = self._of[number]
            self._admit(rank)
            if rank.running:
                pending = [sequence.pending for sequence in rank.running]
                for share in plan_step(pending, chunk_tokens=self._chunk, max_sequences=self._max_running):
                    sequence = rank.running[share.key]
                    parts.append(Part(sequence, sequence.attempt, share.tokens))
            elif not rank.waiting:
                del self._busy[number]
        self._run(parts)

    def _run(self, parts: list[Part]) -> None:
        if not parts:
            self._step = None
            return
        now = self._clock.now
        record = self._record(parts)
        seconds = record.times.seconds(record.tokens, record.pairs, record.mean, logits=record.logits)
        for part in parts:
            part.sequence.started_s = min(part.sequence.started_s, now)
        self._step = Progress(parts, record, now, now, seconds)
        self._speed = 1.0
        self._host.changed()
        self._speed = self._host.speed(self)
        self._finish_later(self._step)

    def _record(self, parts: list[Part]) -> PrefillStep:
        """Return what a step computes: of each figure that of the rank with most."""
        tokens = [0] * self.ranks
        pairs = [0] * self.ranks
        logits = [0] * self.ranks
        for part in parts:
            sequence, number = part.sequence, part.sequence.prefill_rank - self._first
            tokens[number] += part.tokens
            pairs[number] += part.tokens * sequence.computed + part.tokens * (part.tokens + 1) // 2
            logits[number] += part.tokens == sequence.pending
        total, times = sum(tokens), self._times(self.index)
        return PrefillStep(times, self.index, max(tokens), max(pairs), max(logits), total / self.ranks, total)

    def _admit(self, rank: Rank) -> None:
        """Move waiting sequences to running while pages last."""
        pool = rank.pool
        while rank.waiting and len(rank.running) < self._max_running:
            sequence = rank.waiting[0]
            needed = pages_for(sequence.tokens, self._names.block_size)
            if pool.free < needed + min(len(rank.running), pool.total // 20):
                return
            rank.running.append(rank.waiting.popleft())
            self._give_pages(pool, sequence, needed)

    def _give_pages(self, pool: PagePool, sequence: Sequence, needed: int) -> None:
        names, block_size = self._names, self._names.block_size
        runs = sequence.runs
        whole = (sequence.tokens - 1) // block_size  # one token at least is computed
        while runs and names.end_pages[runs[-1]] > whole:
            runs = runs[:-1]
        sequence.held = pool.match(runs)
        matched = names.end_pages[sequence.held[-1]] if sequence.held else 0
        sequence.named = len(sequence.held)
        sequence.computed = sequence.cached = matched * block_size
        taken = pool.take(needed - matched)
        assert taken, "admission checked that there are pages"
        sequence.nameless = needed - matched

    def _finish_later(self, step: Progress) -> None:
        self._version += 1
        self._clock.at(step.since + max(0.0, step.left) / self._speed, self._end, self._version)

    def _end(self, version: int) -> None:
        step = self._step
        if version != self._version or step is None:
            return
        now = self._clock.now
        self._records.prefill_step(step.record, step.began, now)
        for part in step.parts:
            if part.stands:
                self._commit(part, step.began, now)
        self._step = None
        if not self.paused:
            self._begin()
        if self._step is None:
            self._idle_since = now
            self._host.changed()

    def _commit(self, part: Part, began: float, now: float) -> None:
        sequence = part.sequence
        rank = self._of[sequence.prefill_rank - self._first]
        sequence.computed += part.tokens
        self._name_pages(rank.pool, sequence)
        if not sequence.pending:
            rank.running.remove(sequence)
            rank.leaving.add(sequence)
            sequence.state = "leaving"
        self._computed(part, began, now)

    def _name_pages(self, pool: PagePool, sequence: Sequence) -> None:
        names = self._names
        full = sequence.computed // names.block_size
        while sequence.named < len(sequence.runs) and names.end_pages[sequence.runs[sequence.named]] <= full:
            run = sequence.runs[sequence.named]
            sequence.named += 1
            if pool.name(run):
                sequence.held.append(run)
                sequence.nameless -= names.pages[run]
