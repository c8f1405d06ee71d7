"""How the service does, for /health and for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.gateway.expert_balance import balance_of
from fourlane.gateway.figures import percentile
from fourlane.gateway.lanes import LaneState, lane_states
from fourlane.gateway.rank_metrics import pool_balance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.gateway.ranks import RankView
    from fourlane.gateway.state import GatewayState

__all__ = ["Health", "Stats", "health", "lanes_now", "stats"]

LARGEST_HEAT = 8192
"""Cells (layers times experts) up to which a pool's expert use is shown layer by layer."""


class PoolBalance(msgspec.Struct, kw_only=True):
    """Rows of the fullest rank over the mean, all layers, lately.

    "before": had each expert's tokens been spread evenly over its replicas; "after": as they were split.
    """

    before: float
    after: float


class GroupOverlap(msgspec.Struct, kw_only=True):
    """How the steps of an expert-parallel group run: its last step's mode and the reason, the share run in two streams.

    `predicted_gain`, `measured_gain`: by what factor two streams are faster than one; None where unknown.
    """

    mode: str
    why: str
    dual_share: float
    predicted_gain: float | None
    measured_gain: float | None


class PoolHealth(msgspec.Struct, kw_only=True):
    """A pool's ranks: how many serve, how many there should be, what is the matter with the others.

    `balance` is None before there were tokens; `overlap` has an entry for each group of several ranks that
    has reported.
    """

    ready: int
    ranks: int
    problems: dict[str, str]
    balance: PoolBalance | None
    overlap: list[GroupOverlap]


class Health(msgspec.Struct, kw_only=True):
    """The service's state. "ok": every rank serves; "degraded": every pool has a rank that does."""

    status: Literal["ok", "degraded", "unavailable", "stopping"]
    model: str
    pools: dict[str, PoolHealth]
    lanes: dict[str, LaneState]


class RankFigures(msgspec.Struct, kw_only=True):
    """One rank on the page. Units: step_s, exchange_s: seconds since the service began, in steps and in exchanges."""

    name: str
    state: str
    detail: str
    pid: int | None
    host: str | None
    restarts: int
    running: int
    waiting: int
    queued_tokens: int
    kv_use: float
    kv_pages: int
    steps: int
    step_s: float
    exchange_s: float
    memory_bytes: int
    lanes: dict[str, int]


class PoolFigures(msgspec.Struct, kw_only=True):
    """One pool on the page; `experts` is [rows, experts], a row a layer (or one for all of them)."""

    name: str
    ranks: list[RankFigures]
    balance: float | None
    experts: list[list[int]]


class Stats(msgspec.Struct, kw_only=True):
    """What the page shows. Units: *_s seconds."""

    model: str
    status: str
    uptime_s: float
    needs_key: bool
    max_length: int
    running: int
    waiting: int
    pools: list[PoolFigures]
    lanes: dict[str, int]
    first_token_s: list[float | None]
    """p50 and p99 of the last texts."""
    per_token_s: list[float | None]
    tokens_per_second: list[int]
    tokens: int
    kv_bytes: int
    kv_transfer_s: float
    kv_hidden_s: float


def health(state: GatewayState) -> Health:
    """Return the service's state, pool by pool."""
    pools: dict[str, PoolHealth] = {}
    for role, ranks in _by_pool(state).items():
        problems = {rank.name: f"{rank.state}: {rank.detail}" for rank in ranks if rank.state != "ready"}
        ready = len(ranks) - len(problems)
        pools[role] = PoolHealth(
            ready=ready, ranks=len(ranks), problems=problems, balance=_balance(ranks), overlap=_overlap(ranks)
        )
    return Health(status=_status(state, pools), model=state.model.name, pools=pools, lanes=lanes_now(state))


def _balance(ranks: list[RankView]) -> PoolBalance | None:
    found = balance_of(rank.balance for rank in ranks)
    return None if found is None else PoolBalance(before=round(found.before, 4), after=round(found.after, 4))


def _overlap(ranks: list[RankView]) -> list[GroupOverlap]:
    """Return one entry a group: its ranks decide alike, so the first that has reported speaks for all."""
    size = (ranks[0].pool.expert_parallel or ranks[0].pool.ranks) if ranks else 1
    groups = [ranks[first : first + size] for first in range(0, len(ranks), size)] if size > 1 else []
    told = [next((rank for rank in group if rank.stats is not None), None) for group in groups]
    return [_group_overlap(rank) for rank in told if rank is not None]


