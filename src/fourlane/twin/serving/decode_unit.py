"""A decode unit: ranks that decode their sequences together, one step after another.

While nobody joins, ends or runs out of pages, a unit's steps differ only in how long contexts are, and they grow by the
same in each. So a unit *leaps* over all of them at once; times within a leap follow from its first step and its last.
Pages, evictions and their order are those of `engine.scheduler`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import ceil, floor, inf, sqrt
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fourlane.policy.request_routing import pages_for
from fourlane.twin.assembly_parts import cold
from fourlane.twin.serving.records import DecodeLeap

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.serving.fast_steps import FastSteps
    from fourlane.twin.serving.gateway import Gateway
    from fourlane.twin.serving.host import Surroundings
    from fourlane.twin.serving.sequence import Sequence
    from fourlane.twin.times import Phase

__all__ = ["DecodeUnit", "Leap"]

GROWTH: float = 0.25
"""By how much of itself the context may grow in one leap: times are read off its two ends."""
SHORT_STEPS: int = 64
"""A leap may always be so long."""
_SAME = 1e-9
_MANY = 1 << 62


@dataclass(slots=True)
class Leap:
    """Steps to come, from `since` on.

    `first` seconds the first takes at full speed, `more` each next one beyond the one before; `done` full-speed seconds
    of it had passed at `since`, less than none where sequences that join have yet to be taken in.
    """

    steps: int
    first: float
    more: float
    began: float
    since: float
    record: DecodeLeap
    speed: float = 1.0
    done: float = 0.0

    def work(self, steps: int) -> float:
        """Return the full-speed seconds of so many of its steps."""
        return steps * self.first + self.more * steps * (steps - 1) / 2

    def time_of(self, steps: int) -> float:
        """Return when so many of its steps have ended."""
        return self.since + (self.work(steps) - self.done) / self.speed

    def steps_by(self, time: float) -> int:
        """Return how many of its steps have ended by a time."""
        work = self.done + (time - self.since) * self.speed
        slope = self.more / 2
        if abs(slope) * self.steps <= _SAME * self.first:
            steps = work / self.first if self.first > 0 else inf
        else:
            half = self.first - slope
            steps = (sqrt(max(0.0, half * half + 4 * slope * work)) - half) / (2 * slope)
        return max(0, min(self.steps, floor(steps + _SAME)))


class DecodeListener(Protocol):
    """Who wants to know what becomes of sequences."""

    def ended(self, sequence: Sequence) -> None:
        """Take a sequence that has all its tokens."""
        ...

    def evicted(self, sequence: Sequence) -> None:
        """Take a sequence that lost its pages to older ones."""
        ...


class DecodeUnit:
    """One expert-parallel group of the decode pool.

    Args:
        index: of the unit.
        assembly: it belongs to.
        times: returns, by the unit, what its next steps take.
        around: what all units share.
        gateway: whose books it keeps up to date.
        listener: is told who has ended and who was evicted.
    """

    phase: Phase = "decode"

    def __init__(
        self,
        index: int,
        assembly: Assembly,
        times: Callable[[int], FastSteps],
        *,
        around: Surroundings,
        gateway: Gateway,
        listener: DecodeListener,
    ) -> None:
        model = assembly.decode
        self.index = index
        self.ranks = model.pool.ranks
        self.paused = False
        self.held_G = np.zeros(self.ranks, np.int64)
        """Pages that each rank's sequences and reservations hold."""
        self._first = index * self.ranks
        self._total_pages = model.memory.kv_blocks
        self._block_size = assembly.twin.block_size
        self._tokens = assembly.tokens_per_step
        self._join_s, self._cold_s = assembly.overheads.join_s, assembly.overheads.cold_decode_s
        self._idle_since = 0.0
        self._drafted = 1 + assembly.twin.assumptions.mtp_tokens
        self._clock, self._host, self._records = around.clock, around.host, around.records
        self._times, self._gateway, self._listener = times, gateway, listener
        self._step = 0
        """Steps it has taken."""
        self._leap: Leap | None = None
        self._planned = 0
        self._version = 0
        self._waking = False
        self._joined = 0
        self._joining: list[Sequence] = []
        self._running: list[dict[Sequence, None]] = [{} for _ in range(self.ranks)]
        self._rows_G = np.zeros(self.ranks, np.int64)
        self._base_G = np.zeros(self.ranks, np.float64)
        """Contexts of each rank's sequences, summed, as they would have been before the unit's first step."""
        self._endings: list[tuple[int, int, Sequence]] = []
        self._crossings: list[tuple[int, int, Sequence]] = []
        """When sequences need their next pages: step, order of joining."""

    @property
    def stepping(self) -> bool:
        """Tell whether it is in a step."""
        return self._leap is not None and not self.paused

    @property
    def exchanging(self) -> float:
        """Return the share of time, at this moment, in which it exchanges."""
        return self._leap.record.exchanging if self._leap is not None and not self.paused else 0.0

    @property
    def evenness(self) -> float:
        """Return the rows of the mean rank as a share of those of the fullest."""
        return self._leap.record.mean / self._leap.record.rows if self._leap is not None else 1.0

    @property
    def sequences(self) -> int:
        """Return the sequences that decode."""
        return int(self._rows_G.sum())

    # sequences

    def reserve(self, sequence: Sequence) -> float:
        """Hold pages for a sequence; return when the rank answers: between two steps."""
        rank = sequence.decode_rank - self._first
        sequence.pages = pages_for(sequence.tokens, self._block_size)
        self.held_G[rank] += sequence.pages
        leap = self._leap
        if leap is not None and not self.paused:
            self.catch_up()
            if self._rows_G[rank] * self._most_pages(leap.steps) > self._total_pages - self.held_G[rank]:
                self._cut(leap)
        return self.next_boundary()

    def next_boundary(self) -> float:
        """Return when it next looks at its messages."""
        leap, now = self._leap, self._clock.now
        if leap is None or self.paused:
            return now
        return leap.time_of(min(leap.steps, leap.steps_by(now) + 1))

    def join(self, sequence: Sequence) -> None:
        """Let a sequence run whose KV is there: from the next step on."""
        self._joining.append(sequence)
        if self.paused:
            return
        if self._leap is not None:
            self._cut(self._leap)
        elif not self._waking:
            self._waking = True
            self._clock.at(self._clock.now, self._woken)

    def _woken(self) -> None:
        """Begin with all whose KV has come at this moment."""
        self._waking = False
        if self._leap is None and not self.paused:
            self._turn()

    def let_go(self, sequence: Sequence) -> None:
        """Free what a sequence holds, wherever it is: reserved, joining, running."""
        rank = sequence.decode_rank - self._first
        if sequence.joined >= 0:
            self.catch_up()
            self._remove(sequence)
            if self._leap is not None and not self.paused:
                self._cut(self._leap)
        elif sequence in self._joining:
            self._joining.remove(sequence)
        self.held_G[rank] -= sequence.pages
        sequence.pages = 0

    def answered(self, sequence: Sequence) -> int:
        """Return the tokens a decoding sequence has been answered in this attempt beyond the first, by now."""
        step = self._step + (self._leap.steps_by(self._clock.now) if self._leap is not None else 0)
        return floor(self._tokens * (min(step, sequence.end_step) - sequence.begin_step) + _SAME)

    # steps

    def catch_up(self) -> None:
        """Bring pages up to date: those that sequences have grown into since the leap began."""
        if self._crossings and self._leap is not None and not self.paused:
            self._cross(self._step + self._leap.steps_by(self._clock.now))

    def pause(self) -> None:
        """Stand still; the step under way is lost, and run again afterwards."""
        self.catch_up()
        if self._leap is not None:
            self._idle_since = self._clock.now
        self._close_leap()
        self.paused = True
        self._version += 1
        self._host.changed()

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        self._turn()

    def replan(self) -> None:
        """Take other times from the next step on."""
        if self._leap is not None and not self.paused:
            self._cut(self._leap)

    def pace(self, speed: float) -> None:
        """Go on at this share of full speed."""
        leap, now = self._leap, self._clock.now
        assert leap is not None, "only units in a step are paced"
        leap.done += (now - leap.since) * leap.speed
        leap.since, leap.speed = now, speed
        self._turn_later(self._planned)

    def _cut(self, leap: Leap) -> None:
        """End the leap at the next boundary."""
        steps = min(leap.steps, leap.steps_by(self._clock.now) + 1)
        if steps < self._planned:
            self._turn_later(steps)

    def _turn_later(self, steps: int) -> None:
        assert self._leap is not None, "only a leap can end"
        self._planned = steps
        self._version += 1
        self._clock.at(self._leap.time_of(steps), self._turn_if, self._version)

    def _turn_if(self, version: int) -> None:
        if version == self._version and not self.paused:
            self._turn()

    def _turn(self) -> None:
        """Stand between two steps: let go who has ended, take in who has come, and leap on."""
        was_stepping = self._leap is not None
        self._close_leap(self._planned)
        now = self._clock.now
        self._end_those_due()
        for sequence in self._joining:
            self._take_in(sequence, now)
        late_s = self._join_s * len(self._joining)
        self._joining.clear()
        self._cross(self._step)
        self._leap = self._next_leap(now)
        if self._leap is None:
            if was_stepping:
                self._idle_since = now
                self._host.changed()
            return
        if not was_stepping:
            late_s += self._cold_s * cold(now - self._idle_since)
        self._leap.done = -late_s
        self._host.changed()
        self._leap.speed = self._host.speed(self)
        self._turn_later(self._leap.steps)

    def _close_leap(self, steps: int | None = None) -> None:
        """Count the leap's steps as taken: so many, or those that have ended by now."""
        leap, now = self._leap, self._clock.now
        if leap is None:
            return
        taken = leap.steps_by(now) if steps is None else steps
        self._step += taken
        if taken:
            record = leap.record if taken == leap.record.steps else replace(leap.record, steps=taken)
            self._records.decode_leap(record, leap.began, now)
        self._leap = None
        self._planned = 0

    def _end_those_due(self) -> None:
        endings = self._endings
        while endings and endings[0][0] <= self._step:
            _, joined, sequence = heappop(endings)
            if sequence.joined != joined:
                continue
            self._remove(sequence)
            self.held_G[sequence.decode_rank - self._first] -= sequence.pages
            sequence.pages = 0
            self._listener.ended(sequence)

    def _take_in(self, sequence: Sequence, now: float) -> None:
        rank = sequence.decode_rank - self._first
        self._joined += 1
        sequence.joined = self._joined
        sequence.state = "decoding"
        sequence.decoding_s = min(now, sequence.decoding_s)
        sequence.begin_step = self._step
        sequence.begin_tokens = sequence.tokens + 1
        left = sequence.output_tokens - sequence.emitted
        sequence.end_step = self._step + ceil(left / self._tokens - _SAME)
        self._running[rank][sequence] = None
        self._rows_G[rank] += 1
        self._base_G[rank] += sequence.begin_tokens - self._tokens * self._step
        heappush(self._endings, (sequence.end_step, sequence.joined, sequence))
        self._cross_later(sequence)

    def _remove(self, sequence: Sequence) -> None:
        rank = sequence.decode_rank - self._first
        del self._running[rank][sequence]
        self._rows_G[rank] -= 1
        self._base_G[rank] -= sequence.begin_tokens - self._tokens * sequence.begin_step
        sequence.joined = -1
        if not self._rows_G[rank]:
            self._base_G[rank] = 0.0

    def _next_leap(self, now: float) -> Leap | None:
        endings = self._endings
        while endings and endings[0][2].joined != endings[0][1]:
            heappop(endings)
        if not endings:
            return None
        rows, sequences = int(self._rows_G.max()), int(self._rows_G.sum())
        context_G = self._base_G + (self._tokens * self._step) * self._rows_G
        context = float(context_G.max())
        mean = sequences * self._drafted / self.ranks
        steps = min(endings[0][0] - self._step, max(SHORT_STEPS, floor(GROWTH * context / (self._tokens * rows))))
        steps = max(1, min(steps, self._steps_with_pages(steps), self._steps_to_overtaking(context_G)))
        times = self._times(self.index)
        first = times.seconds(rows * self._drafted, context, mean)
        more = growth = 0.0
        if steps > 1:
            grown = float((context_G + (self._tokens * (steps - 1)) * self._rows_G).max())
            last = times.seconds(rows * self._drafted, grown, mean)
            more, growth = (last - first) / (steps - 1), (grown - context) / (steps - 1)
        record = DecodeLeap(times, self.index, steps, rows * self._drafted, context, growth, mean, sequences)
        return Leap(steps, first, more, now, now, record)

    def _steps_to_overtaking(self, context_G: NDArray[np.float64]) -> int:
        """Return after how many steps another rank comes to have the longest contexts, having more that grow."""
        longest = int(context_G.argmax())
        more_G = self._rows_G > self._rows_G[longest]
        if not more_G.any():
            return _MANY
        ahead_G = context_G[longest] - context_G[more_G]
        gained_G = self._tokens * (self._rows_G[more_G] - self._rows_G[longest])
        return floor((ahead_G / gained_G).min()) + 1

    # pages

    def _steps_with_pages(self, steps: int) -> int:
        """Return over how many of these steps no rank can run out of pages; up to the next page needed if one may."""
        short_G = self._rows_G * self._most_pages(steps) > self._total_pages - self.held_G
        if not short_G.any() or not self._crossings:
            return steps
        return max(1, self._crossings[0][0] - self._step)

    def _most_pages(self, steps: int) -> int:
        """Return the pages that a sequence can need in so many steps."""
        return floor(self._tokens * steps / self._block_size) + 1

    def _cross_later(self, sequence: Sequence) -> None:
        """Note at which step a sequence's tokens will fill its pages and need another."""
        missing = sequence.pages * self._block_size + 1 - sequence.begin_tokens
        step = sequence.begin_step + max(0, ceil(missing / self._tokens - _SAME))
        if step < sequence.end_step:
            heappush(self._crossings, (step, sequence.joined, sequence))

    def _cross(self, step: int) -> None:
        """Give sequences the pages they need by a step; the youngest of a rank gives way where there are none."""
        crossings = self._crossings
        while crossings and crossings[0][0] <= step:
            _, joined, sequence = heappop(crossings)
            if sequence.joined != joined:
                continue
            rank = sequence.decode_rank - self._first
            if self.held_G[rank] >= self._total_pages and self._make_room(rank) is sequence:
                continue
            sequence.pages += 1
            self.held_G[rank] += 1
            if sequence.pages > sequence.asked:
                self._gateway.pages_G[sequence.decode_rank] += sequence.pages - sequence.asked
                sequence.asked = sequence.pages
            self._cross_later(sequence)

    def _make_room(self, rank: int) -> Sequence:
        """Evict a rank's youngest sequence and return it."""
        youngest = next(reversed(self._running[rank]))
        youngest.emitted += self.answered(youngest)
        self._remove(youngest)
        self.held_G[rank] -= youngest.pages
        youngest.pages = 0
        self._listener.evicted(youngest)
        return youngest
