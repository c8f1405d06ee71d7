"""The measures that lanes, balancing and overlap are, taken one after another on a user's cluster.

    result = ladder(load_twin("h800-10k"))

The baseline has everything as clusters come: ECMP, one queue for all classes, ECN with DCQCN, KV cache beside expert
traffic, experts in order, one stream. Each rung takes one measure more; what it brings is said in time to first token
and time per token at one rate that all rungs serve, and in throughput. Exchange is that of packets in the rung's lanes,
times what the other units of the cluster add to it. Not for drawing it (`fourlane.report.twin_ladder`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from fourlane.twin.assembly import assemble, exchange_settings, named_parts
from fourlane.twin.cluster_exchange import SlowedExchange, beside_others
from fourlane.twin.exchange.filling import exchange_tables
from fourlane.twin.exchange.lanes import lanes_case
from fourlane.twin.ladder_values import LadderResult, Rung
from fourlane.twin.operating_point import operating_point, saturation_point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.spec.cluster import Cluster
    from fourlane.spec.twin import Twin
    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.exchange.setting import ExchangeSetting
    from fourlane.twin.point_values import OperatingPoint
    from fourlane.twin.times import ExchangeTimes

__all__ = ["RATE_SHARE", "Measure", "ladder", "measures"]

RATE_SHARE = 0.7
"""Of what the weakest rung can serve: the rate at which latencies are compared."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A rung before it is worked out: its name, what changes, and the service with it and all before."""

    name: str
    says: str
    twin: Twin


def ladder(
    twin: Twin, *, progress: Callable[[Any], object] | None = None, processes: int | None = None
) -> LadderResult:
    """Climb the ladder.

    Args:
        twin: the service; what the measures are about is changed, the rest stays.
        progress: called while packets are simulated.
        processes: that simulate packets at once; None: as many as there are processors.

    Raises:
        SpecError: with every fault of the twin.
        SimulationError: a packet run did not end.
    """
    begin_s = time.monotonic()
    _, cluster, _ = named_parts(twin)
    skipped: dict[str, str] = {}
    climbed = list(measures(twin, cluster, skipped))
    _fill_tables(climbed, cluster, progress, processes)
    alone = [assemble(measure.twin) for measure in climbed]
    assemblies = [_beside_others(assembly) for assembly in alone]
    peaks = [saturation_point(assembly) for assembly in assemblies]
    weakest = min(range(len(peaks)), key=lambda place: peaks[place].rate)
    rate = RATE_SHARE * peaks[weakest].rate
    points = [operating_point(assembly, rate) for assembly in assemblies]
    rungs = list[Rung]()
    for place, (measure, assembly) in enumerate(zip(climbed, assemblies, strict=True)):
        before = None if place == 0 else (points[place - 1], peaks[place - 1])
        rungs.append(_rung(measure, assembly, points[place], peaks[place], before))
    return LadderResult(
        name=twin.name,
        gpus=twin.gpus,
        rate=rate,
        rate_says=f'{RATE_SHARE:.0%} of what "{climbed[weakest].name}" can serve',
        rungs=tuple(rungs),
        total=_gain((points[0], peaks[0]), (points[-1], peaks[-1])),
        seconds=time.monotonic() - begin_s,
        skipped=skipped,
    )


