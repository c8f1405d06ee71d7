"""Hypothesis strategies for clusters and lane plans.

`clusters()`: whatever a cluster file may say. `sound_cases()`: a cluster and a plan that no check refuses, far
from the default one. `any_plans()`: plans as wild as their types allow, most of them nonsense.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, get_args

from hypothesis import strategies as st
from msgspec.structs import replace

from fourlane.lanes.default_plan import default_plan, spelled_ranges
from fourlane.lanes.plan import DSCPS, Carrier, Ecn, Lane, LanePlan, Pfc, Trimming
from fourlane.lanes.ports import switches
from fourlane.spec.cluster import Cluster, Network, Tier
from fourlane.spec.hardware import nic_models, switch_models
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Duration, Length, Rate, Size

if TYPE_CHECKING:
    from fourlane.spec.cluster import NetworkName

_RATES = [Rate.parse(text) for text in ("500Mbps", "1Gbps", "10Gbps", "25Gbps", "100Gbps", "200Gbps", "400Gbps")]
_SYSTEMS = {
    "sn5600": ("sonic", "cumulus"),
    "arista-7060x6": ("sonic", "eos"),
    "cx732q-n": ("sonic",),
    "linux": ("linux",),
}
_FABRICS = {
    "connectx-6": ("roce", "roce", "infiniband"),
    "connectx-7": ("roce", "roce", "infiniband"),
    "erdma": ("erdma",),
    "ethernet": ("ethernet",),
}
_CABLES = st.sampled_from([Length.parse(text) for text in ("1m", "5m", "40m", "300m")])


def _milliseconds(count: int) -> Duration:
    return Duration(count * 10**9)


@st.composite
def networks(draw: st.DrawFn, *, name: NetworkName) -> Network:
    """Draw a network whose ports fit its switches."""
    nic = draw(st.sampled_from(sorted(nic_models())))
    switch = draw(st.sampled_from(sorted(switch_models())))
    system = draw(st.sampled_from(_SYSTEMS[switch]))
    fastest = min(switch_models()[switch].port_rate, nic_models()[nic].rate or _RATES[-1])
    rate = draw(st.sampled_from([rate for rate in _RATES if rate <= fastest]))
    fabric = draw(st.sampled_from(_FABRICS[nic]))
    most = switch_models()[switch].ports
    down, up = draw(st.integers(1, most * 3 // 4)), draw(st.integers(0, most // 4))
    nics = draw(st.integers(1, 8))
    leaf = Tier(
        switch=switch,
        os=system,  # type: ignore[arg-type]
        count=draw(st.integers(1, 8)),
        down_ports=down,
        up_ports=up,
        up_rate=draw(st.sampled_from([None, switch_models()[switch].port_rate])) if up else None,
        down_cable=draw(_CABLES),
        up_cable=draw(_CABLES) if up else None,
    )
    spine = Tier(switch=switch, os=system, count=draw(st.integers(1, 4)), down_ports=draw(st.integers(1, most)))  # type: ignore[arg-type]
    return Network(
        nic=nic,
        rate=rate,
        interfaces=tuple(f"{name}{index}" for index in range(nics)),
        devices=tuple(f"mlx5_{name}_{index}" for index in range(nics)) if fabric != "ethernet" else (),
        fabric=fabric,  # type: ignore[arg-type]
        mtu=draw(st.sampled_from([Size(1500), Size(9000)])),
        leaf=leaf,
        spine=spine if up else None,
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Draw a cluster of one network or two."""
    return Cluster(
        name=draw(st.sampled_from(["small", "a-cluster", "x1"])),
        servers=draw(st.integers(1, 200)),
        gpus_per_server=draw(st.integers(0, 8)),
        hpn=draw(networks(name="hpn")),
        dcn=draw(st.none() | networks(name="dcn")),
    )


@st.composite
def sound_cases(draw: st.DrawFn) -> tuple[Cluster, LanePlan]:
    """Draw a cluster and a plan without errors: marks, queues, weights, thresholds and timers all moved about."""
    cluster = draw(clusters())
    plan = default_plan(cluster)
    classes = _moved(draw, plan.classes)
    classes = _weighted(draw, classes, two_networks=cluster.dcn is not None)
    classes = {kind: _varied(draw, lane) for kind, lane in classes.items()}
    return cluster, LanePlan(
        name=draw(st.sampled_from(["lanes", "mine", cluster.name])),
        classes=classes,
        pfc=_guarded(draw, cluster, classes),
        trimming=Trimming(size=Size(draw(st.sampled_from([128, 256, 512])))),
    )


def _moved(draw: st.DrawFn, classes: dict[TrafficClass, Lane]) -> dict[TrafficClass, Lane]:
    """Give classes other code points, priorities and queues; a lossless one never priority 0."""
    count = len(classes)
    queues = draw(st.permutations(range(8)))[:count]
    priorities = draw(st.permutations(range(1, 8)))[:count]
    lossy = [index for index, lane in enumerate(classes.values()) if not lane.lossless]
    if draw(st.booleans()):
        priorities[draw(st.sampled_from(lossy))] = 0
    points = draw(st.permutations(DSCPS))
    cuts = [0, *sorted(draw(st.lists(st.integers(count, 64), min_size=count - 1, max_size=count - 1))), 64]
    rest = [sorted(points[max(cut, count) : after]) for cut, after in pairwise(cuts)]
    return {
        kind: replace(
            lane,
            dscp=points[index],
            accept=spelled_ranges(rest[index]),
            priority=priorities[index],
            queue=queues[index],
        )
        for index, (kind, lane) in enumerate(classes.items())
    }


