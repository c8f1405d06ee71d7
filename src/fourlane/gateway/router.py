"""The life of a request: queue, ranks, tokens, retries, deadline, end.

One asyncio loop owns a `Router`; no method may be called from another thread. It sends through a
`RankLink` and is told what ranks say (`handle`) and what became of them (`rank_ready`,
`rank_lost`, ...). Not here: processes and sockets (`supervisor`, `engine.channel`), HTTP (`app`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fourlane.engine.messages import Failed, KvDelivered, RankStats, Reserved, TokenEvent, Tokens
from fourlane.errors import InvalidRequest, Overloaded, ServiceUnavailable
from fourlane.gateway.expert_loads import ExpertLoads
from fourlane.gateway.generation import Attempt, Choice, Generation, GenerationRequest
from fourlane.gateway.ledger import Ledger
from fourlane.gateway.limits import Limits, stall_of, timed_out
from fourlane.gateway.placing import place
from fourlane.gateway.ranks import RankLink, RankView, expected_ranks
from fourlane.gateway.waiting_line import WaitingLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.messages import FromRank, Hello
    from fourlane.gateway.metrics import Metrics
    from fourlane.spec.deployment import Deployment

__all__ = ["Limits", "Router"]

SWEEP_S = 0.5


class Router:
    """Brings requests to ranks and their tokens back."""

    def __init__(self, link: RankLink, deployment: Deployment, limits: Limits, metrics: Metrics) -> None:
        self.deployment = deployment
        self.limits = limits
        self.metrics = metrics
        self.started_at = 0.0
        self.ranks: dict[str, RankView] = expected_ranks(deployment)
        self.expert_loads = ExpertLoads()
        self._block_size = deployment.kv_cache.block_size
        self._line = WaitingLine()
        self._ledger = Ledger(link, self._block_size)
        self._generations: dict[Generation, None] = {}
        self._arrivals = 0
        self._stopping = False
        self._failed_pools: dict[str, str] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        metrics.watch(self)

    # the service

    def start(self) -> None:
        """Bind to the running event loop and take requests."""
        self._loop = asyncio.get_running_loop()
        self.started_at = self._loop.time()
        self._stopping = False

    async def stop(self, deadline_s: float) -> None:
        """Take no more requests, let open ones end for up to `deadline_s` seconds, then fail the rest."""
        self._stopping = True
        try:
            await asyncio.wait_for(self._idle.wait(), deadline_s)
        except TimeoutError:
            error = ServiceUnavailable("the service is shutting down and did not finish this request in time; retry")
            for generation in list(self._generations):
                self._fail(generation, error)
        self._stop_timers()

    @property
    def stopping(self) -> bool:
        """Tell whether the service takes no more requests."""
        return self._stopping

    @property
    def waiting(self) -> int:
        """Return the requests with a choice in the queue."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Return the sequences at ranks."""
        return len(self._ledger)

    def token_limit(self) -> int | None:
        """Return the most tokens (prompt and output) of a sequence that every rank can hold; None before any is up.

        One page is left out: an engine may keep one for padding.
        """
        limits = [
            min(rank.hello.max_length, (rank.hello.kv_blocks - 1) * rank.hello.block_size)
            for rank in self.ranks.values()
            if rank.hello is not None
        ]
        return min(limits, default=None)

    # what becomes of ranks

    def rank_ready(self, name: str, hello: Hello) -> None:
        """Note that a rank can serve. A new process (another pid) takes over none of the old one's sequences."""
        rank = self._rank(name)
        if rank.hello is not None and rank.hello.pid != hello.pid and rank.state != "lost":
            self.rank_lost(name, "replaced by a new process")
        rank.up(hello)
        self._refuse_oversized()
        self._pump()

    def rank_lost(self, name: str, reason: str) -> None:
        """Note that a rank's process has gone; what depended on it is tried again elsewhere."""
        rank = self._rank(name)
        rank.down(reason)
        self.expert_loads.forget(name)
        for attempt in list(rank.attempts):
            if attempt.decode is rank or attempt.state == "prefilling":
                self._retry(attempt, f"rank {name} was lost ({reason})", culprit=rank)
        self._pump()

    def rank_paused(self, name: str, reason: str) -> None:
        """Give a rank no new work, but leave it its sequences: its group is being rebuilt."""
        rank = self._rank(name)
        if rank.state == "ready":
            rank.state, rank.detail = "paused", reason

    def rank_resumed(self, name: str) -> None:
        """Give a paused rank work again."""
        rank = self._rank(name)
        if rank.state == "paused":
            rank.state, rank.detail = "ready", ""
            self._pump()

    def pool_failed(self, role: str, reason: str) -> None:
        """Refuse all requests, open ones too: a pool was given up, and no rank of it will come back."""
        self._failed_pools[role] = reason
        for generation in list(self._generations):
            self._fail(generation, self._no_pool())

    def _no_pool(self) -> ServiceUnavailable:
        reasons = "; ".join(f"the {role} pool was given up: {why}" for role, why in self._failed_pools.items())
        return ServiceUnavailable(f"{reasons}; whoever runs the service must start it again", retry_after=30)

    def _rank(self, name: str) -> RankView:
        rank = self.ranks.get(name)
        if rank is None:
            raise KeyError(f"rank {name!r}: expected one of {', '.join(self.ranks)}")
        return rank

    # what clients want

    def submit(self, request: GenerationRequest) -> Generation:
        """Take a request on; iterate over what is returned.

        Raises:
            Overloaded: the queue is full.
            ServiceUnavailable: the service is shutting down.
            InvalidRequest: a prompt no rank can hold.
        """
        if self._loop is None or self._stopping:
            raise ServiceUnavailable("the service is shutting down; retry", retry_after=5)
        if self._failed_pools:
            raise self._no_pool()
        if len(self._line) >= max(1, self.limits.max_queued_requests):
            raise Overloaded(
                f"{len(self._line)} requests are waiting, the limit is {self.limits.max_queued_requests}; retry later",
                retry_after=self.metrics.figures.retry_after(len(self._line), self._loop.time()),
            )
        self._check_lengths(request)
        now = self._loop.time()
        self._arrivals += 1
        generation = Generation(
            request,
            arrival=self._arrivals,
            now=now,
            deadline=now + self.limits.request_timeout_s,
            on_stop=self._stop_choice,
            on_cancel=self.cancel,
        )
        self._generations[generation] = None
        self._idle.clear()
        for choice in generation.choices:
            self._line.add(choice)
        self._start_sweeper()
        self._pump()
        return generation

    def _refuse_oversized(self) -> None:
        """Refuse what was queued before any rank had said how much it holds, and turns out too long."""
        for generation in self._line.requests():
            try:
                self._check_lengths(generation.request)
            except InvalidRequest as error:
                self._fail(generation, error)

    def _check_lengths(self, request: GenerationRequest) -> None:
        limit = self.token_limit()
        longest = max(len(spec.token_ids) for spec in request.choices)
        if limit is not None and longest >= limit:
            raise InvalidRequest(
                f"the prompt has {longest} tokens; the service holds at most {limit} tokens of prompt and output: "
                "shorten the prompt",
                code="context_length_exceeded",
            )

    def cancel(self, generation: Generation) -> None:
        """Drop a request everywhere: its client has gone. Does nothing once it has ended."""
        if generation not in self._generations:
            return
        self._end(generation, "abort")
        generation.close()
        self._pump()

    def _stop_choice(self, choice: Choice) -> None:
        if choice.finished:
            return
        if choice.attempt is not None:
            self._ledger.abandon(choice.attempt)
        self._choice_done(choice, "stop")
        self._pump()

    # what ranks say

    def handle(self, name: str, message: FromRank) -> None:
        """Take a message from a rank. Those on processes and groups are the supervisor's and ignored here."""
        if isinstance(message, Tokens):
            self._on_tokens(message)
        elif isinstance(message, RankStats):
            self._on_stats(self._rank(name), message)
        elif isinstance(message, Reserved):
            self._on_reserved(message)
        elif isinstance(message, KvDelivered):
            self._on_delivered(message)
        elif isinstance(message, Failed):
            self._on_failed(name, message)
        else:
            return
        if self._line:
            self._pump()

    def _on_stats(self, rank: RankView, stats: RankStats) -> None:
        rank.report(stats, self._now())
        if rank.hello is not None and stats.expert_tokens:
            shape = (rank.hello.layers, rank.hello.experts)
            self.expert_loads.report(rank.name, stats.expert_tokens, shape, self._now())

    def _on_tokens(self, message: Tokens) -> None:
        now = self._now()
        for event in message.events:
            attempt = self._ledger.get(event.sequence_id)
            if attempt is None:
                continue
            expected = len(attempt.choice.tokens)
            if event.index == expected:
                self._accept(attempt, event, now)
            elif event.index > expected:
                attempt.early[event.index] = event
                attempt.gap_since = attempt.gap_since or now

    def _accept(self, attempt: Attempt, event: TokenEvent, now: float) -> None:
        """Deliver a token that is next in line, and those that had come before it was."""
        choice = attempt.choice
        if attempt.prompt_cost:
            self._ledger.computed(attempt)
        while True:
            self._observe(choice, now)
            choice.tokens.append(event.token_id)
            if event.index > attempt.first_index:
                attempt.state = "decoding"  # a second token: the KV has arrived
            choice.generation.push(choice.index, event)
            if event.finish is not None:
                self._finished(attempt, event)
                return
            following = attempt.early.pop(event.index + 1, None)
            if following is None:
                break
            event = following
        attempt.gap_since = now if attempt.early else None
        self._ledger.grow(attempt)

    def _observe(self, choice: Choice, now: float) -> None:
        if choice.tokens:
            self.metrics.next_token(now - choice.last_token_at, now)
        else:
            choice.first_token_at = now
            self.metrics.first_token(now - choice.generation.submitted_at, now)
        choice.last_token_at = now

    def _finished(self, attempt: Attempt, event: TokenEvent) -> None:
        if attempt.state == "prefilling" and attempt.prefill is not attempt.decode:
            self._ledger.abandon(attempt)  # the first token was the last: the decode rank holds pages for nothing
        else:
            self._ledger.release(attempt)
        self._choice_done(attempt.choice, event.finish or "stop")
        self._pump()

    def _on_reserved(self, message: Reserved) -> None:
        attempt = self._ledger.get(message.sequence_id)
        if attempt is None or attempt.state != "reserving":
            return
        if attempt.prefill.state not in {"ready", "paused"}:
            self._retry(attempt, f"rank {attempt.prefill.name} was lost before it began", culprit=attempt.prefill)
            return
        self._ledger.prefill(attempt, message.target, self._now())

    def _on_delivered(self, message: KvDelivered) -> None:
        self.metrics.kv_delivered(message)
        attempt = self._ledger.get(message.sequence_id)
        if attempt is not None:
            attempt.state = "decoding"
            generation = attempt.choice.generation
            if generation.cached_tokens is None:
                generation.cached_tokens = message.cached_tokens

    def _on_failed(self, name: str, message: Failed) -> None:
        attempt = self._ledger.get(message.sequence_id)
        if attempt is None:
            return
        rank = self._rank(name)
        if not message.retryable:
            self._fail(attempt.choice.generation, ServiceUnavailable(f"rank {name}: {message.reason}"))
        elif attempt.state == "reserving":
            rank.blocked_until = self._now() + self.limits.refusal_delay_s
            self._requeue(attempt, message.reason)
        elif message.reason.startswith("evicted"):
            attempt.choice.evictions += 1
            self.metrics.evicted()
            self._requeue(attempt, message.reason)
        elif attempt.state == "prefilling" and rank is attempt.decode:
            self._retry_unless_over(attempt, f"rank {name}: {message.reason}")
        else:
            self._retry(attempt, f"rank {name}: {message.reason}", culprit=rank)

    def _retry_unless_over(self, attempt: Attempt, reason: str) -> None:
        """Retry in a moment: a first token that is also the last ends the KV stream and may still be on its way."""

        def retry() -> None:
            self._timers.discard(handle)
            if self._ledger.get(attempt.sequence_id) is attempt:
                self._retry(attempt, reason, culprit=attempt.decode)

        handle = self._call_later(self.limits.last_token_grace_s, retry)

    # from the queue to the ranks

    def _pump(self) -> None:
        """Send off requests, oldest first, until one finds no room.

        None overtakes: what is oldest gets the next room, so none starves, and a sequence that
        was evicted (it keeps its request's age) gets it before those that crowded it out.
        """
        while (choice := self._line.first()) is not None:
            now = self._now()
            placing = place(choice, self.ranks.values(), block_size=self._block_size, now=now)
            if placing is None:
                return
            self._line.take()
            if not choice.tokens and choice.retries == choice.evictions == 0:
                self.metrics.dequeued(now - choice.generation.submitted_at)
            self._ledger.begin(choice, placing, now)

    # ends

    def _requeue(self, attempt: Attempt, reason: str) -> None:
        """Try again when there is room; does not count as a retry."""
        attempt.choice.last_failure = reason
        self._ledger.abandon(attempt)
        self._line.add(attempt.choice)

    def _retry(self, attempt: Attempt, reason: str, *, culprit: RankView) -> None:
        """Try again, rather elsewhere, after a short wait; fail the request when that was tried often enough."""
        choice = attempt.choice
        self._ledger.abandon(attempt)
        choice.retries += 1
        choice.last_failure = reason
        choice.avoid.add(culprit.name)
        if choice.retries > self.limits.max_retries:
            tries = f"{choice.retries} attempts failed, the last because {reason}"
            self._fail(choice.generation, ServiceUnavailable(f"{tries}; a retry is safe"))
            return
        self.metrics.retried()
        delay = 0.0 if culprit.state == "lost" else self.limits.retry_delay(choice.retries)
        self._later(delay, choice)

    def _later(self, delay: float, choice: Choice) -> None:
        def enqueue() -> None:
            self._timers.discard(handle)
            if not choice.finished:
                self._line.add(choice)
                self._pump()

        handle = self._call_later(delay, enqueue)

    def _call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        if self._loop is None:
            raise RuntimeError("Router.start was not called")
        handle = self._loop.call_later(delay, callback)
        self._timers.add(handle)
        return handle

    def _choice_done(self, choice: Choice, reason: str) -> None:
        choice.finished = True
        generation = choice.generation
        generation.unfinished -= 1
        self.metrics.choice_finished(reason, choice, self._now())
        if not generation.unfinished:
            self._forget(generation)
            self.metrics.request_finished(self._now() - generation.submitted_at)
            generation.close()

    def _fail(self, generation: Generation, error: Exception) -> None:
        self._end(generation, "error")
        generation.fail(error)

    def _end(self, generation: Generation, reason: str) -> None:
        for choice in generation.choices:
            if not choice.finished:
                choice.finished = True
                self.metrics.choice_finished(reason, choice, self._now())
                if choice.attempt is not None:
                    self._ledger.abandon(choice.attempt)
        generation.unfinished = 0
        self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        self._generations.pop(generation, None)
        self._line.drop(generation)
        if not self._generations:
            self._idle.set()

    # time

    def _now(self) -> float:
        if self._loop is None:
            raise RuntimeError("Router.start was not called")
        return self._loop.time()

    def _start_sweeper(self) -> None:
        if self._sweeper is None and self._loop is not None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _stop_timers(self) -> None:
        for handle in (*self._timers, *([self._sweeper] if self._sweeper else [])):
            handle.cancel()
        self._timers.clear()
        self._sweeper = None

    def _sweep(self) -> None:
        """Look for what has waited too long; runs twice a second while there are requests."""
        self._sweeper = None
        now = self._now()
        for generation in list(self._generations):
            if now >= generation.deadline:
                self._fail(generation, timed_out(generation, self.limits))
        for attempt in self._ledger.all():
            stall = stall_of(attempt, self.limits, now)
            if stall is not None:
                self._retry(attempt, stall[0], culprit=stall[1])
        self._pump()
        if self._generations:
            self._start_sweeper()
