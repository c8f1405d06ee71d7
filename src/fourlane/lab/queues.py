"""Queues of the lab's interfaces: put lanes on them, read them back, count what went through.

The same text goes to the kernel as on a real host (`fourlane.lanes.render.host`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import CheckFailed
from fourlane.lanes.render.host import HostQueue, HostQueues, apply_lines
from fourlane.lanes.render.host_reading import read_queues
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fourlane.lab.namespaces import Namespaces
    from fourlane.lab.topology import Port
    from fourlane.spec.cluster import NetworkName
    from fourlane.units import Rate, Size

__all__ = ["Counters", "apply_queues", "count", "one_fifo", "read_back"]


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What one queue has done since it was made."""

    sent_bytes: int = 0
    sent_packets: int = 0
    dropped: int = 0
    overlimits: int = 0
    backlog_bytes: int = 0

    def since(self, before: Counters) -> Counters:
        """Return what happened after `before`; the backlog stays what it is."""
        return Counters(
            sent_bytes=self.sent_bytes - before.sent_bytes,
            sent_packets=self.sent_packets - before.sent_packets,
            dropped=self.dropped - before.dropped,
            overlimits=self.overlimits - before.overlimits,
            backlog_bytes=self.backlog_bytes,
        )


def one_fifo(network: NetworkName, rate: Rate, *, buffer: Size) -> HostQueues:
    """Return the queues of an interface without lanes: one for everything."""
    queue = HostQueue(traffic_class=TrafficClass.DEFAULT, queue=0, dscps=tuple(range(64)), weight=100, buffer=buffer)
    return HostQueues(network=network, rate=rate, queues=(queue,), default=TrafficClass.DEFAULT)


def apply_queues(spaces: Namespaces, queues: Sequence[tuple[Port, HostQueues]]) -> None:
    """Give interfaces their queues, one batch a namespace; what they had is replaced."""
    batches: dict[str, list[str]] = {}
    for port, wanted in queues:
        batches.setdefault(port.namespace, []).extend(apply_lines(wanted, port.interface))
    for namespace, lines in batches.items():
        spaces.run(namespace, ["tc", "-batch", "-"], text="\n".join(lines) + "\n")


def read_back(spaces: Namespaces, port: Port) -> HostQueues:
    """Read an interface's queues from the kernel."""
    namespace, device = port.namespace, port.interface
    return read_queues(
        f"{namespace}: {device}",
        classes=spaces.run(namespace, ["tc", "-d", "class", "show", "dev", device]),
        qdiscs=spaces.run(namespace, ["tc", "-j", "qdisc", "show", "dev", device]),
        filters=spaces.run(namespace, ["tc", "filter", "show", "dev", device]),
    )


_COUNTED = re.compile(
    r"^class htb (?P<major>\w+):(?P<minor>\w+) .*\n"
    r"\s*Sent (?P<bytes>\d+) bytes (?P<packets>\d+) pkt \(dropped (?P<dropped>\d+), overlimits (?P<over>\d+) .*\n"
    r"\s*backlog (?P<backlog>\d+)(?P<unit>[KMG]?)b",
    re.MULTILINE,
)
_FACTOR = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def count(spaces: Namespaces, port: Port) -> Mapping[TrafficClass, Counters]:
    """Return the counters of every lane of an interface."""
    text = spaces.run(port.namespace, ["tc", "-s", "class", "show", "dev", port.interface])
    found = {}
    for match in _COUNTED.finditer(text):
        minor = int(match["minor"], 16)
        if minor >> 4:
            found[tuple(TrafficClass)[(minor >> 4) - 1]] = Counters(
                sent_bytes=int(match["bytes"]),
                sent_packets=int(match["packets"]),
                dropped=int(match["dropped"]),
                overlimits=int(match["over"]),
                backlog_bytes=int(match["backlog"]) * _FACTOR[match["unit"]],
            )
    if not found:
        raise CheckFailed(f"{port.namespace}: {port.interface}: no lane's counters in what tc shows: {text[:200]!r}")
    return found
