"""The live gateway's router and the engine's schedulers under a clock that jumps: what is decided, without computing.

Ranks of a pool step together, for as long as the steps of `serving_doubles` say; KV arrives at once. Whatever chooses
ranks, chunks, pages and who is evicted is the product's own code.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.engine.kv_cache import BlockPool
from fourlane.engine.messages import (
    Cancel,
    Failed,
    Hello,
    KvAddress,
    KvDelivered,
    Prefill,
    Reserve,
    Reserved,
    Sampling,
    TokenEvent,
    Tokens,
)
from fourlane.engine.scheduler import Limits as RankLimits
from fourlane.engine.scheduler import Scheduler
from fourlane.engine.sequence import Sequence
from fourlane.gateway.generation import ChoiceSpec, GenerationRequest
from fourlane.gateway.limits import Limits
from fourlane.gateway.metrics import Metrics
from fourlane.gateway.router import Router
from fourlane.spec.deployment import Deployment, KvCache, Pool
from fourlane.twin.times import GroupLoad

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.gateway.load import PlannedRequest


class _Jumping(selectors.BaseSelector):
    """A selector that waits in no time: the loop's clock jumps instead."""

    def __init__(self) -> None:
        self.now = 0.0
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing can happen any more")
        self.now += max(0.0, timeout)
        return []

    def register(self, *arguments: Any) -> Any:
        return self._real.register(*arguments)

    def unregister(self, *arguments: Any) -> Any:
        return self._real.unregister(*arguments)

    def get_map(self) -> Any:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while it waits."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-12

    def time(self) -> float:
        return self._jumping.now


class _Group:
    """Ranks of a pool which step together: `size` of them, from `first` on."""

    def __init__(self, ranks: LiveRanks, role: str, pool: Pool, first: int, steps: Any) -> None:
        self.ranks, self.role, self.first, self.steps = ranks, role, first, steps
        self.size = pool.expert_parallel or pool.ranks
        blocks = ranks.blocks[role]
        limits = RankLimits(
            chunk_tokens=pool.chunk_tokens, max_running=pool.max_running, max_length=blocks * ranks.block_size,
            block_size=ranks.block_size, eos_ids=frozenset(),
        )  # fmt: skip
        cache = role == "prefill" and pool.prefix_cache
        self.schedulers = [Scheduler(BlockPool(blocks, prefix_cache=cache), limits) for _ in range(self.size)]
        self.inbox: list[tuple[int, Any]] = []
        self.stepping = False

    def put(self, rank: int, call: Any) -> None:
        """Leave something for a rank to do between two steps."""
        self.inbox.append((rank, call))
        if not self.stepping:
            asyncio.get_running_loop().call_soon(self.begin)

    def begin(self) -> None:
        """Begin a step with all that has come, if there is something to compute."""
        if self.stepping:
            return
        while self.inbox:
            rank, call = self.inbox.pop(0)
            call(self.schedulers[rank - self.first])
        planned = []
        for rank, scheduler in enumerate(self.schedulers, start=self.first):
            scheduler.admit()
            for sequence in scheduler.make_room():
                reason = f"evicted: {self.role}/{rank} ran out of pages"
                failed = Failed(sequence_id=sequence.sequence_id, reason=reason, retryable=True)
                self.ranks.say(f"{self.role}/{rank}", failed)
            planned.append(scheduler.schedule())
        if any(step.parts for step in planned):
            self.stepping = True
            seconds = self.steps.step(self._load(planned)).seconds
            asyncio.get_running_loop().call_later(seconds, self.end, planned)

    def end(self, planned: list[Any]) -> None:
        """Commit a step."""
        self.stepping = False
        for rank, (scheduler, step) in enumerate(zip(self.schedulers, planned, strict=True), start=self.first):
            results = scheduler.commit(step, [7] * len(step.sampling))
            self.ranks.computed(f"{self.role}/{rank}", scheduler, results)
        self.begin()

    def _load(self, planned: list[Any]) -> GroupLoad:
        tokens_G = np.array([sum(part.tokens for part in step.parts) for step in planned])
        pairs_G = np.array(
            [
                sum(part.tokens * part.first + part.tokens * (part.tokens + 1) / 2 for part in step.parts)
                for step in planned
            ]
        )
        context_G = np.array([sum(len(part.sequence.token_ids) for part in step.parts) for step in planned])
        prefill = self.role == "prefill"
        return GroupLoad(
            ranks=len(planned),
            prefill_tokens=tokens_G.max() if prefill else 0,
            prefill_pairs=pairs_G.max() if prefill else 0,
            decode_tokens=0 if prefill else tokens_G.max(),
            decode_context=0 if prefill else context_G.max(),
            logits=0,
            tokens=tokens_G.mean(),
        )


