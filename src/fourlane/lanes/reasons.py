"""Why each figure of the default lane plan is what it is, and where that was read or worked out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.ports import switches
from fourlane.spec.hardware import nic_models
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.lanes.plan import Lane
    from fourlane.spec.cluster import Cluster

__all__ = ["PFC_REASONS", "TRIMMING_REASONS", "Reason", "reasons"]

_BAIDU = "Baidu Intelligent Cloud, PD-separated inference network (queue split, buffer, bandwidth, ECN off, DCN for KV)"
_CONNECTX = "default DSCP map of NVIDIA ConnectX: priority = DSCP / 8"
_DT = "dynamic thresholds: each of n full queues gets alpha * B / (1 + n * alpha) (Choudhury and Hahne, 1998)"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a figure is what it is, and where that was read or worked out."""

    why: str
    source: str


def reasons(cluster: Cluster, kind: TrafficClass) -> dict[str, Reason]:
    """Return why each field of a class of the default plan is what it is, by field."""
    lane = default_plan(cluster).classes[kind]
    found = {
        "dscp": Reason(_WHY_DSCP[kind], f"RFC 2474, RFC 4594; {_CONNECTX}"),
        "accept": Reason(
            "every other code point, so that nothing arrives unmapped" if lane.accept else "no other code points",
            "SONiC DSCP_TO_TC_MAP: what it does not name goes to traffic class 0 unseen",
        ),
        "priority": Reason("DSCP / 8, so that the plan holds on a NIC nobody has configured yet", _CONNECTX),
        "queue": Reason("the priority's number, so that counters read alike everywhere", "convention of this plan"),
        "scheduler": _WHY_SCHEDULER.get(kind, _SHARES),
        "alpha": _WHY_ALPHA[kind] if cluster.dcn or kind is not TrafficClass.KV else _SMALL_ALPHA,
        "reserved": _WHY_RESERVED.get(kind, Reason("nothing set aside: the shared pool serves", _DT)),
        "lossless": _lossless_reason(kind, lane, cluster),
        "trim": Reason(
            "cut instead of dropped: the receiver learns at once what to ask for again"
            if lane.trim
            else "no class of this plan needs it",
            "SONiC packet trimming (sonic-buildimage PRs 22853, 22912)",
        ),
        "ecn": _ecn_reason(kind, lane),
        "routing": _routing_reason(kind, lane),
        "network": _network_reason(kind, cluster),
        "carriers": Reason("the libraries that carry it here; they decide environment files and warnings", "judgement"),
    }
    if lane.weight is not None:
        found["weight"] = _WHY_WEIGHT[kind]
    if lane.cap is not None:
        found["cap"] = _WHY_CAP[kind]
    return found


_YANG = "SONiC sonic-pfcwd.yang: poll 100..1000 ms, detection 100..5000 ms, restoration 100..60000 ms"
PFC_REASONS = {
    "watchdog": Reason(
        "one NIC that pauses without end stops every link behind it; the watchdog empties its queue",
        "Microsoft, RDMA over Commodity Ethernet at Scale, SIGCOMM 2016 (NIC pause storms)",
    ),
    "poll": Reason("as often as every switch can look", _YANG),
    "detection": Reason("two looks: long beside any burst, short beside a stalled step", f"judgement; {_YANG}"),
    "restoration": Reason("twice the detection, so that a storm is not let in again at once", f"judgement; {_YANG}"),
    "action": Reason(
        "frees the buffer; dropped expert traffic is repeated, so exchange timeouts must be longer than poll, "
        "detection and restoration together",
        "SONiC PFC watchdog: drop, forward or alert",
    ),
    "shared_headroom": Reason(
        "every port has its own, which holds even if all are paused at once; true where the budget does not fit",
        "SONiC doc/qos/dynamically-headroom-calculation.md (shared headroom pool)",
    ),
    "oversubscription": Reason("counts only with shared_headroom: half of what all ports could need", "SONiC default"),
}
TRIMMING_REASONS = {
    "size": Reason("headers and no more", "Cumulus Linux 5.14 guide: roce mode lossy-multi-tc trims to 256 B"),
    "to": Reason("the news of a loss goes before everything else", "as congestion notifications do"),
}

