"""The lane plan: what each class of traffic gets in switches, NICs, hosts and libraries - said once.

Read from TOML by `load_plan`. Everything that marks, queues, renders or simulates traffic reads a
`LanePlan`. Not for whether a plan is sound on a cluster (`fourlane.lanes.check`), nor for where its
default figures come from (`fourlane.lanes.default_plan`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.spec.load import load, parse
from fourlane.spec.traffic import MOST_DSCP, TrafficClass, dscp_to_tos
from fourlane.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fourlane.spec.cluster import NetworkName


__all__ = [
    "DSCPS",
    "LOSSY_GROUP",
    "SCHEMA_VERSION",
    "Carrier",
    "Ecn",
    "Lane",
    "LanePlan",
    "Pfc",
    "Trimming",
    "dscp_range",
    "load_plan",
    "parse_plan",
]

SCHEMA_VERSION = 1
DSCPS = range(MOST_DSCP + 1)
LOSSY_GROUP = 0
"""The priority group that every lossy class shares; a lossless class has that of its priority."""

Carrier = Literal["deepep-v1", "deepep-v2", "nvshmem", "nccl", "ucx", "mooncake", "gloo", "sockets"]
_TCP_CARRIERS = frozenset({"gloo", "sockets"})
_ECT0 = 2
_RANGE = re.compile(r"([0-9]{1,2})(?:-([0-9]{1,2}))?")


class Ecn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a queue marks ECN-capable packets: never below `kmin`, up to `pmax` at `kmax`, always above.

    Units:
        kmin, kmax: bytes queued in the class's queue of one port. pmax: probability, 0 to 1.
    """

    kmin: Size
    kmax: Size
    pmax: float


class Lane(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one class of traffic gets.

    `dscp` is what its senders write, `accept` further code points that switches put in the same
    class ("7", "9-15"). `priority` is the switch's traffic class and, for a lossless class, its PFC
    priority and priority group. A strict queue goes before all others up to `cap`; the others share
    what is left by `weight`, deficit round robin. `alpha` bounds the queue to alpha times the
    buffer still free, on top of `reserved`. A lossless class pauses its senders; a lossy one drops,
    or with `trim` cuts the payload off and sends the header on. `network` says where the class
    travels. `carriers` are the libraries that carry it. `ect` says whether RDMA senders declare their
    packets ECN-capable (None: just when `ecn` marks); without, no switch can mark them.

    Units:
        weight: percent of the link, of all weighted classes on it. cap: percent of the link.
    """

    dscp: int
    accept: tuple[str, ...] = ()
    priority: int
    queue: int
    scheduler: Literal["strict", "dwrr"]
    weight: int | None = None
    cap: int | None = None
    alpha: float
    reserved: Size = Size(0)
    lossless: bool = False
    trim: bool = False
    ecn: Literal["off"] | Ecn = "off"
    ect: bool | None = None
    routing: Literal["ecmp", "adaptive"] = "ecmp"
    network: Literal["hpn", "dcn", "both"] = "both"
    carriers: tuple[Carrier, ...] = ()

    @property
    def group(self) -> int:
        """Return the ingress priority group: the priority's own if lossless, else the lossy one."""
        return self.priority if self.lossless else LOSSY_GROUP

    @property
    def marking(self) -> Ecn | None:
        """Return the ECN thresholds; None if the queue never marks."""
        return self.ecn if isinstance(self.ecn, Ecn) else None

    @property
    def over_tcp(self) -> bool:
        """Tell whether all its carriers are TCP sockets, which repair losses by themselves."""
        return bool(self.carriers) and _TCP_CARRIERS.issuperset(self.carriers)

    @property
    def tos(self) -> int:
        """Return the ToS (traffic class) byte that RDMA libraries are given; TCP sets its ECN bits itself."""
        capable = self.marking is not None if self.ect is None else self.ect
        return dscp_to_tos(self.dscp, ecn=_ECT0 if capable and not self.over_tcp else 0)

    def on(self, network: NetworkName) -> bool:
        """Tell whether the class travels on a network."""
        return self.network in (network, "both")

    def dscps(self) -> Iterator[int]:
        """Yield every code point of the class, its own first; twice what is written twice.

        Raises:
            ValueError: an entry of `accept` is no code point and no range of them.
        """
        yield self.dscp
        for text in self.accept:
            yield from dscp_range(text)


class Pfc(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pauses are guarded, on every port with a lossless class.

    The watchdog acts on a queue that stays paused for `detection`, and lets it live again after
    `restoration`. `shared_headroom` gives out headroom from one pool that is smaller than the sum of
    what all ports could need at once, by `oversubscription`. `headroom` replaces the formula's figure for
    every port, for chips of which no figure is published.
    """

    watchdog: bool = True
    poll: Duration = Duration.parse("100ms")
    detection: Duration = Duration.parse("200ms")
    restoration: Duration = Duration.parse("400ms")
    action: Literal["drop", "forward"] = "drop"
    shared_headroom: bool = False
    oversubscription: int = 2
    headroom: Size | None = None


class Trimming(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of a packet that a class with `trim` cannot queue: `size` bytes of it travel on as `to`."""

    size: Size = Size(256)
    to: TrafficClass = TrafficClass.CONTROL


class LanePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One plan for all devices."""

    version: int = SCHEMA_VERSION
    name: str = "lanes"
    classes: dict[TrafficClass, Lane]
    pfc: Pfc = Pfc()
    trimming: Trimming = Trimming()

    def on(self, network: NetworkName) -> dict[TrafficClass, Lane]:
        """Return the classes of a network, in the fixed order of `TrafficClass`."""
        return {
            kind: self.classes[kind] for kind in TrafficClass if kind in self.classes and self.classes[kind].on(network)
        }

    def lossless_on(self, network: NetworkName) -> dict[TrafficClass, Lane]:
        """Return the lossless classes of a network."""
        return {kind: lane for kind, lane in self.on(network).items() if lane.lossless}

    def class_of_dscp(self) -> dict[int, TrafficClass]:
        """Return the class of every mapped code point; of several claims the first counts.

        Raises:
            ValueError: an entry of an `accept` is no code point and no range of them.
        """
        found: dict[int, TrafficClass] = {}
        for kind, lane in self.classes.items():
            for dscp in lane.dscps():
                found.setdefault(dscp, kind)
        return dict(sorted(found.items()))


def dscp_range(text: str) -> range:
    """Return the code points of "7" or "9-15", both ends included.

    Raises:
        ValueError: it is neither, or beyond 63.
    """
    match = _RANGE.fullmatch(text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= MOST_DSCP:
        raise ValueError(f'expected a DSCP or a range within 0-{MOST_DSCP}, such as "9-15", got "{text}"')
    return range(first, last + 1)


def load_plan(path: str | Path, *, overrides: Sequence[str] = ()) -> LanePlan:
    """Read a lane plan and see that its values are values: the rules of form, not those of sense.

    Raises:
        SpecError: with every fault of the file and the overrides.
    """
    from fourlane.lanes.rules import plan_faults

    return load(path, LanePlan, overrides, rules=plan_faults)


def parse_plan(text: str, *, source: str, overrides: Sequence[str] = ()) -> LanePlan:
    """Read a lane plan from TOML text; `source` is what messages call it.

    Raises:
        SpecError: with every fault of the text and the overrides.
    """
    from fourlane.lanes.rules import plan_faults

    return parse(text, LanePlan, overrides, source=source, rules=plan_faults)
