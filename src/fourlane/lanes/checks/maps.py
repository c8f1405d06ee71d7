"""Proofs about marks and maps: code points to traffic classes, queues, groups and pauses, there and back."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fourlane.lanes.checks.case import Found
from fourlane.lanes.default_plan import spelled_ranges
from fourlane.lanes.plan import DSCPS, LOSSY_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.checks.case import Case

__all__ = [
    "every_dscp_is_mapped",
    "no_dscp_is_claimed_twice",
    "no_lossless_class_in_the_lossy_group",
    "pauses_close",
    "priority_is_that_of_the_dscp",
    "queues_close",
]


def every_dscp_is_mapped(case: Case) -> Iterator[Found]:
    """Every one of the 64 code points leads to a traffic class, on every network."""
    for name, maps in case.maps.items():
        missing = spelled_ranges(set(DSCPS) - set(maps.dscp_to_tc))
        if missing:
            yield Found(
                "error",
                f"network {name}",
                f"no class takes DSCP {', '.join(missing)}; switches would put it into traffic class 0 unseen",
                'add it to an accept list, such as that of [classes.default], whose network should be "both"',
            )


def no_dscp_is_claimed_twice(case: Case) -> Iterator[Found]:
    """No code point is claimed by two classes, or twice by one."""
    first: dict[int, str] = {}
    twice: dict[tuple[str, str], set[int]] = {}
    for kind, lane in case.plan.classes.items():
        for dscp in lane.dscps():
            if dscp in first:
                twice.setdefault((kind.value, first[dscp]), set()).add(dscp)
            first.setdefault(dscp, kind.value)
    for (kind, other), dscps in twice.items():
        yield Found(
            "error",
            f"classes.{kind}",
            f"DSCP {', '.join(spelled_ranges(dscps))} is claimed by {other} already",
            "leave it in one dscp or accept only",
        )


def queues_close(case: Case) -> Iterator[Found]:
    """DSCP -> traffic class -> queue leads to the class's queue, and each queue back to that class alone."""
    for name, maps in case.maps.items():
        for dscp, tc in maps.dscp_to_tc.items():
            if tc not in maps.tc_to_queue:
                yield Found(
                    "error", f"network {name}", f"DSCP {dscp} leads to traffic class {tc}, which has no queue", _WHOLE
                )
        for queue, count in Counter(maps.tc_to_queue.values()).items():
            if count > 1:
                yield Found("error", f"network {name}", f"queue {queue} is that of {count} traffic classes", _WHOLE)
        for kind, lane in case.plan.on(name).items():
            leads_to = maps.dscp_to_tc.get(lane.dscp)
            queue = None if leads_to is None else maps.tc_to_queue.get(leads_to)
            if queue != lane.queue or maps.class_of_tc.get(lane.priority) is not kind:
                found = f"DSCP {lane.dscp} leads to traffic class {leads_to} and queue {queue}, not {lane.queue}"
                yield Found("error", f"classes.{kind.value}", found, _WHOLE)


_WHOLE = "give every class a dscp, priority and queue of its own"


def pauses_close(case: Case) -> Iterator[Found]:
    """Traffic class -> priority group -> PFC priority -> queue agree: just the lossless classes pause."""
    for name, maps in case.maps.items():
        for kind, lane in case.plan.on(name).items():
            pauses = lane.priority in maps.pfc_to_queue
            group = maps.tc_to_group.get(lane.priority)
            if pauses != lane.lossless:
                found = (
                    "lossless, but its priority does not pause" if lane.lossless else "lossy, but its priority pauses"
                )
                yield Found("error", f"classes.{kind.value}", f"{found} on {name}", _OWN_PRIORITY)
            elif pauses and (
                maps.pfc_to_queue[lane.priority] != maps.tc_to_queue.get(lane.priority)
                or maps.pfc_to_group[lane.priority] != group
            ):
                found = (
                    f"on {name} a pause of priority {lane.priority} stops another queue or group than its packets use"
                )
                yield Found("error", f"classes.{kind.value}", found, _OWN_PRIORITY)
            elif not pauses and group in maps.pfc_to_group.values():
                found = f"lossy, but shares priority group {group} with a lossless class on {name}"
                yield Found("error", f"classes.{kind.value}", found, _OWN_PRIORITY)


_OWN_PRIORITY = "give every lossless class a priority from 1 to 7 that no other class has"


def no_lossless_class_in_the_lossy_group(case: Case) -> Iterator[Found]:
    """No lossless class is in priority group 0, which all lossy classes share."""
    for kind, lane in case.plan.classes.items():
        if lane.lossless and lane.group == LOSSY_GROUP:
            found = f"lossless with priority {lane.priority}, but group {LOSSY_GROUP} holds all lossy classes"
            yield Found("error", f"classes.{kind.value}.priority", found, "choose a free priority from 1 to 7")


def priority_is_that_of_the_dscp(case: Case) -> Iterator[Found]:
    """A class's priority is DSCP / 8, so that the plan holds on a NIC nobody has configured."""
    for kind, lane in case.plan.classes.items():
        if lane.priority != lane.dscp >> 3:
            yield Found(
                "warning",
                f"classes.{kind.value}.priority",
                f"{lane.priority}, but an unconfigured NIC gives DSCP {lane.dscp} priority {lane.dscp >> 3}",
                f"choose a DSCP from {lane.priority * 8} to {lane.priority * 8 + 7}, or priority {lane.dscp >> 3}; "
                "or configure every NIC (fourlane lanes render --target nic)",
            )