class LiveRanks:
    """All ranks of a deployment; implements `RankLink`."""

    def __init__(self, deployment: Deployment, blocks: dict[str, int], steps: dict[str, Any]) -> None:
        self.block_size = deployment.kv_cache.block_size
        self.router: Any = None
        self.targets: dict[int, KvAddress] = {}
        self.blocks = blocks
        self.groups = {
            role: [
                _Group(self, role, pool, first, steps[role])
                for first in range(0, pool.ranks, pool.expert_parallel or pool.ranks)
            ]
            for role, pool in deployment.pools().items()
        }

    def bring_up(self, router: Router) -> None:
        """Let every rank say hello."""
        self.router = router
        for name in router.ranks:
            role, _, index = name.partition("/")
            hello = Hello(
                role=role, rank=int(index), pid=1, host="host", generation=0, kv_blocks=self.blocks[role],
                block_size=self.block_size, max_length=self.blocks[role] * self.block_size, kv_endpoint=None,
                memory_bytes=1, weights_bytes=1, load_seconds=0.0, experts=1, layers=1,
            )  # fmt: skip
            router.rank_ready(name, hello)

    def send(self, rank_name: str, message: Any) -> None:
        """Take a message of the gateway's."""
        group, index = self._group(rank_name)
        if isinstance(message, Reserve):
            group.put(index, lambda scheduler: self._reserve(rank_name, scheduler, message))
        elif isinstance(message, Prefill):
            self.targets[message.sequence.sequence_id] = message.target
            sequence = Sequence.of(message.sequence, target=message.target)
            group.put(index, lambda scheduler: scheduler.submit(sequence))
        elif isinstance(message, Cancel):
            group.put(index, lambda scheduler: self._cancel(scheduler, message))

    def _group(self, name: str) -> tuple[_Group, int]:
        role, _, index = name.partition("/")
        groups = self.groups[role]
        return groups[int(index) // groups[0].size], int(index)

    def say(self, name: str, message: Any) -> None:
        """Tell the gateway something."""
        asyncio.get_running_loop().call_soon(lambda: self.router.handle(name, message))

    def _reserve(self, name: str, scheduler: Scheduler, message: Reserve) -> None:
        sequence = Sequence.of(message.sequence)
        assert scheduler.reserve(sequence), "the gateway's books are stricter than the rank's"
        target = KvAddress(endpoint="", blocks=sequence.blocks, owner=name)
        self.say(name, Reserved(sequence_id=sequence.sequence_id, target=target))

    def _cancel(self, scheduler: Scheduler, message: Cancel) -> None:
        for sequence_id in message.sequence_ids:
            sequence = scheduler.unreserve(sequence_id)
            if sequence is not None:
                scheduler.release(sequence)
            scheduler.cancel(sequence_id)
            scheduler.left(sequence_id)

    def computed(self, name: str, scheduler: Scheduler, results: list[tuple[Sequence, int, Any]]) -> None:
        """Tell tokens; of computed prompts the KV is there at once."""
        events = []
        for sequence, token, reason in results:
            events.append(TokenEvent(sequence.sequence_id, sequence.output_tokens - 1, token, None, None, reason))
            if sequence.target is None:
                continue
            scheduler.left(sequence.sequence_id)
            if reason is not None:
                continue
            group, index = self._group(sequence.target.owner)
            group.put(index, lambda decoder, of=sequence.sequence_id, first=token: decoder.start(of, first))
            delivered = KvDelivered(
                sequence_id=sequence.sequence_id, bytes=0, transfer_s=0.0, hidden_s=0.0,
                cached_tokens=sequence.cached_tokens, target=sequence.target.owner,
            )  # fmt: skip
            self.say(name, delivered)
        if events:
            self.say(name, Tokens(events=events))


def live_times(
    requests: Iterable[PlannedRequest],
    *,
    prefill: Pool,
    decode: Pool,
    blocks: dict[str, int],
    steps: dict[str, Any],
    block_size: int,
) -> list[tuple[float, float, int]]:
    """Return for each request when its first and its last token came, and how often it was evicted."""
    deployment = Deployment(prefill=prefill, decode=decode, kv_cache=KvCache(block_size=block_size))
    loop = JumpingLoop()
    try:
        return loop.run_until_complete(_serve(list(requests), deployment, LiveRanks(deployment, blocks, steps)))
    finally:
        loop.close()


async def _serve(
    requests: list[PlannedRequest], deployment: Deployment, ranks: LiveRanks
) -> list[tuple[float, float, int]]:
    router = Router(ranks, deployment, Limits(max_queued_requests=10**6, request_timeout_s=1e6), Metrics("test"))
    router.start()
    ranks.bring_up(router)
    found = await asyncio.gather(*(_ask(router, request) for request in requests))
    await router.stop(0)
    return list(found)


async def _ask(router: Router, request: PlannedRequest) -> tuple[float, float, int]:
    loop = asyncio.get_running_loop()
    assert request.due_s is not None
    await asyncio.sleep(request.due_s)
    sampling = Sampling(max_tokens=request.max_tokens, temperature=0, ignore_eos=True)
    generation = router.submit(GenerationRequest("test", [ChoiceSpec(list(request.prompt), sampling)]))  # type: ignore[arg-type]
    first = last = -1.0
    async for _ in generation:
        last = loop.time()
        first = last if first < 0 else first
    return first, last, generation.choices[0].evictions
