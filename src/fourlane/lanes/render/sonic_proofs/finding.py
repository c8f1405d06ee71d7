"""What the proofs of config_db share: a finding, and what it is judged by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.lanes.qos_maps import QosMaps
    from fourlane.lanes.render.config_db import ConfigDb, PortView
    from fourlane.spec.hardware import SwitchModel

__all__ = ["CHECKS", "Context", "DeviceFinding"]

CHECKS = {
    "form": "Tables are tables of entries of text.",
    "number": "What has to be a number is one.",
    "empty-entry": "No map has an entry with an empty key or value, which the YANG patterns admit.",
    "dscp-range": "Code points are 0 to 63.",
    "inert-table": "No table is one that upstream SONiC accepts and ignores.",
    "unknown-name": "Every name that is referred to is defined.",
    "port-map": "A port with queues or groups has maps.",
    "dscp-mapped": "All 64 code points are mapped.",
    "tc-queue": "Every traffic class in use has a queue.",
    "tc-group": "Every traffic class in use has a priority group.",
    "queue-range": "No queue number is beyond the chip.",
    "queue-overlap": "No two entries claim a queue of a port.",
    "group-overlap": "No two entries claim a priority group of a port.",
    "pfc-unused": "Every priority that pauses has code points.",
    "pfc-queue": "A pause stops the queue its traffic class waits in.",
    "pfc-group": "A priority pauses for the group its traffic class fills.",
    "headroom": "Every group that pauses has headroom.",
    "headroom-unused": "Every group with headroom pauses.",
    "xoff": "Headroom fits what is reserved for it, or the shared headroom pool.",
    "lossy-in-lossless": "No lossy class shares a group with one that pauses.",
    "group-overwritten": "buffermgrd does not write over lossless groups, or beside them.",
    "profile-name": "No profile bears a name buffermgrd gives to its own.",
    "watchdog": "Every priority that pauses has a watchdog.",
    "watchdog-times": "The watchdog's times are within SONiC's limits.",
    "scheduler-field": "No scheduler has a field that orchagent refuses.",
    "scheduler-weight": "Weights are 1 to 100.",
    "queue-scheduler": "Every queue in use has a scheduler.",
    "weights": "The weights of a port sum to 100.",
    "strict-cap": "Strict queues are capped.",
    "pir-without-cir": "A peak rate has a committed rate beside it.",
    "cbs-without-cir": "A committed burst has a committed rate beside it.",
    "pbs-without-pir": "A peak burst has a peak rate beside it.",
    "pir-below-cir": "Peak rates are no lower than committed rates.",
    "pbs-below-cbs": "Peak bursts are no smaller than committed bursts.",
    "pir-unit": "No peak rate is above the port's, as one in bits would be.",
    "wred-order": "Minimum thresholds are no higher than maximum ones.",
    "wred-probability": "Probabilities are 0 to 100 percent.",
    "wred-lossless": "No queue that pauses drops early what it cannot mark.",
    "wred-control": "No queue with control traffic drops what it cannot mark.",
    "ecn-against-plan": "No queue marks where the plan has ECN off.",
    "pool-side": "Groups draw from ingress pools, queues from egress pools.",
    "threshold": "A profile has one threshold, dynamic or static.",
    "alpha": "Dynamic thresholds are within the chip's limits.",
    "queue-buffer": "Every queue in use has a buffer profile.",
    "lossless-egress": "A queue that pauses is limited by nothing on the way out.",
    "lossless-trim": "No queue that pauses trims.",
    "trimming": "Where packets are trimmed, SWITCH_TRIMMING says what becomes of them.",
    "buffer": "Pools and reservations fit the chip's buffer.",
}
"""What is proven of config_db tables, by the name a finding bears."""

_USUAL_QUEUES = 8


@dataclass(frozen=True, slots=True)
class DeviceFinding:
    """An error of meaning in a device's tables: the proof's name, where, what was found, what mends it."""

    check: str
    place: str
    found: str
    mend: str

    def __post_init__(self) -> None:
        assert self.check in CHECKS, self.check

    def __str__(self) -> str:
        """Write it as one line."""
        return f"{self.check}: {self.place}: {self.found}; {self.mend}"

    def at(self, place: str) -> Self:
        """Return the same finding at another place."""
        return replace(self, place=place)


@dataclass(frozen=True, slots=True)
class Context:
    """The tables, the chip they are for, and what was planned, as far as these are known."""

    db: ConfigDb
    chip: SwitchModel | None
    plan: LanePlan | None
    wanted: QosMaps | None

    @property
    def queues(self) -> int:
        """Return how many queues a port has."""
        return self.chip.queues if self.chip is not None else _USUAL_QUEUES

    @property
    def chip_name(self) -> str:
        """Return the chip's name, or what stands for it."""
        return self.chip.chip if self.chip is not None else "most chips"

    def used_queues(self, port: PortView) -> list[tuple[int, int]]:
        """Return the traffic classes that code points lead to, and their queues."""
        used = sorted(set(port.dscp_to_tc.values()))
        return [(tc, port.tc_to_queue[tc]) for tc in used if tc in port.tc_to_queue]