def _group_overlap(rank: RankView) -> GroupOverlap:
    assert rank.stats is not None, "only of ranks that have reported"
    overlap, totals = rank.stats.overlap, rank.overlap_totals()
    steps = totals["single"] + totals["dual"]
    return GroupOverlap(
        mode=overlap.mode,
        why=overlap.why,
        dual_share=round(totals["dual"] / steps, 4) if steps else 0.0,
        predicted_gain=_rounded(overlap.predicted_gain),
        measured_gain=_rounded(overlap.measured_gain),
    )


def _rounded(gain: float | None) -> float | None:
    return None if gain is None else round(gain, 3)


def lanes_now(state: GatewayState) -> dict[str, LaneState]:
    """Return the state of every lane."""
    return lane_states(state.deployment, state.lanes.marks, state.router.ranks.values(), state.lanes.opened())


def _status(state: GatewayState, pools: dict[str, PoolHealth]) -> Literal["ok", "degraded", "unavailable", "stopping"]:
    if state.router.stopping:
        return "stopping"
    if any(pool.ready == 0 for pool in pools.values()):
        return "unavailable"
    return "degraded" if any(pool.problems for pool in pools.values()) else "ok"


def _by_pool(state: GatewayState) -> dict[str, list[RankView]]:
    pools: dict[str, list[RankView]] = {}
    for rank in state.router.ranks.values():
        pools.setdefault(rank.role, []).append(rank)
    return pools


def stats(state: GatewayState, now: float) -> Stats:
    """Return what the page shows; `now` by the event loop's clock."""
    router, metrics = state.router, state.metrics
    figures = metrics.figures
    balance = pool_balance(router.ranks.values())
    lanes: dict[str, int] = {}
    for rank in router.ranks.values():
        for lane, total in rank.lane_bytes().items():
            lanes[lane] = lanes.get(lane, 0) + total
    return Stats(
        model=state.model.name,
        status=health(state).status,
        uptime_s=round(now - router.started_at, 1),
        needs_key=state.deployment.gateway.api_key is not None,
        max_length=state.max_length(),
        running=router.running,
        waiting=router.waiting,
        pools=[_pool(role, ranks, balance.get(role)) for role, ranks in _by_pool(state).items()],
        lanes=dict(sorted(lanes.items())),
        first_token_s=_percentiles(figures.first_token),
        per_token_s=_percentiles(figures.per_token),
        tokens_per_second=figures.tokens_per_second(now),
        tokens=metrics.generated_tokens,
        kv_bytes=metrics.kv_transfer_bytes,
        kv_transfer_s=metrics.kv_transfer_s,
        kv_hidden_s=metrics.kv_hidden_s,
    )


def _percentiles(values: Sequence[float]) -> list[float | None]:
    return [percentile(list(values), 50), percentile(list(values), 99)]


def _pool(role: str, ranks: list[RankView], balance: float | None) -> PoolFigures:
    return PoolFigures(name=role, ranks=[_rank(rank) for rank in ranks], balance=balance, experts=_heat(ranks))


def _rank(rank: RankView) -> RankFigures:
    hello, latest, totals = rank.hello, rank.stats, rank.totals()
    return RankFigures(
        name=rank.name,
        state=rank.state,
        detail=rank.detail,
        pid=hello.pid if hello is not None else None,
        host=hello.host if hello is not None else None,
        restarts=rank.restarts,
        running=latest.running if latest is not None else rank.owned,
        waiting=latest.waiting if latest is not None else 0,
        queued_tokens=rank.queued_tokens,
        kv_use=round(rank.kv_use(), 4),
        kv_pages=rank.total_pages,
        steps=int(totals["steps"]),
        step_s=totals["step_s"],
        exchange_s=totals["exchange_s"],
        memory_bytes=latest.memory_bytes if latest is not None else 0,
        lanes=rank.lane_bytes(),
    )


def _heat(ranks: list[RankView]) -> list[list[int]]:
    """Return tokens by layer and expert, summed over a pool's ranks; by expert alone if that is too much."""
    shape = next(((rank.hello.layers, rank.hello.experts) for rank in ranks if rank.hello is not None), (0, 0))
    layers, experts = shape
    phases = (tokens for rank in ranks for tokens in rank.expert_tokens.values())
    known = [tokens for tokens in phases if len(tokens) == layers * experts]
    if not known or not experts:
        return []
    total = [sum(column) for column in zip(*known, strict=True)]
    rows = [total[first : first + experts] for first in range(0, len(total), experts)]
    return rows if len(total) <= LARGEST_HEAT else [[sum(column) for column in zip(*rows, strict=True)]]
