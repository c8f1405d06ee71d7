"""The same workload in several networks: flows hashed, spread or routed adaptively, queues shared or own, ECN or none.

    comparison = compare(Scenario(net, [all_to_all(net), kv], plan=plan), traffic="expert")

All variants send the same flows over the same topology; only how the class in question is routed, which queue it waits
in and whether that queue marks differ. Not for pictures (`fourlane.report.fabric_plots`).
"""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fourlane.errors import SpecError
from fourlane.lanes.plan import Ecn
from fourlane.twin.fabric.lane_queues import DATA
from fourlane.twin.fabric.parallel import run_many
from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.fabric.settings import ClassSettings, QueueSettings
from fourlane.units import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.twin.fabric.parallel import ManyProgress
    from fourlane.twin.fabric.results import Results

__all__ = ["ROUTINGS", "Compared", "Variant", "compare", "compared", "in_network", "variants"]

ROUTINGS = ("ecmp", "adaptive", "spray")
MARKS = Ecn(kmin=Size.parse("800kB"), kmax=Size.parse("3200kB"), pmax=0.2)
"""Thresholds where neither the plan nor the scenario has any: those that SimAI ships for 400 Gbit/s."""


class Variant(NamedTuple):
    """One network. `queue` is "own" or "shared" (every class in one queue), `ecn` whether that queue marks."""

    routing: str
    queue: str
    ecn: bool

    @property
    def name(self) -> str:
        """Return it in words."""
        return f"{self.routing}, {self.queue} queue, ECN {'on' if self.ecn else 'off'}"


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What one network did to the class in question, and to all others together. None: nothing was counted.

    `factor` is its completion time over the best variant's, None where a variant did not end.

    Units:
        done_us, flow_p99_us: when its last flow was done, and the p99 of its flows' completion times.
        packet_p50_us, packet_p99_us: latency of its packets. goodput, others_goodput: bit/s.
        pauses, marks, drops: over all queues. reorder_depth: packets.
    """

    routing: str
    queue: str
    ecn: bool
    status: str
    done_us: float | None
    factor: float | None
    flow_p99_us: float | None
    packet_p50_us: float | None
    packet_p99_us: float | None
    goodput: float
    others_goodput: float
    pauses: int
    marks: int
    drops: int
    retransmitted: int
    reorder_depth: int


def variants(scenario: Scenario, traffic: str = "expert") -> dict[Variant, Scenario]:
    """Return the scenario in every network to compare.

    Own queues and ECN are those of the plan, where there is one. With a single class there is nothing to share, and
    only the queue it has is compared.

    Raises:
        SpecError: no flow is of that class.
    """
    if traffic not in scenario.flows.kinds:
        raise SpecError(f'compare: expected a class of the flows ({", ".join(scenario.flows.kinds)}), got "{traffic}"')
    queues = ("shared", "own") if len(scenario.flows.kinds) > 1 else ("own",)
    made = [Variant(routing, queue, ecn) for routing in ROUTINGS for queue in queues for ecn in (True, False)]
    return {variant: in_network(scenario, variant, traffic) for variant in made}


def compare(
    scenario: Scenario,
    traffic: str = "expert",
    *,
    processes: int | None = None,
    progress: Callable[[ManyProgress], object] | None = None,
) -> list[Compared]:
    """Simulate every variant and return what each did, in the order of `variants`.

    Raises:
        SpecError: the scenario makes no sense.
        WorkerDied: a process died.
    """
    made = variants(scenario, traffic)
    found = run_many(list(made.values()), processes=processes, progress=progress, partial=True)
    return compared(list(made), found, traffic)


def compared(made: Sequence[Variant], found: Sequence[Results], traffic: str) -> list[Compared]:
    """Return what each variant did to a class, beside the best of them."""
    done = [_done_us(results, traffic) for results in found]
    best = min((time for time in done if time is not None), default=None)
    return [
        _compared(variant, results, traffic, None if time is None or best is None else time / best)
        for variant, results, time in zip(made, found, done, strict=True)
    ]


def in_network(scenario: Scenario, variant: Variant, traffic: str = "expert") -> Scenario:
    """Return a scenario in another network."""
    settings, kinds = scenario.settings, scenario.flows.kinds
    shared = variant.queue == "shared"
    planned = scenario.plan is not None
    queue = traffic if planned or not shared else DATA
    patches: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    if shared and planned:
        patches = {kind: {"queue": queue, "ack_queue": queue} for kind in kinds}
    for kind in kinds if shared else (traffic,):
        patches[kind] |= {"ecn": variant.ecn, "congestion": "dcqcn" if variant.ecn else "none"}
    patches[traffic]["routing"] = variant.routing
    classes = {kind: _over(settings.classes.get(kind, ClassSettings()), patch) for kind, patch in patches.items()}
    marks: Any = _marks(scenario, traffic) if variant.ecn else "off"
    queues = {**settings.queues, queue: _over(settings.queues.get(queue, QueueSettings()), {"ecn": marks})}
    given: dict[str, Any] = {name: getattr(settings, name) for name in settings.__struct_fields__}
    given |= {"classes": {**settings.classes, **classes}, "queues": queues}
    if not planned:
        given["lanes"] = variant.queue
    return Scenario(scenario.topology, scenario.flows, plan=scenario.plan, **given)


def _marks(scenario: Scenario, traffic: str) -> Ecn:
    """Return the thresholds of a queue that marks: its own, or those of another lane of the plan."""
    own = scenario.settings.queues.get(traffic)
    if own is not None and isinstance(own.ecn, Ecn):
        return own.ecn
    lanes = [] if scenario.plan is None else list(scenario.plan.classes.values())
    return next((lane.ecn for lane in lanes if isinstance(lane.ecn, Ecn)), MARKS)


def _over(base: Any, patch: dict[str, Any]) -> Any:
    return msgspec.structs.replace(base, **patch)


def _done_us(results: Results, traffic: str) -> float | None:
    """Return when the last flow of a class was done; None if not all were."""
    finish = results.finish_us[results.flows_of(traffic)]
    last = float(finish.max()) if len(finish) else float("nan")
    return None if isnan(last) else last


def _compared(variant: Variant, results: Results, traffic: str, factor: float | None) -> Compared:
    chosen = results.flows_of(traffic)
    others = [name for name in results.class_names if name != traffic and results.flows_of(name).any()]
    return Compared(
        routing=variant.routing,
        queue=variant.queue,
        ecn=variant.ecn,
        status=results.status,
        done_us=_done_us(results, traffic),
        factor=factor,
        flow_p99_us=_known(results.completion_percentile(traffic, 99)),
        packet_p50_us=_known(results.percentile(traffic, 50)),
        packet_p99_us=_known(results.percentile(traffic, 99)),
        goodput=results.goodput(traffic),
        others_goodput=sum(results.goodput(name) for name in others),
        pauses=results.total("pauses"),
        marks=results.total("marks"),
        drops=results.total("drops"),
        retransmitted=int(results.retransmitted[chosen].sum()),
        reorder_depth=int(results.reorder_depth[chosen].max(initial=0)),
    )


def _known(value: float) -> float | None:
    return None if isnan(value) else value
