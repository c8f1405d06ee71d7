"""Two elephants over two spines: a hash over each flow's addresses and ports against spreading packet by packet.

The kernel says beforehand which spine the hash gives a flow (`ip route get`), so flows are chosen that meet on one
spine and flows that do not; others are drawn as they come, to see how often they meet.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

from fourlane.errors import LabError
from fourlane.lab.experiment import Arrangement, Bar, Metric, Shown
from fourlane.lab.experiments.arrangements import lanes_of, plan_of
from fourlane.lab.flows import Bulk, goodput_limit
from fourlane.lab.links import BRIDGE
from fourlane.lab.network import Lab
from fourlane.lab.topology import leaf_spine
from fourlane.lab.verdict import Watch, calibrate, judge
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.lab.experiments.arrangements import Settings
    from fourlane.lab.topology import Port

__all__ = ["run", "uplink_of"]

SETTLE_S, MEASURE_S = 0.3, 0.5
ELEPHANTS = (("h0", "h2"), ("h1", "h3"))
FIRST_PORT = 20_000
MOST_LATE_S = 10e-3
DRAWN = 3
MET, APART, RANDOM, SPREAD = "hash, same spine", "hash, own spines", "hash, as drawn", "spread by packet"
METRICS = (
    Metric(name="goodput", title="payload, of both lines", unit="share"),
    Metric(name="busier", title="busier uplink's share", unit="share"),
)


def run(settings: Settings, progress: Callable[[str, int, int], None]) -> Shown:
    """Measure flows that meet, flows that do not, flows as drawn, and spreading."""
    topology = leaf_spine(4, rate=settings.rate)
    rate = topology.network("hpn").rate
    drawn = max(1, round(DRAWN * min(1.0, settings.scale)))
    plan = [*(name for _ in range(settings.repeats) for name in (MET, APART, SPREAD)), *[RANDOM] * drawn]
    figures: dict[str, dict[str, list[float]]] = {
        name: {"goodput": [], "busier": []} for name in (MET, APART, RANDOM, SPREAD)
    }
    with Lab(topology) as lab:
        progress("calibrating", 0, len(plan))
        lab.lanes(lanes_of(plan_of(settings), rate))
        calibration = calibrate(lab, *ELEPHANTS[0])
        ports = _Ports(lab)
        with Watch(lab) as watch:
            for step, name in enumerate(plan):
                progress(name, step, len(plan))
                lab.spread("hpn", on=name == SPREAD)
                goodput, busier = _measure(lab, ports.choose(name), settings.seconds(MEASURE_S))
                figures[name]["goodput"].append(goodput)
                figures[name]["busier"].append(busier)
            watch.note_drops()
            verdict = judge(calibration, watch.end(), most_late_s=MOST_LATE_S)
    by_name = {name: Arrangement(name=name, figures=values) for name, values in figures.items()}
    return Shown(
        name="collision",
        title="Two elephants over two spines",
        setting=f"{rate} a link, {settings.repeats} repetitions, {drawn} pairs of flows as drawn",
        metrics=METRICS,
        arrangements=tuple(by_name.values()),
        bars=(
            Bar(
                claim="throughput of flows that meet on a spine, of both lines' payload",
                measured=by_name[MET].middle("goodput"),
                bound=0.55,
                at_least=False,
            ),
            Bar(
                claim="throughput spread by packet, of both lines' payload",
                measured=by_name[SPREAD].middle("goodput"),
                bound=0.95,
            ),
        ),
        verdict=verdict,
    )


def _measure(lab: Lab, ports: list[tuple[int, int]], seconds: float) -> tuple[float, float]:
    """Return the elephants' payload as a share of what their lines carry, and the busier uplink's part of it."""
    dscp = TrafficClass.EXPERT.dscp
    uplinks = _uplinks(lab)
    bulks = [
        Bulk(lab, [source], target, "hpn", dscp=dscp, ports=[pair])
        for (source, target), pair in zip(ELEPHANTS, ports, strict=True)
    ]
    try:
        time.sleep(SETTLE_S)
        before = [lab.count(port)[TrafficClass.EXPERT].sent_bytes for port in uplinks]
        began = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
        sent = [
            lab.count(port)[TrafficClass.EXPERT].sent_bytes - earlier
            for port, earlier in zip(uplinks, before, strict=True)
        ]
        rates = [bulk.end().rate(began, ended) for bulk in bulks]
    finally:
        for bulk in bulks:
            bulk.__exit__(None, None, None)
    limit = len(ELEPHANTS) * goodput_limit(lab.topology.network("hpn").rate)
    return sum(rates) / limit, max(sent) / max(1, sum(sent))


class _Ports:
    """Port numbers of the two flows, fresh ones every time, by whether the hash lets them meet."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._next = FIRST_PORT
        self._draw = random.Random(0)  # noqa: S311 - which flows are drawn is no secret

    def choose(self, name: str) -> list[tuple[int, int]]:
        """Return own and destination port of each elephant."""
        first, second = self._fresh(), self._fresh()
        if name in (MET, APART):
            spine = self._uplink(0, first)
            for _ in range(64):
                if (self._uplink(1, second) == spine) == (name == MET):
                    break
                second = self._fresh()
            else:
                raise LabError("collision: no ports found in 64 tries for which the hash gives what is wanted")
        return [first, second]

    def _fresh(self) -> tuple[int, int]:
        self._next += 1 + self._draw.randrange(8)
        return self._next, self._next + 10_000

    def _uplink(self, elephant: int, ports: tuple[int, int]) -> str:
        return uplink_of(self._lab, *ELEPHANTS[elephant], ports=ports)


def uplink_of(lab: Lab, source: str, target: str, *, ports: tuple[int, int]) -> str:
    """Return the uplink that the source's leaf hashes a TCP flow to, by the kernel's word."""
    leaf = lab.topology.switch(source, "hpn")
    question = ["ip", "-j", "route", "get", lab.address(target, "hpn"), "from", lab.address(source, "hpn")]
    question += ["iif", BRIDGE, "ipproto", "tcp", "sport", str(ports[0]), "dport", str(ports[1])]
    return json.loads(lab.run(leaf, question))[0]["dev"]


def _uplinks(lab: Lab) -> list[Port]:
    leaf = lab.topology.switches("hpn")[0]
    return [port for port in lab.topology.ports("hpn") if port.namespace == leaf and port.kind == "up"]
