"""KV bandwidth beside expert traffic: on the expert network, unsorted and in a lane, and on a network of its own.

The expert traffic asks for all it can get: messages of 64 KiB, each right after the one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lab.experiment import Arrangement, Bar, Metric, Shown
from fourlane.lab.experiments.arrangements import BUFFER, lanes_of, one_network_plan, plan_of, turns
from fourlane.lab.experiments.isolation import EXPERT, RATE, TARGET, measure_beside_kv
from fourlane.lab.network import Lab
from fourlane.lab.queues import one_fifo
from fourlane.lab.topology import star
from fourlane.lab.verdict import Watch, calibrate, judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.lab.experiments.arrangements import Settings
    from fourlane.spec.cluster import NetworkName

__all__ = ["run"]

MESSAGE = 64 << 10
MEASURE_S = 0.5
FIFO, LANE, NETWORK = "shared, one FIFO", "shared, lanes", "own network"
METRICS = (
    Metric(name="kv", title="KV, of line", unit="share"),
    Metric(name="expert", title="expert p50", unit="seconds", logarithmic=True),
)


def run(settings: Settings, progress: Callable[[str, int, int], None]) -> Shown:
    """Measure every arrangement in turn, several times over."""
    figures: dict[str, dict[str, list[float]]] = {name: {"kv": [], "expert": []} for name in (FIFO, LANE, NETWORK)}
    topology = star(4, rate=settings.rate or RATE)
    rate = topology.networks[0].rate
    plan = turns(tuple(figures), settings.repeats)
    with Lab(topology) as lab:
        progress("calibrating", 0, len(plan))
        lab.lanes(lanes_of(plan_of(settings), rate))
        calibration = calibrate(lab, EXPERT, TARGET, "dcn")
        with Watch(lab) as watch:
            for step, (_, name) in enumerate(plan):
                progress(name, step, len(plan))
                if name == FIFO:
                    lab.lanes(lambda port: one_fifo(port.network, rate, buffer=BUFFER), network="hpn")
                else:
                    wanted = one_network_plan(settings) if name == LANE else plan_of(settings)
                    lab.lanes(lanes_of(wanted, rate), network="hpn")
                network: NetworkName = "dcn" if name == NETWORK else "hpn"
                p50, _, kv = measure_beside_kv(lab, network, settings.seconds(MEASURE_S), message=MESSAGE)
                figures[name]["kv"].append(kv)
                figures[name]["expert"].append(p50)
                watch.note_drops()
            verdict = judge(calibration, watch.end())
    arrangements = tuple(Arrangement(name=name, figures=values) for name, values in figures.items())
    return Shown(
        name="kv",
        title="KV bandwidth beside expert messages of 64 KiB",
        setting=f"{rate} a link, {settings.repeats} repetitions",
        metrics=METRICS,
        arrangements=arrangements,
        bars=(
            Bar(claim="KV payload on its own network, of line", measured=arrangements[2].middle("kv"), bound=0.94),
            Bar(
                claim="KV on its own network over KV in a lane of the shared one",
                measured=arrangements[2].middle("kv") / arrangements[1].middle("kv"),
                bound=1.5,
            ),
        ),
        verdict=verdict,
    )