def measures(twin: Twin, cluster: Cluster, skipped: dict[str, str]) -> Iterator[Measure]:
    """Yield the rungs, from the baseline up.

    Args:
        twin: the service.
        cluster: it is on.
        skipped: noted here: measures that do not apply, and why.
    """
    experts, lanes = twin.experts, twin.lanes
    at = replace(
        twin,
        lanes=replace(lanes, routing="ecmp", expert_queue="shared", ecn=True, kv="hpn"),
        experts=experts if experts.forced else replace(experts, placement="linear", split=False),
        prefill=replace(twin.prefill, redundant_experts=0, overlap="never"),
        decode=replace(twin.decode, redundant_experts=0, overlap="never"),
    )
    yield Measure("Baseline", "ECMP, shared queue, ECN on, KV on the HPN, experts in order, one stream", at)
    routing: Literal["adaptive", "spray"] = "spray" if lanes.routing == "spray" else "adaptive"
    at = replace(at, lanes=replace(at.lanes, routing=routing))
    yield Measure("Adaptive routing" if routing == "adaptive" else "Packet spray", f"ECMP -> {routing} routing", at)
    at = replace(at, lanes=replace(at.lanes, expert_queue="own"))
    yield Measure("Own queue", "shared queue -> own queue, buffer and bandwidth", at)
    at = replace(at, lanes=replace(at.lanes, ecn=False))
    yield Measure("ECN off", "ECN on -> off for expert traffic", at)
    if cluster.dcn is None:
        skipped["KV on the DCN"] = f"{cluster.name} has one network only"
    else:
        at = replace(at, lanes=replace(at.lanes, kv="dcn"))
        yield Measure("KV on the DCN", "KV cache on the same network -> on a network of its own", at)
    if experts.forced:
        skipped["Balanced experts"] = "balance is forced: every rank gets the same"
    else:
        at = replace(
            at,
            experts=replace(experts, placement="balanced", split=True),
            prefill=replace(at.prefill, redundant_experts=twin.prefill.redundant_experts),
            decode=replace(at.decode, redundant_experts=twin.decode.redundant_experts),
        )
        redundant = f"+{twin.prefill.redundant_experts} and +{twin.decode.redundant_experts} redundant"
        yield Measure("Balanced experts", f"static -> placed by load, {redundant}, each batch split", at)
    at = replace(at, prefill=replace(at.prefill, overlap="auto"), decode=replace(at.decode, overlap="auto"))
    yield Measure("Dual stream", "one stream -> two where that is faster", at)


def _fill_tables(
    climbed: list[Measure],
    cluster: Cluster,
    progress: Callable[[Any], object] | None,
    processes: int | None,
) -> None:
    """Simulate what packets are needed for all rungs, side by side."""
    settings: list[ExchangeSetting] = []
    for measure in climbed:
        architecture, _, _ = named_parts(measure.twin)
        lanes = lanes_case(measure.twin.lanes, cluster)
        settings += exchange_settings(measure.twin, architecture, cluster, lanes).values()
    exchange_tables(settings, progress=progress, processes=processes)


def _beside_others(assembly: Assembly) -> Assembly:
    return beside_others(assembly, saturation_point(assembly))[0]


def _rung(
    measure: Measure,
    assembly: Assembly,
    point: OperatingPoint,
    peak: OperatingPoint,
    before: tuple[OperatingPoint, OperatingPoint] | None,
) -> Rung:
    slowdown = {str(phase): _factor(model.exchange) for phase, model in assembly.phases().items()}
    return Rung(
        name=measure.name,
        measure=measure.says,
        twin=measure.twin,
        point=point,
        peak=peak,
        exchange_s={"prefill": point.prefill.step.exchange_s, "decode": point.decode.step.exchange_s},
        slowdown=slowdown,
        gain={} if before is None else _gain(before, (point, peak)),
        sources=point.sources,
    )


def _factor(exchange: ExchangeTimes) -> float:
    return exchange.factor if isinstance(exchange, SlowedExchange) else 1.0


def _gain(
    before: tuple[OperatingPoint, OperatingPoint], after: tuple[OperatingPoint, OperatingPoint]
) -> dict[str, float]:
    """Return what came of a measure, from (at the common rate, at the peak) to the same after it."""
    (old, old_peak), (new, new_peak) = before, after
    return {
        "ttft": 1 - new.ttft.mean / old.ttft.mean,
        "tpot": 1 - new.tpot.mean / old.tpot.mean,
        "throughput": new_peak.rate / old_peak.rate - 1,
        "prefill": new_peak.prefill.capacity / old_peak.prefill.capacity - 1,
        "decode": new_peak.decode.capacity / old_peak.decode.capacity - 1,
    }