def _weighted(draw: st.DrawFn, classes: dict[TrafficClass, Lane], *, two_networks: bool) -> dict[TrafficClass, Lane]:
    """Give other weights that sum to 100 on each network, and caps that are no less."""
    weights = {kind: draw(st.integers(1, 20)) for kind in (TrafficClass.BULK, TrafficClass.DEFAULT)}
    left = 100 - sum(weights.values())
    weights[TrafficClass.KV] = left if two_networks else draw(st.integers(1, 25))
    left -= 0 if two_networks else weights[TrafficClass.KV]
    weights[TrafficClass.COLLECTIVE] = draw(st.integers(1, left // 2))
    weights[TrafficClass.EXPERT] = left - weights[TrafficClass.COLLECTIVE]
    changed = {kind: replace(classes[kind], weight=weight) for kind, weight in weights.items()}
    kv = changed[TrafficClass.KV]
    if kv.cap is not None:
        changed[TrafficClass.KV] = replace(kv, cap=draw(st.integers(kv.weight or 1, 100)))
    control = replace(classes[TrafficClass.CONTROL], cap=draw(st.integers(1, 20)))
    return {**classes, **changed, TrafficClass.CONTROL: control}


def _varied(draw: st.DrawFn, lane: Lane) -> Lane:
    """Change thresholds where the queue still reaches them."""
    ecn = lane.marking
    if ecn is not None:
        kmin = Size(max(1, int(ecn.kmin) // draw(st.sampled_from([1, 2, 8]))))
        kmax = Size(int(kmin) * draw(st.sampled_from([1, 2, 4])))
        lane = replace(lane, ecn=Ecn(kmin=kmin, kmax=kmax, pmax=draw(st.integers(1, 100)) / 100))
    return replace(
        lane,
        alpha=lane.alpha * draw(st.sampled_from([1, 2, 4])),
        reserved=Size(draw(st.sampled_from([0, 1024, int(lane.reserved)]))),
    )


def _guarded(draw: st.DrawFn, cluster: Cluster, classes: dict[TrafficClass, Lane]) -> Pfc:
    poll = draw(st.integers(1, 10)) * 100
    several = sum(lane.lossless for lane in classes.values()) > 1
    cumulus = any(switch.tier.os == "cumulus" for switch in switches(cluster))
    return Pfc(
        poll=_milliseconds(poll),
        detection=_milliseconds(draw(st.integers(poll, 5000))),
        restoration=_milliseconds(draw(st.integers(poll, 60_000))),
        action=draw(st.sampled_from(["drop", "forward"])),
        shared_headroom=draw(st.booleans()) and not (several and cumulus),
        oversubscription=draw(st.integers(1, 4)),
        headroom=draw(st.none() | st.just(Size.parse("300KiB"))),
    )


_SIZES = st.integers(0, 10**12).map(Size)
_DURATIONS = st.integers(0, 10**15).map(Duration)
_NUMBERS = st.integers(-3, 80)


def any_plans() -> st.SearchStrategy[LanePlan]:
    """Return plans as wild as their types allow."""
    ecn = st.builds(Ecn, kmin=_SIZES, kmax=_SIZES, pmax=st.floats(allow_nan=True))
    lanes = st.builds(
        Lane,
        dscp=_NUMBERS,
        accept=st.lists(st.sampled_from(["0-63", "7", "9-15", "64", "x", "5-2", ""]), max_size=3).map(tuple),
        priority=_NUMBERS,
        queue=_NUMBERS,
        scheduler=st.sampled_from(["strict", "dwrr"]),
        weight=st.none() | st.integers(-5, 120),
        cap=st.none() | st.integers(-5, 120),
        alpha=st.sampled_from([0.125, 1.0, 8.0, 2.0**30, 2.0**-30]) | st.floats(),
        reserved=_SIZES,
        lossless=st.booleans(),
        trim=st.booleans(),
        ecn=st.just("off") | ecn,
        ect=st.none() | st.booleans(),
        routing=st.sampled_from(["ecmp", "adaptive"]),
        network=st.sampled_from(["hpn", "dcn", "both"]),
        carriers=st.lists(st.sampled_from(get_args(Carrier)), max_size=3).map(tuple),
    )
    pfc = st.builds(
        Pfc,
        watchdog=st.booleans(),
        poll=_DURATIONS,
        detection=_DURATIONS,
        restoration=_DURATIONS,
        action=st.sampled_from(["drop", "forward"]),
        shared_headroom=st.booleans(),
        oversubscription=st.integers(-1, 8),
        headroom=st.none() | _SIZES,
    )
    return st.builds(
        LanePlan,
        version=st.sampled_from([1, 1, 1, 2]),
        name=st.text(max_size=8),
        classes=st.dictionaries(st.sampled_from(TrafficClass), lanes, max_size=6),
        pfc=pfc,
        trimming=st.builds(Trimming, size=_SIZES, to=st.sampled_from(TrafficClass)),
    )
