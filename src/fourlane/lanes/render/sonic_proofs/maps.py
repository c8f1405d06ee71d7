"""Prove that every code point has a way through a switch, and every queue number is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.plan import DSCPS
from fourlane.lanes.render.config_db import indices
from fourlane.lanes.render.sonic_proofs.finding import Context, DeviceFinding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.render.config_db import PortView

__all__ = ["classification_findings", "overlaps", "queue_number_findings"]


def classification_findings(port: PortView) -> Iterator[DeviceFinding]:
    """Yield code points and traffic classes that lead nowhere."""
    place = "PORT_QOS_MAP|{port}"
    if not port.qos:
        yield DeviceFinding("port-map", place, "the port has queues or groups, but no maps", "bind maps to the port")
        return
    missing = [dscp for dscp in DSCPS if dscp not in port.dscp_to_tc]
    if missing:
        found = f"DSCP {', '.join(map(str, missing))} lead nowhere, which is traffic class 0 unseen"
        yield DeviceFinding("dscp-mapped", f"{place}: dscp_to_tc_map", found, "map all 64")
    for tc in sorted(set(port.dscp_to_tc.values())):
        if tc not in port.tc_to_queue:
            found = f"traffic class {tc} has code points, but no queue"
            yield DeviceFinding("tc-queue", f"{place}: tc_to_queue_map", found, f"map {tc} to a queue")
        if tc not in port.tc_to_group:
            found = f"traffic class {tc} has code points, but no priority group"
            yield DeviceFinding("tc-group", f"{place}: tc_to_pg_map", found, f"map {tc} to a group")


def queue_number_findings(context: Context, port: PortView) -> Iterator[DeviceFinding]:
    """Yield queues that do not exist or are claimed twice."""
    most = context.queues - 1
    mend = f"use queues 0 to {most}, those of {context.chip_name}"
    for table in ("QUEUE", "BUFFER_QUEUE"):
        seen: dict[int, str] = {}
        for key in port.keys[table]:
            place = f"{table}|{{port}}|{key}"
            span = indices(key)
            if span is None:
                yield DeviceFinding("number", place, f'expected a queue or range of queues, got "{key}"', mend)
            elif span[-1] > most:
                yield DeviceFinding("queue-range", place, f"queue {span[-1]} does not exist", mend)
            yield from overlaps("queue-overlap", place, key, seen)
    for name, queues in (("tc_to_queue_map", port.tc_to_queue), ("pfc_to_queue_map", port.pfc_to_queue)):
        for key, queue in queues.items():
            if not 0 <= queue <= most:
                found = f"{key} leads to queue {queue}, which does not exist"
                yield DeviceFinding("queue-range", f"PORT_QOS_MAP|{{port}}: {name}", found, mend)


def overlaps(code: str, place: str, key: str, seen: dict[int, str]) -> Iterator[DeviceFinding]:
    """Note a key's indices in `seen`; yield a finding if another key has one of them."""
    others = {seen[index] for index in indices(key) or () if index in seen}
    for other in sorted(others):
        found = f'"{key}" and "{other}" claim the same; which counts depends on the order they are read in'
        yield DeviceFinding(code, place, found, "give each a number or range of its own")
    for index in indices(key) or ():
        seen.setdefault(index, key)
