"""What the demo measures, from the client's side and from the service's own account, and its one table."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from fourlane.cli.load_view import send_with_progress
from fourlane.errors import EngineError
from fourlane.gateway.load import Load, Summary, summarize

if TYPE_CHECKING:
    from fourlane.gateway.load import Client, LoadPlan
    from fourlane.report.tables import Table

__all__ = ["DemoResult", "figures_table", "measure"]

_REPORT_S = 2.2
"""Ranks report their totals at least every two seconds; after this the last ones are in."""


class _Rank(msgspec.Struct):
    """The fields of a rank in `/stats` that the demo reads. Units: *_s seconds."""

    name: str
    memory_bytes: int
    step_s: float
    exchange_s: float
    lanes: dict[str, int]


class _Pool(msgspec.Struct):
    name: str
    ranks: list[_Rank]
    balance: float | None


class _Stats(msgspec.Struct):
    """The fields of `/stats` that the demo reads. Units: *_s seconds."""

    model: str
    pools: list[_Pool]
    lanes: dict[str, int]
    kv_bytes: int
    kv_transfer_s: float
    kv_hidden_s: float


class PoolResult(msgspec.Struct, frozen=True, kw_only=True):
    """One pool under the load: share of step time spent waiting for the exchange, balance, memory of each rank."""

    ranks: int
    exchange_share: float
    balance_max_over_mean: float | None
    memory_bytes: dict[str, int]


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """Every figure of a demo. Units: *_s seconds."""

    model: str
    first_token_s: float
    load: Summary
    kv_bytes: int
    kv_transfer_s: float
    kv_hidden_share: float | None
    lane_bytes: dict[str, int]
    pools: dict[str, PoolResult]


async def measure(client: Client, plan: LoadPlan, *, concurrency: int, first_token_s: float) -> DemoResult:
    """Send a load under a progress bar and return what was measured.

    The service's counters go in as what they grew by during the load.

    Raises:
        KeyboardInterrupt: Ctrl-C came during the load.
    """
    before = await _stats_of(client)
    records, interrupted = await send_with_progress(client, Load(model=before.model, concurrency=concurrency), plan)
    if interrupted:
        raise KeyboardInterrupt
    await asyncio.sleep(_REPORT_S)
    after = await _stats_of(client)
    transfer_s = after.kv_transfer_s - before.kv_transfer_s
    earlier = {pool.name: pool for pool in before.pools}
    return DemoResult(
        model=after.model,
        first_token_s=first_token_s,
        load=summarize(records),
        kv_bytes=after.kv_bytes - before.kv_bytes,
        kv_transfer_s=transfer_s,
        kv_hidden_share=(after.kv_hidden_s - before.kv_hidden_s) / transfer_s if transfer_s else None,
        lane_bytes={lane: total - before.lanes.get(lane, 0) for lane, total in after.lanes.items()},
        pools={pool.name: _pool_result(earlier[pool.name], pool) for pool in after.pools},
    )


def _pool_result(before: _Pool, after: _Pool) -> PoolResult:
    def grown(field: str) -> float:
        return sum(getattr(rank, field) for rank in after.ranks) - sum(getattr(rank, field) for rank in before.ranks)

    step_s = grown("step_s")
    return PoolResult(
        ranks=len(after.ranks),
        exchange_share=grown("exchange_s") / step_s if step_s else 0.0,
        balance_max_over_mean=after.balance,
        memory_bytes={rank.name: rank.memory_bytes for rank in after.ranks},
    )


async def _stats_of(client: Client) -> _Stats:
    response = await client.get("/stats")
    try:
        return msgspec.json.decode(bytes(response.body), type=_Stats)
    except msgspec.MsgspecError as error:
        raise EngineError(f"/stats: status {response.status}, not the figures expected: {error}") from error


def figures_table(result: DemoResult) -> Table:
    """Return the one table of the demo."""
    from fourlane.report.tables import Table, byte_text, milliseconds, number, percent

    load, pools = result.load, result.pools

    def by_pool(text: dict[str, str]) -> str:
        return ", ".join(f"{name} {value}" for name, value in text.items())

    throughput = f"{number(load.output_tokens_per_s)} output tokens/s, {number(load.total_tokens_per_s)} with prompts"
    rows = [
        ("time to first token, p50 / p99", f"{milliseconds(load.ttft_s.p50)} / {milliseconds(load.ttft_s.p99)}"),
        ("time per output token, p50 / p99", f"{milliseconds(load.tpot_s.p50)} / {milliseconds(load.tpot_s.p99)}"),
        ("throughput", throughput),
        ("requests answered", f"{load.completed} of {load.requests}"),
    ]  # fmt: skip
    if result.kv_hidden_share is not None:
        rows.append(("KV sent from prefill to decode", byte_text(result.kv_bytes)))
        rows.append(("KV time hidden behind prefill", percent(result.kv_hidden_share)))
    rows.append(("exchange, share of step time", by_pool({n: percent(p.exchange_share) for n, p in pools.items()})))
    balances = {n: f"{p.balance_max_over_mean:.2f}" for n, p in pools.items() if p.balance_max_over_mean is not None}
    if balances:
        rows.append(("expert load of ranks, max / mean", by_pool(balances)))
    rows.extend((f"bytes on the {lane} lane", byte_text(total)) for lane, total in result.lane_bytes.items() if total)
    memory = {n: f"{byte_text(max(p.memory_bytes.values(), default=0))}" for n, p in pools.items()}
    rows.append(("memory of a rank, largest", by_pool(memory)))
    rows.append(("process start to first token", f"{number(result.first_token_s)} s"))
    return Table(
        title="", columns=(f"{_pools_text(pools)}", "measured"), rows=tuple(rows), left=frozenset({"measured"})
    )


def _pools_text(pools: dict[str, PoolResult]) -> str:
    return " + ".join(f"{pool.ranks} {name}" for name, pool in pools.items())
