"""What KV cache on the same network does to an exchange, by packet runs.

In a run, KV cache comes to (decode) or goes out of (prefill) a quarter of the ranks all the while, at the rate of the
NIC: how many ranks it is makes little difference, as the exchange waits for the slowest. What it takes longer then is
weighted by the chance that any rank has a transfer at all. Not for what exchanges do to KV cache
(`fourlane.twin.kv_path`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import msgspec

from fourlane.spec.traffic import TrafficClass
from fourlane.twin.exchange.cache import keep, kept, key_of
from fourlane.twin.exchange.runs import ExchangeRun, completed
from fourlane.twin.exchange.shipped import shipped_slowdowns
from fourlane.twin.fabric.expert_kernels import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fourlane.twin.exchange.setting import ExchangeSetting
    from fourlane.twin.exchange.table import ExchangeTable, Measured
    from fourlane.twin.fabric.parallel import ManyProgress

__all__ = ["background_slowdowns", "beside_kv", "fill_beside_kv", "key_beside_kv", "kv_lane_share"]

KIND = "exchange-beside-kv"
_SHARE_OF_RANKS = 4
_LONGER = 2.5
"""Times the exchange alone that KV cache goes on for: longer than any exchange beside it was seen to take."""


class BesideKv(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds on the network with KV cache on the NICs of some ranks, over those without."""

    key: str
    slowdowns: dict[str, float]


def background_slowdowns(table: ExchangeTable, share: float) -> dict[str, float]:
    """Return by what the network's time of each operation grows, by chance of a transfer at any rank.

    Args:
        table: of the exchange alone.
        share: of each rank's NIC that KV cache takes, mean over time.
    """
    busy = min(1.0, share / kv_lane_share(table.setting))
    any_rank = 1.0 - (1.0 - busy) ** table.setting.ranks
    return {operation: 1.0 + any_rank * (found - 1.0) for operation, found in beside_kv(table).items()}


def kv_lane_share(setting: ExchangeSetting) -> float:
    """Return the share of the NIC that KV cache gets with nobody beside it: the cap of its lane, if it has one."""
    lanes = setting.lanes
    cap = None if lanes.plan is None else lanes.plan.classes[TrafficClass.KV].cap
    return 1.0 if cap is None or lanes.queue == "shared" else cap / 100


def beside_kv(table: ExchangeTable) -> dict[str, float]:
    """Return by what each operation grows while some ranks have a transfer all the time: kept, shipped, or run."""
    return fill_beside_kv([table])[0]


def fill_beside_kv(
    tables: Sequence[ExchangeTable],
    *,
    processes: int | None = 1,
    progress: Callable[[ManyProgress], object] | None = None,
) -> list[dict[str, float]]:
    """Do so for many tables, all runs that are missing side by side; `processes` and `progress` as of `run_many`."""
    keys = [key_beside_kv(table) for table in tables]
    wanted = {key: table for key, table in zip(keys, tables, strict=True) if not _known(key)}
    for key, slowdowns in _simulated(wanted, processes, progress).items():
        _found()[key] = slowdowns
        keep(KIND, key, BesideKv(key=key, slowdowns=slowdowns))
    return [_found()[key] for key in keys]


def _known(key: str) -> bool:
    """Tell whether something was found before, here or elsewhere; and have it at hand then."""
    if key not in _found():
        held = kept(KIND, key, BesideKv)
        slowdowns = held.slowdowns if held is not None and held.key == key else shipped_slowdowns(key)
        if slowdowns is not None:
            _found()[key] = slowdowns
    return key in _found()


def key_beside_kv(table: ExchangeTable) -> str:
    """Return the key of what KV cache does to a table: the table's own, its lanes, how it is run."""
    lanes = table.setting.lanes
    plan = None if lanes.plan is None else msgspec.structs.replace(lanes.plan, name="")
    return key_of([table.key, msgspec.structs.replace(lanes, plan=plan), _SHARE_OF_RANKS, _LONGER])


@cache
def _found() -> dict[str, dict[str, float]]:
    return {}


def _simulated(
    wanted: Mapping[str, ExchangeTable], processes: int | None, progress: Callable[[ManyProgress], object] | None
) -> dict[str, dict[str, float]]:
    """Return by what each operation of tables grows while some ranks have a transfer all the time, from packet runs."""
    alone = [(key, operation, _largest(table, operation)) for key, table in wanted.items() for operation in OPERATIONS]
    runs = [
        ExchangeRun(
            wanted[key].setting,
            operation,
            run.tokens,
            kv_ranks=max(1, wanted[key].setting.ranks // _SHARE_OF_RANKS),
            kv_s=run.seconds * _LONGER,
        )
        for key, operation, run in alone
    ]
    found: dict[str, dict[str, float]] = {key: {} for key in wanted}
    done = completed(runs, processes, progress) if runs else []
    for (key, operation, before), run, results in zip(alone, runs, done, strict=True):
        seconds = run.read(results, run.setting.topology(run.servers)).seconds
        found[key][operation] = max(1.0, seconds / before.seconds)
    return found


def _largest(table: ExchangeTable, operation: str) -> Measured:
    """Return the largest balanced run of an operation."""
    balanced = (run for run in table.runs if run.operation == operation and run.max_over_mean == 1.0)
    return max(balanced, key=lambda run: run.tokens)
