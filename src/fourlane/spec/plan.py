"""What is to be planned: a model, GPUs of a cluster, a load, what it must meet; and which ways to serve it are tried.

Read from TOML by `fourlane.spec.load.load_plan_spec`. Fields that mean the same are those of `fourlane.spec.twin`. Not
for the search itself (`fourlane.planner.search`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.spec.reading import Fault
from fourlane.spec.twin import Assumptions, Experts, Lanes, Slo, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PlanSpec", "Search", "plan_faults"]


class Search(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which values are tried; an empty list: a choice that suits model and cluster.

    `prefill_ranks`, `decode_ranks`: GPUs of a unit, which is the EP degree. `redundant_experts`, of either phase. `kv`:
    networks for KV cache. How many units there are of each phase is worked out, not listed. `points`: how many
    operating points are worked out at most, the most promising first.
    """

    prefill_ranks: tuple[int, ...] = ()
    decode_ranks: tuple[int, ...] = ()
    redundant_experts: tuple[int, ...] = ()
    max_running: tuple[int, ...] = (64, 128, 256)
    chunk_tokens: tuple[int, ...] = (8192,)
    overlap: tuple[Literal["auto", "never", "always"], ...] = ("never", "always")
    kv: tuple[Literal["hpn", "dcn"], ...] = ()
    points: int = 100


class PlanSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan is asked for.

    `gpus`: at most; None: all of the cluster's. With `workload.rate` the plan serves that rate on as few GPUs as it
    can; without, it uses its GPUs for the greatest rate that meets the SLO. `lanes.kv` is left to the search.
    """

    name: str = "plan"
    model: str
    cluster: str
    hardware: str | None = None
    gpus: int | None = None
    lanes: Lanes = Lanes()
    experts: Experts = Experts()
    workload: Workload
    slo: Slo = Slo()
    assumptions: Assumptions = Assumptions()
    search: Search = Search()
    block_size: int = 64
    seed: int = 0


_LISTS = {"prefill_ranks": 1, "decode_ranks": 1, "redundant_experts": 0, "max_running": 1, "chunk_tokens": 1}
_NEEDED = ("max_running", "chunk_tokens", "overlap")


def plan_faults(spec: PlanSpec) -> Iterator[Fault]:
    """Yield every rule that is broken, those of twins aside, which every candidate is held to."""
    if spec.gpus is not None and spec.gpus < 2:
        yield Fault("gpus", f"expected at least 2, one for each phase, got {spec.gpus}")
    if spec.search.points < 1:
        yield Fault("search.points", f"expected at least 1, got {spec.search.points}")
    for name, least in _LISTS.items():
        wrong = [value for value in getattr(spec.search, name) if value < least]
        if wrong:
            yield Fault(f"search.{name}", f"expected numbers from {least} up, got {wrong[0]}")
    for name in _NEEDED:
        if not getattr(spec.search, name):
            yield Fault(f"search.{name}", "expected at least one value to try, got none")
    if spec.workload.concurrency is not None:
        yield Fault(
            "workload.concurrency",
            f"expected an open loop: workload.rate, or no rate to find the greatest; got {spec.workload.concurrency}",
        )
    if spec.lanes.kv is not None:
        yield Fault("lanes.kv", f'expected it in search.kv, such as search.kv = ["{spec.lanes.kv}"]')
