"""The running engine: does every lane carry its DSCP on its interface?

Two prefill and two decode ranks, each in a host of its own, the gateway in a fifth. Every host captures what it sends
while a few requests are answered. Which lane a packet belongs to is told by where it goes, not by its mark: KV is what
passes between ranks on the dcn, control what goes to or from the gateway's port for ranks, expert what passes between
two ranks of a pool on the hpn (where doorbells, which are control, pass too).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fourlane.lab.capture import Sent
from fourlane.lab.experiment import Arrangement, Bar, Metric, Shown
from fourlane.lab.experiments.arrangements import lanes_of, plan_of
from fourlane.lab.flows import HEARD_S
from fourlane.lab.network import Lab
from fourlane.lab.service import LabService, Placement
from fourlane.lab.topology import star
from fourlane.lab.verdict import Watch, calibrate, judge
from fourlane.spec.load import render
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fourlane.lab.experiments.arrangements import Settings
    from fourlane.lanes.plan import LanePlan

__all__ = ["lane_of", "run"]

GATEWAY, PREFILL, DECODE = "gw", ("p0", "p1"), ("d0", "d1")
REQUESTS = 6
LOAD_S = 120.0
LEAST_MARKED = 0.99
LANES = (TrafficClass.EXPERT, TrafficClass.KV, TrafficClass.CONTROL)
INTERFACE = {TrafficClass.EXPERT: "hpn", TrafficClass.KV: "dcn", TrafficClass.CONTROL: "hpn"}
METRICS = (
    Metric(name="dscp", title="DSCP", unit="count"),
    Metric(name="packets", title="packets", unit="count"),
    Metric(name="payload", title="payload, bytes", unit="count"),
    Metric(name="marked", title="marked so", unit="share"),
)
Ends = dict[str, tuple[str, str]]
"""By address: the host's pool ("" for the gateway) and the network."""


def run(settings: Settings, progress: Callable[[str, int, int], None]) -> Shown:
    """Bring the engine up in the lab, answer requests, and look at every packet that was sent."""
    topology = star((GATEWAY, *PREFILL, *DECODE), rate=settings.rate)
    plan = plan_of(settings)
    placement = Placement(gateway=GATEWAY, prefill=PREFILL, decode=DECODE, kv="dcn")
    with tempfile.TemporaryDirectory(prefix="fourlane-marks-") as name, Lab(topology) as lab:
        folder = Path(name)
        progress("calibrating", 0, 3)
        lab.lanes(lanes_of(plan, topology.networks[0].rate))
        calibration = calibrate(lab, PREFILL[0], DECODE[0])
        plan_file = folder / "lanes.toml"
        plan_file.write_text(render(plan), encoding="utf-8")
        with Watch(lab) as watch:
            captures = {host: lab.call(host, "fourlane.lab.capture:capture") for host in topology.hosts}
            for call in captures.values():
                call.heard(HEARD_S)
            overrides = (f"lanes={plan_file}", "exchange.implementation=tcp")
            with LabService(lab, placement, folder=folder, overrides=overrides) as service:
                progress("starting ranks", 1, 3)
                service.wait_ready()
                progress("answering requests", 2, 3)
                words = [sys.executable, "-m", "fourlane", "bench", "serve", "--url", service.url]
                load = ["--requests", str(REQUESTS), "--concurrency", "2", "--output-len", "16", "--warmup", "0"]
                lab.run(GATEWAY, [*words, *load], timeout_s=LOAD_S)
                captured = [call.stop().result(HEARD_S) for call in captures.values()]
            watched = watch.end()
    sent = [msgspec.convert(each, Sent) for one in captured for each in one["sent"]]
    missed = sum(one["missed"] for one in captured)
    doubts = [f"{missed} packets were not looked at: they came too fast"] if missed else []
    ends = _ends(lab)
    arrangements = tuple(_row(kind, plan, sent, ends, placement) for kind in LANES)
    return Shown(
        name="marks",
        title="TCP packets with payload that the engine's processes sent, lane by lane",
        setting=f"2 prefill and 2 decode ranks of the bundled model, {REQUESTS} requests",
        metrics=METRICS,
        arrangements=arrangements,
        bars=_bars(arrangements, plan, sent),
        verdict=judge(calibration, watched, doubts=doubts, most_late_s=None),
    )


def lane_of(sent: Sent, ends: Ends, placement: Placement) -> TrafficClass | None:
    """Tell which lane a packet belongs to from its ends; None for HTTP and what is no lane's."""
    (pool, network), (other_pool, other_network) = ends[sent.source[0]], ends[sent.target[0]]
    if placement.port + 1 in (sent.source[1], sent.target[1]):
        return TrafficClass.CONTROL
    if not pool or not other_pool or network != other_network:
        return None
    if network == "dcn":
        return TrafficClass.KV
    return TrafficClass.EXPERT if pool == other_pool else None


def _ends(lab: Lab) -> Ends:
    pools = {GATEWAY: "", **dict.fromkeys(PREFILL, "prefill"), **dict.fromkeys(DECODE, "decode")}
    return {
        lab.address(host, network.name): (pool, network.name)
        for host, pool in pools.items()
        for network in lab.topology.networks
    }


def _row(kind: TrafficClass, plan: LanePlan, sent: Iterable[Sent], ends: Ends, placement: Placement) -> Arrangement:
    """Sum up a lane: what is marked as it, of what goes where it goes; doorbells among experts' ranks count apart."""
    wanted, control = plan.classes[kind].dscp, plan.classes[TrafficClass.CONTROL].dscp
    own = [
        each
        for each in sent
        if _known(each, ends)
        and lane_of(each, ends, placement) is kind
        and not (kind is TrafficClass.EXPERT and each.dscp == control)
    ]
    marked = [each for each in own if each.dscp == wanted and each.interface == INTERFACE[kind]]
    payload = sum(each.payload for each in own)
    figures = {
        "dscp": float(wanted),
        "packets": float(sum(each.packets for each in own)),
        "payload": float(payload),
        "marked": sum(each.payload for each in marked) / payload if payload else 0.0,
    }
    return Arrangement(
        name=f"{kind.value} on {INTERFACE[kind]}", figures={name: [value] for name, value in figures.items()}
    )


def _known(sent: Sent, ends: Ends) -> bool:
    return sent.source[0] in ends and sent.target[0] in ends


def _bars(rows: tuple[Arrangement, ...], plan: LanePlan, sent: Iterable[Sent]) -> tuple[Bar, ...]:
    astray = 0
    for each in sent:
        wrong = [plan.classes[kind].dscp for kind in LANES[:2] if INTERFACE[kind] != each.interface]
        astray += each.packets if each.interface != "lo" and each.dscp in wrong else 0
    shares = tuple(
        Bar(
            claim=f"{row.name}: payload marked DSCP {row.middle('dscp'):.0f}",
            measured=row.middle("marked"),
            bound=LEAST_MARKED,
        )
        for row in rows
    )
    stray = Bar(claim="packets of expert or kv on the other's interface", measured=astray, bound=0, at_least=False)
    return (*shares, stray)
