"""The ladder: what the network is at each step, from one FIFO for everything to a lane for each kind of traffic.

Values only; `ladder_run` brings them to life. Two leaves and two spines; each leaf has a prefill and a decode
host of the service, so that both groups exchange experts' tokens across the spines. Two further prefill hosts
send KV to decode hosts on the other leaf, the service's own decode host among them.
"""

from __future__ import annotations

import msgspec

from fourlane.lab.topology import Network, NetworkName, Topology
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import Ecn, LanePlan
from fourlane.spec import cluster
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Rate, Size

__all__ = [
    "DECODE",
    "GATEWAY",
    "KV_SOURCES",
    "KV_TARGETS",
    "PREFILL",
    "LadderSettings",
    "LadderStep",
    "ladder_steps",
    "ladder_topology",
]

GATEWAY = "g0"
PREFILL, DECODE = ("p0", "p1"), ("d0", "d1")
KV_SOURCES, KV_TARGETS = ("k0", "k1"), ("d1", "k2", "k3")
HOSTS = ("g0", "p0", "d0", "k0", "k1", "p1", "d1", "k2", "k3")
"""The first half is at leaf 0."""


class LadderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The size of everything.

    `buffer` is what the queues of one port share. KV objects of `kv_object` bytes come from each further prefill
    host at `kv_load` of its line. `requests` a step, `request_rate` a second, of `prompt` and `output` tokens.
    `only` names steps to take, besides the first; empty: all.
    """

    rate: Rate = Rate.parse("50Mbps")
    buffer: Size = Size.parse("128KiB")
    kv_object: Size = Size.parse("256KiB")
    kv_load: float = 0.6
    requests: int = 24
    request_rate: float = 4.0
    prompt: int = 32
    output: int = 24
    repeats: int = 3
    exchange: str = "tcp"
    only: tuple[str, ...] = ()


class LadderStep(msgspec.Struct, frozen=True, kw_only=True):
    """The network at one step.

    `plan` None: one FIFO a port, whatever the traffic. `spread`: leaves spread packets over the spines instead of
    hashing flows. `kv`: the network that KV takes.
    """

    name: str
    title: str
    change: str
    spread: bool
    plan: LanePlan | None
    kv: NetworkName = "hpn"

    @property
    def expert_ecn(self) -> Ecn | None:
        """Return the thresholds at which switches mark the expert lane, None if they do not."""
        return self.plan.classes[TrafficClass.EXPERT].marking if self.plan is not None else None


def ladder_topology(settings: LadderSettings) -> Topology:
    """Return hosts and networks; TCP asks for ECN on the hpn, where nothing marks until a step says so."""
    hpn = Network(name="hpn", shape="leaf-spine", rate=settings.rate, ecn=True)
    return Topology(hosts=HOSTS, networks=(hpn, Network(name="dcn", rate=settings.rate)))


def ladder_steps(settings: LadderSettings) -> tuple[LadderStep, ...]:
    """Return the steps in order. Lanes are those of the default plan of such a cluster, on one network or two."""
    one = _without_ecn(default_plan(_cluster(settings.rate, dcn=False)))
    two = _without_ecn(default_plan(_cluster(settings.rate, dcn=True)))
    marked = _with_expert_ecn(one, _thresholds(settings.rate))
    return (
        LadderStep(name="1", title="one FIFO, hash", change="two spines, flows hashed", spread=False, plan=None),
        LadderStep(name="2", title="packets spread", change="packets spread over the spines", spread=True, plan=None),
        LadderStep(name="3", title="expert lane", change="own queue, weight and buffer", spread=True, plan=one),
        LadderStep(name="4a", title="ECN on", change="switches mark the expert lane", spread=True, plan=marked),
        LadderStep(name="4b", title="ECN off", change="and no longer mark it", spread=True, plan=one),
        LadderStep(name="5", title="KV on the DCN", change="KV on its own network", spread=True, plan=two, kv="dcn"),
    )


def _cluster(rate: Rate, *, dcn: bool) -> cluster.Cluster:
    leaf = cluster.Tier(switch="linux", os="linux", count=2, down_ports=5, up_ports=2)
    spine = cluster.Tier(switch="linux", os="linux", count=2, down_ports=2)
    second = cluster.Tier(switch="linux", os="linux", count=1, down_ports=len(HOSTS))
    return cluster.Cluster(
        name="ladder",
        servers=len(HOSTS),
        gpus_per_server=0,
        hpn=_network("hpn", rate, leaf, spine),
        dcn=_network("dcn", rate, second) if dcn else None,
    )


def _network(name: NetworkName, rate: Rate, leaf: cluster.Tier, spine: cluster.Tier | None = None) -> cluster.Network:
    return cluster.Network(
        nic="ethernet", rate=rate, interfaces=(name,), fabric="ethernet", mtu=Size(1500), leaf=leaf, spine=spine
    )


def _thresholds(rate: Rate) -> Ecn:
    """Return the marking that the default plan gives KV on such a line."""
    marking = default_plan(_cluster(rate, dcn=False)).classes[TrafficClass.KV].marking
    assert marking is not None, "the default plan marks KV"
    return marking


def _without_ecn(plan: LanePlan) -> LanePlan:
    """Return a plan in which nothing is marked, so that a step changes one thing."""
    classes = {kind: msgspec.structs.replace(lane, ecn="off") for kind, lane in plan.classes.items()}
    return msgspec.structs.replace(plan, classes=classes)


def _with_expert_ecn(plan: LanePlan, marking: Ecn) -> LanePlan:
    expert = msgspec.structs.replace(plan.classes[TrafficClass.EXPERT], ecn=marking)
    return msgspec.structs.replace(plan, classes={**plan.classes, TrafficClass.EXPERT: expert})
