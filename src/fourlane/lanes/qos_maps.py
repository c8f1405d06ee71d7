"""The maps every switch of a network gets, whatever its operating system: code points to queues, groups, pauses.

A plan says what a class gets; devices are told by maps of numbers. They are built here, once, so that
`fourlane.lanes.check` proves of the very maps that the renderers write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import NetworkName

__all__ = ["QosMaps", "qos_maps"]


@dataclass(frozen=True, slots=True)
class QosMaps:
    """Numbers to numbers, in rising order of the key.

    `tc` is the switch's internal traffic class, which is the plan's `priority`. The PFC maps hold the
    priorities that pause, and no other.
    """

    dscp_to_tc: dict[int, int]
    tc_to_queue: dict[int, int]
    tc_to_group: dict[int, int]
    pfc_to_queue: dict[int, int]
    pfc_to_group: dict[int, int]
    class_of_tc: dict[int, TrafficClass]

    @property
    def lossless(self) -> tuple[int, ...]:
        """Return the priorities that pause."""
        return tuple(self.pfc_to_queue)

    def dscps_of(self, tc: int) -> list[int]:
        """Return the code points that lead to a traffic class."""
        return [dscp for dscp, to in self.dscp_to_tc.items() if to == tc]


def qos_maps(plan: LanePlan, network: NetworkName) -> QosMaps:
    """Build the maps of a network's switches.

    What belongs to a class that does not travel on this network is treated as `default`, and stays
    unmapped where that class does not travel here either.
    """
    here = plan.on(network)
    lossless = {lane.priority: lane for lane in here.values() if lane.lossless}
    dscp_to_tc = {}
    for dscp, kind in plan.class_of_dscp().items():
        lane = here.get(kind) or here.get(TrafficClass.DEFAULT)
        if lane is not None:
            dscp_to_tc[dscp] = lane.priority
    by_priority = sorted(here.items(), key=lambda item: item[1].priority)
    return QosMaps(
        dscp_to_tc=dscp_to_tc,
        tc_to_queue={lane.priority: lane.queue for _, lane in by_priority},
        tc_to_group={lane.priority: lane.group for _, lane in by_priority},
        pfc_to_queue={priority: lossless[priority].queue for priority in sorted(lossless)},
        pfc_to_group={priority: lossless[priority].group for priority in sorted(lossless)},
        class_of_tc={lane.priority: kind for kind, lane in by_priority},
    )
