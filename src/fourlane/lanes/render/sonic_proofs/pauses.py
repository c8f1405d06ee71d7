"""Prove that what pauses has headroom, a group and queue of its own, and a watchdog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.render.config_db import indices, number
from fourlane.lanes.render.sonic_proofs.finding import Context, DeviceFinding
from fourlane.lanes.render.sonic_proofs.maps import overlaps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.render.config_db import ConfigDb, PortView

__all__ = ["pause_findings", "watchdog_findings"]


def pause_findings(context: Context, port: PortView) -> Iterator[DeviceFinding]:
    """Yield pauses without headroom, watchdog, or a group and queue of their own."""
    seen: dict[int, str] = {}
    for key in port.keys["BUFFER_PG"]:
        yield from overlaps("group-overlap", f"BUFFER_PG|{{port}}|{key}", key, seen)
    for priority in port.paused:
        yield from _paused(context, port, priority)
    for tc, group in sorted(port.tc_to_group.items()):
        if tc not in port.paused and tc in port.dscp_to_tc.values() and group in _paused_groups(port):
            found = f"traffic class {tc} is lossy, but shares priority group {group} with one that pauses"
            mend = "give lossy classes another group: they would fill the headroom, and pause others"
            yield DeviceFinding("lossy-in-lossless", "PORT_QOS_MAP|{port}: tc_to_pg_map", found, mend)
    yield from _buffermgrd(context, port)


def _paused_groups(port: PortView) -> set[int]:
    return {port.pfc_to_group[priority] for priority in port.paused if priority in port.pfc_to_group}


def _paused(context: Context, port: PortView, priority: int) -> Iterator[DeviceFinding]:
    place = "PORT_QOS_MAP|{port}: pfc_enable"
    group, queue = port.pfc_to_group.get(priority), port.pfc_to_queue.get(priority)
    own_queue, own_group = port.tc_to_queue.get(priority), port.tc_to_group.get(priority)
    if priority not in port.dscp_to_tc.values():
        found = f"priority {priority} pauses, but no code point leads to traffic class {priority}"
        yield DeviceFinding("pfc-unused", place, found, f"take {priority} out of pfc_enable, or map a DSCP to it")
    if queue is None or (own_queue is not None and queue != own_queue):
        found = f"a pause of priority {priority} stops queue {queue}, but its traffic class waits in queue {own_queue}"
        mend = f"map {priority} to {own_queue} in MAP_PFC_PRIORITY_TO_QUEUE"
        yield DeviceFinding("pfc-queue", "PORT_QOS_MAP|{port}: pfc_to_queue_map", found, mend)
    if group is None or (own_group is not None and group != own_group):
        found = f"priority {priority} pauses for group {group}, but its traffic class fills group {own_group}"
        mend = f"map traffic class {priority} to the priority group that pauses for it"
        yield DeviceFinding("pfc-group", "PORT_QOS_MAP|{port}: tc_to_pg_map", found, mend)
    if group is not None:
        yield from _headroom(context, port, priority, group)
    if priority not in port.watched or "detection_time" not in port.watchdog:
        missing = "not in pfcwd_sw_enable" if priority not in port.watched else "the port has no entry in PFC_WD"
        found = f"priority {priority} pauses without a watchdog: {missing}; one sick NIC can stop the network"
        yield DeviceFinding("watchdog", "PFC_WD|{port}", found, f"add {priority} to pfcwd_sw_enable and PFC_WD times")


def _headroom(context: Context, port: PortView, priority: int, group: int) -> Iterator[DeviceFinding]:
    name = context.db.plain(port.of_index("BUFFER_PG", group).get("profile"))
    left_to_sonic = _by_buffermgrd(context, port) if not name else name == "NULL" and not _traditional(context)
    if left_to_sonic:
        return
    if not number(context.db.named("BUFFER_PROFILE", name).get("xoff")):
        has = f'profile "{name}" without xoff' if name else "no profile"
        found = f"priority {priority} pauses, but its group {group} has {has}: what arrives after a pause is lost"
        mend = "give the group a profile with xoff, the headroom"
        yield DeviceFinding("headroom", f"BUFFER_PG|{{port}}|{group}", found, mend)


def _traditional(context: Context) -> bool:
    return context.db.buffer_model == "traditional"


def _by_buffermgrd(context: Context, port: PortView) -> bool:
    """Tell whether buffermgrd writes the port's lossless groups: in the traditional model, by the cable's length."""
    return bool(port.paused) and _traditional(context) and port.cable not in (None, "0m")


def _buffermgrd(context: Context, port: PortView) -> Iterator[DeviceFinding]:
    """What buffermgrd writes, nobody else may; a port without lossless groups of its own is right to leave it all."""
    spans = _runs(port.paused)
    clash = [own for own in port.keys["BUFFER_PG"] if any(set(indices(own) or ()) & set(run) for run in spans)]
    if not clash or not _by_buffermgrd(context, port):
        return
    found = (
        f"{port.cable}, and pfc_enable {','.join(map(str, port.paused))}: buffermgrd writes the profiles of groups "
        f"{', '.join(map(_span, spans))} by its own table, over or beside yours ({', '.join(clash)})"
    )
    mend = "set the cable to 0m, which keeps buffermgrd out, or remove your groups"
    yield DeviceFinding("group-overwritten", "CABLE_LENGTH: {port}", found, mend)


def _runs(numbers: tuple[int, ...]) -> list[range]:
    runs: list[range] = []
    for value in numbers:
        if runs and value == runs[-1].stop:
            runs[-1] = range(runs[-1].start, value + 1)
        else:
            runs.append(range(value, value + 1))
    return runs


def _span(run: range) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def watchdog_findings(db: ConfigDb) -> Iterator[DeviceFinding]:
    """Yield watchdog times beyond SONiC's limits."""
    poll = number(db.named("PFC_WD", "GLOBAL").get("POLL_INTERVAL"))
    if poll is not None and not 100 <= poll <= 1000:
        found = f"{poll} ms is not from 100 to 1000"
        yield DeviceFinding("watchdog-times", "PFC_WD|GLOBAL: POLL_INTERVAL", found, "choose within that")
    for port, entry in db.table("PFC_WD").items():
        for field, most in (("detection_time", 5000), ("restoration_time", 60_000)):
            time = number(entry.get(field))
            if time is not None and not max(100, poll or 0) <= time <= most:
                found = f"{time} ms is not from {max(100, poll or 0)} (the poll interval, at least 100) to {most}"
                yield DeviceFinding("watchdog-times", f"PFC_WD|{port}: {field}", found, "choose within that")
