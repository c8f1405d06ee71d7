"""One client request on its way through the ranks: what is asked, what has come, what is tried.

A *choice* is one text to produce; an *attempt* is one sequence that tries to produce it. Not here:
which rank serves an attempt (`router`), text (`detokenizer`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from fourlane.engine.messages import Sampling, TokenEvent
    from fourlane.gateway.ranks import RankView

__all__ = ["Attempt", "Choice", "ChoiceSpec", "Delta", "Generation", "GenerationRequest"]


@dataclass(frozen=True, slots=True)
class ChoiceSpec:
    """One text wanted: the prompt's token ids and how to sample."""

    token_ids: list[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What one HTTP request asks of the ranks: a choice for every prompt and every `n`."""

    request_id: str
    choices: Sequence[ChoiceSpec]


@dataclass(slots=True)
class Delta:
    """New tokens of one choice, in order, without gaps or repeats."""

    choice: int
    events: list[TokenEvent]


@dataclass(slots=True, eq=False)
class Attempt:
    """A sequence under way for a choice.

    Args:
        decode: the rank that owns its pages (a unified rank has this role, too).
        prefill: the rank that computes its prompt.
        pages: KV pages it is counted with on `decode`.
        prompt_cost: tokens it is counted with in the queue of `prefill`; 0 once computed.
        first_index: the index of the first token it produces (not 0 on a retry).
        early: tokens that came before one with a lower index, by index.
        since: when its state began, or the gap opened (seconds, the router's clock).
    """

    sequence_id: int
    choice: Choice
    decode: RankView
    prefill: RankView
    pages: int
    prompt_cost: int
    first_index: int
    since: float
    state: Literal["reserving", "prefilling", "decoding"] = "reserving"
    early: dict[int, TokenEvent] = field(default_factory=dict)
    gap_since: float | None = None


@dataclass(slots=True, eq=False)
class Choice:
    """One text being produced, over as many attempts as it takes."""

    generation: Generation
    index: int
    spec: ChoiceSpec
    tokens: list[int] = field(default_factory=list)
    attempt: Attempt | None = None
    retries: int = 0
    evictions: int = 0
    finished: bool = False
    avoid: set[str] = field(default_factory=set)
    last_failure: str = ""
    hashes: list[bytes] = field(default_factory=list)
    hashed_tokens: int = -1
    last_token_at: float = 0.0
    first_token_at: float = 0.0


class Generation:
    """An async iterator over what a request produces; each item holds all that came since the last.

    Ends when every choice has finished; raises the `RequestError` that ended it otherwise. Call
    `cancel` when it is not iterated to its end.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        arrival: int,
        now: float,
        deadline: float,
        on_stop: Callable[[Choice], None],
        on_cancel: Callable[[Generation], None],
    ) -> None:
        self.request = request
        self.arrival = arrival
        self.submitted_at = now
        self.deadline = deadline
        self.choices = [Choice(self, index, spec) for index, spec in enumerate(request.choices)]
        self.unfinished = len(self.choices)
        self.cached_tokens: int | None = None
        """Prompt tokens found in a prefix cache, once a prefill rank has said so."""
        self._pending: dict[int, Delta] = {}
        self._error: Exception | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_stop = on_stop
        self._on_cancel = on_cancel

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> list[Delta]:
        """Return all deltas that came since the last call, waiting for one if there is none."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self._closed or not self.unfinished:
                raise StopAsyncIteration
            await self._wait()
        deltas = list(self._pending.values())
        self._pending = {}
        return deltas

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def push(self, choice: int, event: TokenEvent) -> None:
        """Give the consumer a token (called by the router)."""
        delta = self._pending.get(choice)
        if delta is None:
            self._pending[choice] = Delta(choice, [event])
            self._wake()
        else:
            delta.events.append(event)

    def fail(self, error: Exception) -> None:
        """End with an error, after what is pending (called by the router)."""
        if self._error is None and not self._closed:
            self._error = error
            self._wake()

    def close(self) -> None:
        """End without an error (called by the router)."""
        self._closed = True
        self._wake()

    def stop_choice(self, index: int) -> None:
        """Say that a choice has all it needs (a stop string came); its work is cancelled."""
        self._on_stop(self.choices[index])

    def cancel(self) -> None:
        """Drop the request: the client has gone. Does nothing once it has ended."""
        self._on_cancel(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