_WHY_DSCP = {
    TrafficClass.EXPERT: "EF, expedited forwarding; DSCP / 8 = priority 5",
    TrafficClass.COLLECTIVE: "AF31; DSCP / 8 = priority 3, the usual RoCE priority",
    TrafficClass.KV: "AF21; DSCP / 8 = priority 2",
    TrafficClass.CONTROL: "CS6; what NICs put on congestion notifications (CNP) by default; DSCP / 8 = priority 6",
    TrafficClass.BULK: "CS1, may wait; DSCP / 8 = priority 1",
    TrafficClass.DEFAULT: "what unmarked traffic carries",
}
_SHARES = Reason(
    "deficit round robin: a guaranteed share, and all of the link when the others are silent; strict priority for "
    "so much traffic would starve acknowledgements and KV",
    "IEEE 802.1Q, enhanced transmission selection",
)
_WHY_SCHEDULER = {
    TrafficClass.CONTROL: Reason(
        "first in line: congestion notifications and clear-to-send messages are small and everything waits for them",
        "Meta, RDMA over Ethernet for Distributed AI Training, SIGCOMM 2024 (CTS in a high-priority queue)",
    )
}
_WHY_WEIGHT = {
    TrafficClass.EXPERT: Reason("the largest share: every layer of every step waits for its all-to-all", _BAIDU),
    TrafficClass.COLLECTIVE: Reason("all-reduce and the like, in a lower queue than all-to-all", _BAIDU),
    TrafficClass.KV: Reason("most of its own network; on a shared one a small share, since it can wait", _BAIDU),
    TrafficClass.BULK: Reason("enough that weight migration and logs never stop", "judgement"),
    TrafficClass.DEFAULT: Reason("enough that unmarked traffic never stops", "judgement"),
}
_WHY_CAP = {
    TrafficClass.CONTROL: Reason(
        "a strict queue without a cap can starve all others; notifications need far less", "judgement"
    ),
    TrafficClass.KV: Reason("KV on the shared network never takes over half of a link, even an idle one", "judgement"),
}
_SMALL_ALPHA = Reason(
    "kept small: with many ports full at once more buffer for expert traffic comes from the others' lower alpha", _DT
)
_WHY_ALPHA = {
    TrafficClass.EXPERT: Reason("the largest; above 1 it hardly helps when 16 or more ports are full at once", _DT),
    TrafficClass.COLLECTIVE: _SMALL_ALPHA,
    TrafficClass.KV: Reason("alone on its network, so it may use half of the pool", _DT),
    TrafficClass.CONTROL: Reason("small messages; never to be dropped for want of buffer", "judgement"),
    TrafficClass.BULK: _SMALL_ALPHA,
    TrafficClass.DEFAULT: _SMALL_ALPHA,
}
_WHY_RESERVED = {
    TrafficClass.EXPERT: Reason(
        "on every port, whatever others hold: about eight 7,408-byte token messages at 400 Gbit/s, by rate",
        "judgement; a larger buffer for all-to-all: Baidu, PD-separated inference network",
    ),
    TrafficClass.CONTROL: Reason("some tens of notifications on every port", "judgement"),
}
_WHY_ADAPTIVE = Reason(
    "few, large, long flows collide under a hash: NVSHMEM IBGDA sends from one UDP port, so ECMP puts all of a NIC "
    "pair's queue pairs on one path; about 95 % of physical bandwidth with adaptive routing",
    "NVSHMEM issue 27; Baidu HPN article",
)
_WHY_ECMP = Reason("many flows hash well enough, and these transports need packets in order", "judgement")


def _lossless_reason(kind: TrafficClass, lane: Lane, cluster: Cluster) -> Reason:
    if lane.lossless:
        return Reason(
            "RDMA goes back to the lost packet and repeats all since; with ECN off a pause is the only brake",
            "Microsoft, RDMA over Commodity Ethernet at Scale, SIGCOMM 2016; headroom by SONiC's formula",
        )
    if kind in (TrafficClass.EXPERT, TrafficClass.COLLECTIVE):
        return _lossy_reason(cluster)
    return Reason("repairs losses by itself, and must never pause a link others share", "judgement")


def _lossy_reason(cluster: Cluster) -> Reason:
    """Return what keeps a class between GPUs from being lossless, as `default_plan` decides it."""
    hpn = cluster.hpn
    there = [switch.model for switch in switches(cluster) if switch.network == "hpn"]
    if hpn.fabric != "roce":
        return Reason(f"lossy: pauses by priority are for RoCE, and the fabric is {hpn.fabric}", "cluster file")
    if not nic_models()[hpn.nic].dcb or not all(model.pfc for model in there):
        return Reason("lossy: a NIC or switch of the HPN cannot pause", "NIC and switch catalog")
    return Reason(
        "lossy: headroom for it would take over a third of a switch's buffer, or no figure for it is published",
        "`fourlane lanes show` with lossless = true",
    )


def _ecn_reason(kind: TrafficClass, lane: Lane) -> Reason:
    if lane.marking is not None and kind is TrafficClass.EXPERT:
        return Reason(
            "on, because nothing else could hold senders back here: no pauses or trimming, or no adaptive routing",
            "rule of this plan; thresholds as for the other classes",
        )
    if lane.marking is not None:
        return Reason(
            "early marks keep its queue short, so that what shares the buffer finds room; 4 kB and 16 kB for each "
            "Gbit/s, at least 20 and 80 packets of 1,500 bytes",
            "Li et al., HPCC, SIGCOMM 2019: 100/400 KB at 25G to 400/1600 KB at 100G, 20 % at Kmax",
        )
    if kind is TrafficClass.EXPERT:
        return Reason(
            "off: a balanced all-to-all overruns any threshold for 150 us and is gone; DCQCN would cut every sender",
            f"{_BAIDU}; DeepEP README (congestion control off); Meta, SIGCOMM 2024 (DCQCN off at 400G)",
        )
    return Reason("off: too little traffic to build a queue worth marking", "judgement")


def _routing_reason(kind: TrafficClass, lane: Lane) -> Reason:
    if lane.routing == "adaptive":
        return _WHY_ADAPTIVE
    if kind is TrafficClass.EXPERT:
        return Reason("the NIC does not put packets back in order, so one flow must keep to one path", "NIC catalog")
    return _WHY_ECMP


def _network_reason(kind: TrafficClass, cluster: Cluster) -> Reason:
    if kind is TrafficClass.KV and cluster.dcn is None:
        return Reason("the cluster has one network only", "cluster file")
    if kind is TrafficClass.KV:
        return Reason("its bursts never meet expert traffic, and it has a network's full bandwidth", _BAIDU)
    if kind in (TrafficClass.EXPERT, TrafficClass.COLLECTIVE):
        return Reason("between GPUs, over the GPUs' own NICs", _BAIDU)
    return Reason("wherever its two ends meet", "judgement")
