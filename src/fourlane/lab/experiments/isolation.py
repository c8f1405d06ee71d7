"""Expert ping-pong beside KV bulk: one FIFO, a queue of its own, a network of its own.

Two hosts send KV to the host with which a third plays ping-pong with 16 KiB messages: a decode node that takes KV
from prefill nodes while it exchanges experts' tokens. All three queue at the same switch port, and at their NICs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fourlane.lab.experiment import Arrangement, Bar, Metric, Shown
from fourlane.lab.experiments.arrangements import BUFFER, lanes_of, one_network_plan, plan_of, turns
from fourlane.lab.flows import Bulk, PingPong, percentile
from fourlane.lab.network import Lab
from fourlane.lab.queues import one_fifo
from fourlane.lab.topology import star
from fourlane.lab.verdict import Watch, calibrate, judge
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.lab.experiments.arrangements import Settings
    from fourlane.spec.cluster import NetworkName

__all__ = ["measure_beside_kv", "run"]

MESSAGE = 16 << 10
RATE = Rate.parse("200Mbps")
"""Three hosts send at once through two queues each: more than two cores carry at 500 Mbit/s a link."""
SETTLE_S, MEASURE_S = 0.3, 0.5
FLOWS = 4
"""Of each KV sender."""
EXPERT, TARGET, PREFILL = "h0", "h1", ("h2", "h3")
EMPTY, FIFO, QUEUE, NETWORK = "empty line", "one FIFO", "own queue", "own network"
METRICS = (
    Metric(name="p50", title="expert p50", unit="seconds", logarithmic=True),
    Metric(name="p99", title="expert p99", unit="seconds", logarithmic=True),
    Metric(name="kv", title="KV, of line", unit="share"),
)


def run(settings: Settings, progress: Callable[[str, int, int], None]) -> Shown:
    """Measure every arrangement in turn, several times over."""
    figures: dict[str, dict[str, list[float]]] = {
        name: {metric.name: [] for metric in METRICS} for name in (EMPTY, FIFO, QUEUE, NETWORK)
    }
    plan = turns(tuple(figures), settings.repeats)
    topology = star(4, rate=settings.rate or RATE)
    with Lab(topology) as lab:
        progress("calibrating", 0, len(plan))
        lab.lanes(lanes_of(plan_of(settings), topology.networks[0].rate))
        calibration = calibrate(lab, EXPERT, TARGET)
        with Watch(lab) as watch:
            for step, (_, name) in enumerate(plan):
                progress(name, step, len(plan))
                _arrange(lab, name, settings)
                network: NetworkName | None = None if name == EMPTY else "dcn" if name == NETWORK else "hpn"
                p50, p99, kv = measure_beside_kv(lab, network, settings.seconds(MEASURE_S))
                for metric, value in (("p50", p50), ("p99", p99), ("kv", kv)):
                    figures[name][metric].append(value)
                watch.note_drops()
            verdict = judge(calibration, watch.end())
    arrangements = {name: Arrangement(name=name, figures=values) for name, values in figures.items()}
    return Shown(
        name="isolation",
        title="Expert ping-pong (16 KiB) beside KV bulk from two hosts",
        setting=f"{topology.networks[0].rate} a link, {settings.repeats} repetitions",
        metrics=METRICS,
        arrangements=tuple(arrangements.values()),
        bars=_bars(arrangements),
        verdict=verdict,
    )


def measure_beside_kv(
    lab: Lab, network: NetworkName | None, seconds: float, *, message: int = MESSAGE
) -> tuple[float, float, float]:
    """Play ping-pong while KV is sent over a network (None: no KV).

    Returns:
        p50 and p99 of the messages' time in seconds, and KV's payload as a share of the line.
    """
    expert, kv = TrafficClass.EXPERT.dscp, TrafficClass.KV.dscp
    with PingPong(lab, EXPERT, TARGET, "hpn", dscp=expert, size=message) as game:
        if network is None:
            took, _ = game.run(seconds)
            return percentile(took, 0.5), percentile(took, 0.99), 0.0
        with Bulk(lab, PREFILL, TARGET, network, dscp=kv, flows=FLOWS) as bulk:
            time.sleep(SETTLE_S)
            took, (began, ended) = game.run(seconds)
            rate = bulk.end().rate(began, ended)
    return percentile(took, 0.5), percentile(took, 0.99), rate / lab.topology.network(network).rate


def _arrange(lab: Lab, name: str, settings: Settings) -> None:
    rate = lab.topology.networks[0].rate
    if name == FIFO:
        lab.lanes(lambda port: one_fifo(port.network, rate, buffer=BUFFER), network="hpn")
    else:
        plan = one_network_plan(settings) if name == QUEUE else plan_of(settings)
        networks: tuple[NetworkName, ...] = ("hpn",) if name == QUEUE else ("hpn", "dcn")
        for network in networks:
            lab.lanes(lanes_of(plan, rate), network=network)


def _bars(by_name: dict[str, Arrangement]) -> tuple[Bar, ...]:
    empty, fifo, queue, network = (by_name[name].middle("p50") for name in (EMPTY, FIFO, QUEUE, NETWORK))
    return (
        Bar(claim="expert p50 in one FIFO over that in its own queue", measured=fifo / queue, bound=10),
        Bar(
            claim="expert p50 in its own queue over an empty line's", measured=queue / empty, bound=1.2, at_least=False
        ),
        Bar(
            claim="expert p50 beside KV's own network over an empty line's",
            measured=network / empty,
            bound=1.2,
            at_least=False,
        ),
        Bar(
            claim="KV payload on its own network, of line (0.956 at most)",
            measured=by_name[NETWORK].middle("kv"),
            bound=0.94,
        ),
    )
