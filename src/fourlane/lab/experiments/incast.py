"""Several hosts answer one host at once: what a starved expert buffer does, and what the plan's buffer does.

This is expert traffic by nature: every rank sends to every other at the same time. The answers of three hosts meet at
one switch port; what its queue cannot hold is lost, and TCP's timer (5 ms here) waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.lab.experiment import Arrangement, Bar, Metric, Shown
from fourlane.lab.experiments.arrangements import lanes_of, plan_of, turns
from fourlane.lab.experiments.isolation import RATE
from fourlane.lab.flows import ideal_s, incast, percentile
from fourlane.lab.network import Lab
from fourlane.lab.topology import star
from fourlane.lab.verdict import Watch, calibrate, judge
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.lab.experiments.arrangements import Settings
    from fourlane.lanes.render.host import HostQueues

__all__ = ["run"]

ANSWER = 16 << 10
STARVED_BUFFER = Size(16 << 10)
ROUNDS = 200
MIDDLE, PEERS = "h0", ("h1", "h2", "h3")
STARVED, AMPLE = "starved, 16 KiB", "as planned"
METRICS = (
    Metric(name="p50", title="p50", unit="seconds", logarithmic=True),
    Metric(name="p99", title="p99", unit="seconds", logarithmic=True),
    Metric(name="stretch", title="p99, of ideal", unit="count"),
    Metric(name="dropped", title="dropped", unit="count"),
)


def run(settings: Settings, progress: Callable[[str, int, int], None]) -> Shown:
    """Measure both buffers in turn, several times over."""
    figures: dict[str, dict[str, list[float]]] = {
        name: {metric.name: [] for metric in METRICS} for name in (STARVED, AMPLE)
    }
    topology = star(4, rate=settings.rate or RATE)
    rate = topology.networks[0].rate
    ideal = ideal_s(ANSWER * len(PEERS), rate)
    ample = lanes_of(plan_of(settings), rate)
    plan = turns(tuple(figures), settings.repeats)
    port = topology.switch_port(MIDDLE, "hpn")
    with Lab(topology) as lab:
        progress("calibrating", 0, len(plan))
        lab.lanes(ample)
        calibration = calibrate(lab, "h1", MIDDLE)
        with Watch(lab) as watch:
            for step, (_, name) in enumerate(plan):
                progress(name, step, len(plan))
                lab.lanes(ample if name == AMPLE else lambda at: _starved(ample(at)), network="hpn")
                took = incast(
                    lab,
                    MIDDLE,
                    PEERS,
                    "hpn",
                    dscp=TrafficClass.EXPERT.dscp,
                    size=ANSWER,
                    rounds=settings.times(ROUNDS),
                )
                found = figures[name]
                found["p50"].append(percentile(took, 0.5))
                found["p99"].append(percentile(took, 0.99))
                found["stretch"].append(percentile(took, 0.99) / ideal)
                found["dropped"].append(float(lab.count(port)[TrafficClass.EXPERT].dropped))
                watch.note_drops()
            verdict = judge(calibration, watch.end())
    arrangements = tuple(Arrangement(name=name, figures=values) for name, values in figures.items())
    starved, planned = arrangements
    return Shown(
        name="incast",
        title="Three hosts answer with 16 KiB at once; time until all is there",
        setting=f"{rate} a link, ideal {ideal * 1e3:.2f} ms, {settings.repeats} repetitions",
        metrics=METRICS,
        arrangements=arrangements,
        bars=(
            Bar(
                claim="p99 with a starved buffer over p99 as planned",
                measured=starved.middle("p99") / planned.middle("p99"),
                bound=2,
            ),
        ),
        verdict=verdict,
    )


def _starved(queues: HostQueues) -> HostQueues:
    return msgspec.structs.replace(
        queues,
        queues=tuple(
            msgspec.structs.replace(queue, buffer=STARVED_BUFFER)
            if queue.traffic_class is TrafficClass.EXPERT
            else queue
            for queue in queues.queues
        ),
    )
