"""Render lanes for a Linux host interface: HTB classes with a FIFO each, chosen by DSCP.

The text is for `tc -batch`; `host_reading` parses what `tc` shows afterwards into the same value. HTB shares by
guaranteed rates: a lane with weight w gets w percent of what strict lanes leave, and more while others are idle, in
proportion to the weights. A strict lane goes first, up to its cap.

A class id says it all: major 1 is the hpn, 2 the dcn; the minor's upper digit is the traffic class, the lower one
the queue. Text only; the lab and the script apply it.
"""

from __future__ import annotations

from fractions import Fraction
from functools import reduce
from math import gcd
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError
from fourlane.lanes.buffers import queue_limit
from fourlane.lanes.plan import DSCPS
from fourlane.spec.cluster import NetworkName
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Rate, Size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.lanes.plan import LanePlan

__all__ = [
    "HostQueue",
    "HostQueues",
    "apply_lines",
    "class_id",
    "dscp_blocks",
    "host_queues",
    "remove_lines",
]

MAJOR = {"hpn": 1, "dcn": 2}
PACKET = 1514
"""The longest Ethernet frame at an MTU of 1500; the least quantum with which HTB shares by weight."""
LEAST_BURST = 16 << 10
"""Less loses throughput on a busy machine, whose timers are late; more lets short messages pass unshaped."""
BURST_S = 0.3e-3
_CLASSES = tuple(TrafficClass)


class HostQueue(msgspec.Struct, frozen=True, kw_only=True):
    """One lane on one interface: which packets, which share of the line, how much buffer.

    `weight` is percent of what strict lanes leave (None: strict), `cap` percent of the line that it never exceeds;
    a strict lane has one.
    """

    traffic_class: TrafficClass
    queue: int
    dscps: tuple[int, ...]
    weight: int | None = None
    cap: int | None = None
    buffer: Size

    @property
    def minor(self) -> int:
        """Return the minor of its class id."""
        return (_CLASSES.index(self.traffic_class) + 1) << 4 | self.queue


class HostQueues(msgspec.Struct, frozen=True, kw_only=True):
    """All lanes of one interface, in the order of `TrafficClass`.

    Every DSCP is in one of them; what is not IP goes to the lane `default`.
    """

    network: NetworkName
    rate: Rate
    queues: tuple[HostQueue, ...]
    default: TrafficClass

    def __post_init__(self) -> None:
        mapped = sorted(dscp for queue in self.queues for dscp in queue.dscps)
        assert mapped == list(range(64)), "every DSCP has one queue"
        weights = [queue.weight for queue in self.queues if queue.weight is not None]
        assert sum(weights) == 100, f"weights add up to 100, not {sum(weights)}"
        assert self.queue(self.default).weight is not None, "the default lane has a weight"
        assert all(queue.cap for queue in self.queues if queue.weight is None), "strict lanes have a cap"
        assert self.strict < 100, "strict lanes leave something"

    def queue(self, traffic_class: TrafficClass) -> HostQueue:
        """Return the queue of a traffic class."""
        return next(queue for queue in self.queues if queue.traffic_class is traffic_class)

    def queue_of(self, dscp: int) -> HostQueue:
        """Return the queue that a DSCP goes to."""
        return next(queue for queue in self.queues if dscp in queue.dscps)

    @property
    def strict(self) -> int:
        """Return what strict lanes take at most, in percent of the line."""
        return sum(queue.cap or 0 for queue in self.queues if queue.weight is None)

    def guaranteed(self, queue: HostQueue) -> Rate:
        """Return the rate a lane has for itself: a strict one its cap, another its weight's share of the rest."""
        share = Fraction(queue.cap or 0, 100)
        if queue.weight is not None:
            share = Fraction((100 - self.strict) * queue.weight, 10_000)
        return _whole(self.rate * share)

    def most(self, queue: HostQueue) -> Rate:
        """Return the rate a lane never exceeds."""
        return self.rate if queue.cap is None else _whole(self.rate * Fraction(queue.cap, 100))


