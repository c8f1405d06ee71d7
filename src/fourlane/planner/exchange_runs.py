"""Have the packets simulated that a search will ask for, side by side, before it asks for them one by one.

Not for how exchange times are worked out or kept (`fourlane.twin.exchange`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.twin.assembly import exchange_settings
from fourlane.twin.exchange.background import fill_beside_kv
from fourlane.twin.exchange.filling import exchange_tables
from fourlane.twin.exchange.lanes import lanes_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fourlane.spec.architecture import Architecture
    from fourlane.spec.cluster import Cluster
    from fourlane.spec.twin import Twin

__all__ = ["simulate_exchanges"]


def simulate_exchanges(
    twins: Iterable[Twin],
    architecture: Architecture,
    cluster: Cluster,
    *,
    processes: int | None = None,
    tell: Callable[[int, int, str], object],
) -> None:
    """Fill the tables of exchange times of twins, and what KV cache on the experts' network does to them.

    Args:
        twins: of one model on one cluster.
        architecture, cluster: what they name.
        processes: that simulate at once; None: as many as there are processors, where that is worth while.
        tell: called with how much is done, of how much, and what is being done.
    """
    settings = [
        setting
        for twin in twins
        for setting in exchange_settings(twin, architecture, cluster, lanes_case(twin.lanes, cluster)).values()
    ]
    words = "simulating exchanges"
    tables = exchange_tables(settings, processes=processes, progress=lambda now: tell(now.done, now.total, words))
    beside = [table for table in tables if table.setting.lanes.kv_network == "hpn" and table.setting.by_nic]
    fill_beside_kv(beside, processes=processes, progress=lambda now: tell(now.done, now.total, f"{words} beside KV"))
