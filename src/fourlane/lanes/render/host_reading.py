"""Read the lanes of a Linux host interface back from what `tc` shows: the inverse of `host`.

So nothing is believed that the kernel does not hold. Text only; who runs `tc` is the lab's business, or the script's.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from fourlane.errors import CheckFailed
from fourlane.lanes.render.host import HostQueue, HostQueues
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Rate, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.spec.cluster import NetworkName

__all__ = ["read_queues"]

CLASSES = tuple(TrafficClass)


def read_queues(where: str, *, classes: str, qdiscs: str, filters: str) -> HostQueues:
    """Read an interface's lanes from what the kernel holds.

    Args:
        where: host and interface, for messages.
        classes: what `tc -d class show dev X` prints.
        qdiscs: what `tc -j qdisc show dev X` prints.
        filters: what `tc filter show dev X` prints.

    Raises:
        CheckFailed: these are not lanes as `apply_lines` makes them; says which part is not.
    """
    kernel = _Kernel(where, classes, qdiscs, filters)
    queues = tuple(kernel.queue(match) for match in kernel.leaves)
    try:
        return HostQueues(network=kernel.network, rate=kernel.rate, queues=queues, default=kernel.default)
    except AssertionError as error:
        raise CheckFailed(f"{where}: {error}") from None


class _Kernel:
    """What the kernel says of one interface."""

    def __init__(self, where: str, classes: str, qdiscs: str, filters: str) -> None:
        self._where = where
        root, self._limits = self._read_qdiscs(qdiscs)
        self.network, self.major = self._network(root["handle"])
        default = int(str(root["options"]["default"]), 16)
        self.default = self._class_of(default)
        found = list(_class_lines(classes))
        tops = [fields for fields in found if fields["id"] == f"{self.major}:1"]
        self._require(len(tops) == 1, f"expected the class {self.major}:1 over all others, found none")
        self._top = tops[0]
        self.rate = Rate(_rate(self._top["rate"]))
        self.leaves = sorted((fields for fields in found if fields["id"] != self._top["id"]), key=_minor)
        self._strict = sum(self._cap(fields) for fields in self.leaves if fields["prio"] == "0")
        self._dscps = self._read_filters(filters)
        self._dscps[default] = set(range(64)) - set().union(*self._dscps.values())

    def queue(self, fields: dict[str, str]) -> HostQueue:
        minor = _minor(fields)
        strict = fields["prio"] == "0"
        self._require(minor in self._dscps, f"class {fields['id']}: no filter leads to it")
        limit = self._limits.get(fields["id"])
        if limit is None:
            raise CheckFailed(f"{self._where}: class {fields['id']}: expected a bfifo below it, found none")
        return HostQueue(
            traffic_class=self._class_of(minor),
            queue=minor & 0xF,
            dscps=tuple(sorted(self._dscps[minor])),
            weight=None if strict else self._weight(fields),
            cap=self._cap(fields) if strict or fields["ceil"] != self._top["ceil"] else None,
            buffer=Size(limit),
        )

    def _read_qdiscs(self, text: str) -> tuple[dict[str, Any], dict[str, int]]:
        entries = json.loads(text or "[]")
        roots = [entry for entry in entries if entry.get("root") and entry["kind"] == "htb"]
        kinds = ", ".join(entry["kind"] for entry in entries) or "none"
        self._require(len(roots) == 1, f"expected an HTB root queue, found {kinds}")
        limits = {entry["parent"]: entry["options"]["limit"] for entry in entries if entry["kind"] == "bfifo"}
        return roots[0], limits

    def _network(self, handle: str) -> tuple[NetworkName, int]:
        if handle == "1:":
            return "hpn", 1
        self._require(handle == "2:", f"expected the root queue 1: (hpn) or 2: (dcn), found {handle}")
        return "dcn", 2

    def _class_of(self, minor: int) -> TrafficClass:
        index = (minor >> 4) - 1
        self._require(0 <= index < len(CLASSES), f"class {self.major}:{minor:x} is no lane's")
        return CLASSES[index]

    def _cap(self, fields: dict[str, str]) -> int:
        return self._percent(fields["id"], Fraction(_rate(fields["ceil"]) * 100, int(self.rate)))

    def _weight(self, fields: dict[str, str]) -> int:
        share = Fraction(_rate(fields["rate"]) * 10_000, int(self.rate) * (100 - self._strict))
        return self._percent(fields["id"], share)

    def _percent(self, name: str, exact: Fraction) -> int:
        """Return whole percent; rates are held in whole kbit/s, or four digits where tc shows no more."""
        near = round(exact)
        whole = abs(exact - near) < Fraction(1, 50)
        self._require(whole, f"class {name}: a share of {float(exact):.2f} % is no lane's")
        return near

    def _read_filters(self, text: str) -> dict[int, set[int]]:
        of_protocol: dict[str, dict[int, set[int]]] = {"ip": {}, "ipv6": {}}
        for protocol, flow, value, mask in _filter_matches(text):
            shift = 16 if protocol == "ip" else 20
            by_dscp = protocol in of_protocol and mask >> shift & ~0xFC == 0
            self._require(by_dscp, f"a filter for {protocol} is no lane's")
            wanted, bits = value >> shift >> 2, mask >> shift >> 2
            dscps = {dscp for dscp in range(64) if dscp & bits == wanted}
            major, _, minor = flow.partition(":")
            self._require(int(major, 16) == self.major, f"a filter leads to {flow}, outside this interface's classes")
            of_protocol[protocol].setdefault(int(minor, 16), set()).update(dscps)
        self._require(of_protocol["ip"] == of_protocol["ipv6"], "the filters of IPv4 and IPv6 differ")
        return of_protocol["ip"]

    def _require(self, condition: bool, message: str) -> None:  # noqa: FBT001
        if not condition:
            raise CheckFailed(f"{self._where}: {message}")


_CLASS = re.compile(
    r"^class htb (?P<id>\S+) (?:root|parent \S+)(?: leaf \S+)?(?: prio (?P<prio>\d+))?(?: quantum (?P<quantum>\d+))?"
    r" rate (?P<rate>\S+) ceil (?P<ceil>\S+)",
    re.MULTILINE,
)
_FILTER = re.compile(r"^filter .*protocol (?P<protocol>\S+) pref .*flowid (?P<flow>\S+)")
_MATCH = re.compile(r"^\s+match (?P<value>[0-9a-f]{8})/(?P<mask>[0-9a-f]{8}) at 0")
_UNITS = {"bit": 1, "Kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9, "Tbit": 10**12}


def _class_lines(text: str) -> Iterator[dict[str, str]]:
    for match in _CLASS.finditer(text):
        yield {name: value or "" for name, value in match.groupdict().items()}


def _minor(fields: dict[str, str]) -> int:
    return int(fields["id"].partition(":")[2], 16)


def _filter_matches(text: str) -> Iterator[tuple[str, str, int, int]]:
    protocol = flow = ""
    for line in text.splitlines():
        if head := _FILTER.match(line):
            protocol, flow = head["protocol"], head["flow"]
        elif match := _MATCH.match(line):
            yield protocol, flow, int(match["value"], 16), int(match["mask"], 16)


def _rate(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?bit)", text)
    if match is None:
        raise CheckFailed(f"tc: expected a rate such as 500Mbit, got {text!r}")
    return int(match[1]) * _UNITS[match[2]]