def host_queues(plan: LanePlan, network: NetworkName, rate: Rate, *, buffer: Size) -> HostQueues:
    """Return what a plan means for an interface into a network: everything that a host interface can hold.

    Code points of classes that do not travel on the network go to its default class, if they come all the same.

    Args:
        buffer: what the interface's queues share; each may grow as `queue_limit` says.

    Raises:
        SpecError: the plan cannot be had on a host interface; names the class.
    """
    lanes = plan.on(network)
    faults = [
        f"{plan.name}: classes.{kind.value}.cap: a strict class needs one on a host interface: set cap = 5, say"
        for kind, lane in lanes.items()
        if lane.weight is None and lane.cap is None
    ]
    weights = sum(lane.weight or 0 for lane in lanes.values())
    if weights != 100:
        faults.append(f"{plan.name}: classes on {network}: expected weights that add up to 100, got {weights}")
    strict = sum(lane.cap or 0 for lane in lanes.values() if lane.weight is None)
    if strict >= 100:
        faults.append(f"{plan.name}: classes on {network}: strict classes' caps leave nothing of the line: {strict} %")
    if TrafficClass.DEFAULT not in lanes or lanes[TrafficClass.DEFAULT].weight is None:
        faults.append(f"{plan.name}: classes.default: expected a weight and every network, for what is not marked")
    if faults:
        raise SpecError(*faults)
    kind_of = plan.class_of_dscp()
    dscps: dict[TrafficClass, list[int]] = {kind: [] for kind in lanes}
    for dscp in DSCPS:
        kind = kind_of.get(dscp, TrafficClass.DEFAULT)
        dscps[kind if kind in lanes else TrafficClass.DEFAULT].append(dscp)
    queues = tuple(
        HostQueue(
            traffic_class=kind,
            queue=lane.queue,
            dscps=tuple(dscps[kind]),
            weight=lane.weight,
            cap=lane.cap,
            buffer=queue_limit(lane, buffer),
        )
        for kind, lane in lanes.items()
    )
    return HostQueues(network=network, rate=rate, queues=queues, default=TrafficClass.DEFAULT)


def class_id(queues: HostQueues, queue: HostQueue) -> str:
    """Return the HTB class of a lane, such as "1:15"; as a number it is the SO_PRIORITY that chooses it."""
    return f"{MAJOR[queues.network]}:{queue.minor:x}"


def apply_lines(queues: HostQueues, interface: str) -> list[str]:
    """Return the lines for `tc -batch` that give an interface its lanes; whatever queues it had are replaced."""
    major, burst = MAJOR[queues.network], _burst(queues.rate)
    default = queues.queue(queues.default)
    bursts = f"burst {burst} cburst {burst}"
    lines = [
        # Replacing and deleting leaves nothing of an older root behind, and needs none to be there.
        f"qdisc replace dev {interface} root bfifo",
        f"qdisc del dev {interface} root",
        f"qdisc add dev {interface} root handle {major}: htb default 0x{default.minor:x}",
        f"class add dev {interface} parent {major}: classid {major}:1 htb rate {int(queues.rate)}bit {bursts}",
    ]
    for queue in queues.queues:
        lines += [
            (
                f"class add dev {interface} parent {major}:1 classid {class_id(queues, queue)} htb "
                f"prio {int(queue.weight is not None)} rate {int(queues.guaranteed(queue))}bit "
                f"ceil {int(queues.most(queue))}bit {bursts} "
                f"quantum {_quantum(queues, queue)}"
            ),
            (
                f"qdisc add dev {interface} parent {class_id(queues, queue)} handle {_handle(queues, queue)}: "
                f"bfifo limit {int(queue.buffer)}"
            ),
        ]
    lines += [
        f"filter add dev {interface} parent {major}: protocol {protocol} prio {preference} u32 "
        f"match {field} 0x{value:02x} 0x{mask:02x} flowid {class_id(queues, queue)}"
        for queue in queues.queues
        if queue.traffic_class is not queues.default
        for value, mask in dscp_blocks(queue.dscps)
        for protocol, preference, field in (("ip", 10, "ip dsfield"), ("ipv6", 11, "ip6 priority"))
    ]
    return lines


def remove_lines(interface: str) -> list[str]:
    """Return the lines for `tc -batch` that take an interface's lanes away."""
    return [f"qdisc del dev {interface} root"]


def dscp_blocks(dscps: Iterable[int]) -> list[tuple[int, int]]:
    """Return the fewest aligned blocks that hold exactly these DSCPs, as value and mask of the ToS byte."""
    left, blocks = set(dscps), list[tuple[int, int]]()
    for size in (64, 32, 16, 8, 4, 2, 1):
        for first in range(0, 64, size):
            block = set(range(first, first + size))
            if block <= left:
                left -= block
                blocks.append((first << 2, (64 - size) << 2 & 0xFC))
    return sorted(blocks)


def _whole(rate: Fraction) -> Rate:
    """Round to kbit/s, or to Mbit/s from 1 Gbit/s on: what tc shows without loss."""
    step = 1000 if rate < 10**9 else 10**6
    return Rate(max(step, round(rate / step) * step))


def _burst(rate: Rate) -> int:
    return max(LEAST_BURST, round(rate.bytes_per_second * BURST_S))


def _quantum(queues: HostQueues, queue: HostQueue) -> int:
    """Return how much a lane sends in its turn while it borrows: weights in smallest terms, in packets."""
    if queue.weight is None:
        return PACKET
    weights = [other.weight for other in queues.queues if other.weight is not None]
    return PACKET * queue.weight // reduce(gcd, weights)


def _handle(queues: HostQueues, queue: HostQueue) -> str:
    return f"{MAJOR[queues.network]:x}{queue.minor:02x}"
