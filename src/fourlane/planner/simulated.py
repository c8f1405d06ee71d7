"""Simulate a plan's row request by request, at the rate that its closed form promises.

The closed form takes a step's ranks to attend to equally many positions; where prompts differ much, the rank with the
longest holds the others up, and a row can promise more than the simulation keeps. So simulate before you trust a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.twin.assembly import assemble
from fourlane.twin.serving.simulation import simulate

if TYPE_CHECKING:
    from fourlane.planner.values import PlanRow
    from fourlane.twin.serving.results import ServingResults

__all__ = ["simulated"]

SECONDS = 45.0
"""Of load: longer than most answers take."""
LEAST, MOST = 600, 30_000


def simulated(row: PlanRow) -> ServingResults:
    """Return what the simulation makes of a row; the first third of its requests does not count."""
    load = row.twin.workload
    if load.trace is None:
        requests = int(min(MOST, max(LEAST, row.point.rate * SECONDS)))
        load = msgspec.structs.replace(load, rate=row.point.rate, requests=requests, warmup=requests // 3)
    return simulate(assemble(msgspec.structs.replace(row.twin, workload=load)))
