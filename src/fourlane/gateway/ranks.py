"""What the gateway knows of each rank: its state, its figures, and what it was given.

The gateway is the ranks' only client, so its own books are ahead of what a rank last reported.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, Protocol

from fourlane.gateway.expert_balance import RecentBalance
from fourlane.policy.request_routing import DecodeCandidate, PrefillCandidate, prefix_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.engine.messages import Hello, RankStats, ToRank
    from fourlane.gateway.generation import Attempt
    from fourlane.lanes.connections import LikeConnections
    from fourlane.spec.deployment import Deployment, Pool

__all__ = [
    "MIGRATION_TOTALS",
    "OVERLAP_TOTALS",
    "TOTALS",
    "RankLink",
    "RankState",
    "RankView",
    "expected_ranks",
    "rank_name",
]

OVERLAP_TOTALS = ("trial_steps", "communication_s", "hidden_s")
"""The running totals in `RankStats.overlap`, besides steps by mode."""

MIGRATION_TOTALS = ("layers_migrated", "experts_moved", "migration_bytes", "migration_s", "migrations_failed")
"""The running totals in `RankStats.balance`."""

TOTALS = ("steps", "idle_steps", "step_s", "exchange_s", "prompt_tokens", "cached_tokens", "output_tokens", "evictions")
"""The running totals in `RankStats`."""

RankState = Literal["starting", "ready", "paused", "lost"]


class RankLink(Protocol):
    """The way to the ranks. What they answer is passed to `Router.handle`."""

    def send(self, rank_name: str, message: ToRank) -> None:
        """Queue a message to a rank; never blocks. A rank that is gone swallows it."""
        ...


def rank_name(role: str, index: int) -> str:
    """Return a rank's name, such as "decode/1"."""
    return f"{role}/{index}"


def expected_ranks(deployment: Deployment) -> dict[str, RankView]:
    """Return a view of every rank the deployment asks for, by name, none of them up yet."""
    return {
        rank_name(role, index): RankView(role, index, pool, deployment.kv_cache.block_size)
        for role, pool in deployment.pools().items()
        for index in range(pool.ranks)
    }


class RankView:
    """One rank, as the gateway sees it."""

    def __init__(self, role: str, index: int, pool: Pool, block_size: int) -> None:
        self.name = rank_name(role, index)
        self.role = role
        self.index = index
        self.pool = pool
        self.block_size = block_size
        self.state: RankState = "starting"
        self.detail = "has not reported yet"
        self.hello: Hello | None = None
        self.stats: RankStats | None = None
        self.restarts = 0
        self.attempts: set[Attempt] = set()
        """Attempts it takes part in, in either role."""
        self.owned = 0
        """Sequences whose pages it holds (decode and unified ranks)."""
        self.pages = 0
        """KV pages of those sequences, by our books."""
        self.queued_tokens = 0
        """Prompt tokens sent to it whose first token has not come."""
        self.blocked_until = 0.0
        """It refused a reservation: no more before this time, or its next figures."""
        self.expert_tokens: dict[str, list[int]] = {}
        """Its tokens routed to each expert, [layers * experts], by phase; the last it sent."""
        self.balance = RecentBalance()
        self._lanes_before: dict[str, int] = {}
        self._before: dict[str, float] = {}
        self._migrations_before: dict[str, float] = {}
        self._overlap_before: dict[str, float] = {}
        self._step_exchange_before: list[int] = []
        """Totals of its earlier processes, so that they do not fall when it restarts."""
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    @property
    def total_pages(self) -> int:
        """Return the KV pages it has; 0 until it has said so."""
        return self.hello.kv_blocks if self.hello is not None else 0

    @property
    def generation(self) -> int:
        """Return the generation of its expert-parallel group; -1 until it has said so."""
        return self.hello.generation if self.hello is not None else -1

    def available(self, now: float) -> bool:
        """Tell whether it may be given a new sequence."""
        return self.state == "ready" and now >= self.blocked_until

    def prefill_face(
        self, hashes: Sequence[bytes], tokens: int, now: float, *, step_tokens: int = 0
    ) -> PrefillCandidate:
        """Return it as a candidate to prefill a prompt of `tokens` tokens with these block hashes."""
        cached = 0
        if self.pool.prefix_cache and self._seen:
            cached = prefix_tokens(hashes, self._seen, block_size=self.block_size, prompt_tokens=tokens)
        return PrefillCandidate(self.queued_tokens, cached, self.available(now), step_tokens)

    def decode_face(self, now: float) -> DecodeCandidate:
        """Return it as a candidate to decode."""
        return DecodeCandidate(
            free_pages=self.total_pages - self.pages,
            total_pages=self.total_pages,
            running=self.owned,
            max_running=self.pool.max_running,
            available=self.available(now),
        )

    def remember_prefix(self, hashes: Sequence[bytes]) -> None:
        """Note that these blocks will be in its prefix cache; as many as it has pages are kept."""
        for digest in hashes:
            self._seen[digest] = None
            self._seen.move_to_end(digest)
        while len(self._seen) > max(1, self.total_pages):
            self._seen.popitem(last=False)

    def up(self, hello: Hello) -> None:
        """Note that it can serve."""
        if self.hello is not None and self.hello.pid != hello.pid:
            self.restarts += 1
        self.hello = hello
        self.state = "ready"
        self.detail = ""
        self.blocked_until = 0.0

    def down(self, reason: str) -> None:
        """Note that its process has gone, and with it its cache."""
        self.state = "lost"
        self.detail = reason
        self._seen.clear()
        self._lanes_before, self._before = self.lane_bytes(), self.totals()
        self._migrations_before = self.migration_totals()
        self._overlap_before = self.overlap_totals()
        self._step_exchange_before = self.step_exchange_times()
        self.stats = None

    def report(self, stats: RankStats, now: float) -> None:
        """Take its latest figures."""
        self.stats = stats
        self.blocked_until = 0.0
        self.expert_tokens |= stats.expert_tokens
        self.balance.report(stats.balance, now)

    def lane_bytes(self) -> dict[str, int]:
        """Return bytes sent by traffic class since the service began, over all its processes."""
        totals = dict(self._lanes_before)
        if self.stats is not None:
            for lane, total in self.stats.lane_bytes.items():
                totals[lane] = totals.get(lane, 0) + total
        return totals

    def connections(self) -> list[LikeConnections]:
        """Return what its process has opened on its lanes, by its latest word."""
        said = self.stats or self.hello
        return said.connections if said is not None else []

    def totals(self) -> dict[str, float]:
        """Return its running totals (the names of `TOTALS`) since the service began, over all its processes."""
        now = self.stats
        return {name: self._before.get(name, 0) + (getattr(now, name) if now is not None else 0) for name in TOTALS}

    def migration_totals(self) -> dict[str, float]:
        """Return its totals of experts moved (the names of `MIGRATION_TOTALS`), over all its processes."""
        now = self.stats.balance if self.stats is not None else None
        before = self._migrations_before
        return {name: before.get(name, 0) + (getattr(now, name) if now is not None else 0) for name in MIGRATION_TOTALS}

    def overlap_totals(self) -> dict[str, float]:
        """Return its steps by mode ("single", "dual") and its totals of two streams, over all its processes."""
        found = dict(self._overlap_before)
        if self.stats is not None:
            overlap = self.stats.overlap
            now = overlap.steps | {name: getattr(overlap, name) for name in OVERLAP_TOTALS}
            for name, total in now.items():
                found[name] = found.get(name, 0) + total
        return found

    def step_exchange_times(self) -> list[int]:
        """Return its steps by their time in the exchange, over all its processes; empty before any report."""
        now = self.stats.step_exchange_times if self.stats is not None else []
        return [old + new for old, new in zip_longest(self._step_exchange_before, now, fillvalue=0)]

    def kv_use(self) -> float:
        """Return the share of KV pages in use, 0 to 1: by its own report, else by our books."""
        if self.stats is not None and self.stats.total_blocks:
            return 1 - self.stats.free_blocks / self.stats.total_blocks
        return self.pages / self.total_pages if self.total_pages else 0.0
