"""Prove that queues get their shares and caps, and mark without dropping what must pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.render.config_db import number
from fourlane.lanes.render.sonic_proofs.finding import Context, DeviceFinding
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.render.config_db import ConfigDb, Entry, PortView

__all__ = ["marking_findings", "marking_profile_findings", "queue_findings", "scheduler_findings"]

_SCHEDULER_FIELDS = frozenset({"type", "weight", "meter_type", "cir", "cbs", "pir", "pbs"})
_NETWORK_CONTROL = frozenset({48, 56})
"""CS6 and CS7, internetwork and network control (RFC 2474): notifications, routing protocols."""


def scheduler_findings(db: ConfigDb) -> Iterator[DeviceFinding]:
    """Yield schedulers that orchagent refuses or that say two things."""
    for name, entry in db.table("SCHEDULER").items():
        place = f"SCHEDULER|{name}"
        refused = sorted(entry.keys() - _SCHEDULER_FIELDS)
        if refused:
            found = f"{', '.join(refused)}: orchagent refuses the whole scheduler for a field it does not know"
            yield DeviceFinding("scheduler-field", place, found, f"leave {', '.join(sorted(_SCHEDULER_FIELDS))}")
        weight = number(entry.get("weight"))
        if weight is not None and not 1 <= weight <= 100:
            yield DeviceFinding(
                "scheduler-weight", place, f"weight {weight} is not from 1 to 100", "choose within that"
            )
        rates = {field: number(entry.get(field)) for field in ("cir", "cbs", "pir", "pbs")}
        for field, base in (("pir", "cir"), ("cbs", "cir"), ("pbs", "pir")):
            if rates[field] and not rates[base]:
                found = f"{field} is {rates[field]}, but there is no {base}"
                yield DeviceFinding(f"{field}-without-{base}", place, found, f"give a {base} beside it")
        for least, most in (("cir", "pir"), ("cbs", "pbs")):
            low, high = rates[least], rates[most]
            if low and high and high < low:
                found = f"{most} = {high} is below {least} = {low}"
                yield DeviceFinding(f"{most}-below-{least}", place, found, f"raise {most} to {low} or more")


def queue_findings(context: Context, port: PortView) -> Iterator[DeviceFinding]:
    """Yield queues without a scheduler or cap, and weights that are no shares."""
    db = context.db
    weights: dict[int, int] = {}
    for queue, entry in port.spread["QUEUE"].items():
        place = f"QUEUE|{{port}}|{queue}"
        name = db.plain(entry.get("scheduler"))
        scheduler = db.named("SCHEDULER", name)
        if name and name not in db.table("SCHEDULER"):
            yield DeviceFinding("unknown-name", place, f'there is no scheduler "{name}"', "define it, or name another")
        if not scheduler:
            continue
        peak = number(scheduler.get("pir"))
        if scheduler.get("type", "WRR") != "STRICT":
            weights[queue] = number(scheduler.get("weight", "1")) or 0
        elif not peak:
            found = f'"{name}" is strict and has no pir: it can starve every other queue'
            yield DeviceFinding("strict-cap", place, found, "give it a pir (and cir), in bytes per second")
        if peak and port.rate and scheduler.get("meter_type", "bytes") == "bytes" and peak > port.rate // 8:
            found = f'"{name}" has pir {peak}, more than the {port.rate // 8} bytes per second of the port'
            yield DeviceFinding("pir-unit", place, found, "give bytes per second, not bits")
    if weights and sum(weights.values()) != 100:
        listed = ", ".join(f"q{queue} {weight}" for queue, weight in weights.items())
        found = f"weights are {listed}: {sum(weights.values())} in all"
        yield DeviceFinding("weights", "QUEUE|{port}", found, "make them 100, so that a weight is a percentage")
    for tc, queue in context.used_queues(port):
        if "scheduler" not in port.of_index("QUEUE", queue):
            found = f"traffic class {tc} waits in queue {queue}, which has no scheduler of its own"
            yield DeviceFinding("queue-scheduler", f"QUEUE|{{port}}|{queue}", found, "name one")


def marking_profile_findings(db: ConfigDb) -> Iterator[DeviceFinding]:
    """Yield WRED profiles with thresholds or probabilities that are none."""
    for name, entry in db.table("WRED_PROFILE").items():
        for colour in ("green", "yellow", "red"):
            place = f"WRED_PROFILE|{name}"
            least, most = (number(entry.get(f"{colour}_{end}_threshold")) for end in ("min", "max"))
            if least is not None and most is not None and least > most:
                found = f"{colour}_min_threshold = {least} is above {colour}_max_threshold = {most}"
                yield DeviceFinding("wred-order", place, found, "exchange them")
            percent = number(entry.get(f"{colour}_drop_probability"))
            if percent is not None and percent > 100:
                found = f"{colour}_drop_probability = {percent} is above 100 percent"
                yield DeviceFinding("wred-probability", place, found, "give 0 to 100")


def marking_findings(context: Context, port: PortView) -> Iterator[DeviceFinding]:
    """Yield queues that mark or drop what they must not."""
    db = context.db
    for queue, entry in port.spread["QUEUE"].items():
        place = f"QUEUE|{{port}}|{queue}: wred_profile"
        name = db.plain(entry.get("wred_profile"))
        if name and name not in db.table("WRED_PROFILE"):
            yield DeviceFinding(
                "unknown-name", place, f'there is no WRED profile "{name}"', "define it, or name another"
            )
        profile = db.named("WRED_PROFILE", name)
        drops = [colour for colour in ("green", "yellow", "red") if profile.get(f"wred_{colour}_enable") == "true"]
        tcs = {tc for tc, own in port.tc_to_queue.items() if own == queue}
        if drops and tcs & set(port.paused):
            found = (
                f'"{name}" drops early what it cannot mark ({", ".join(drops)}), in a queue that pauses to lose nothing'
            )
            yield DeviceFinding("wred-lossless", place, found, "set wred_*_enable false: mark only")
        if drops and _carries_control(context, port, tcs):
            found = (
                f'"{name}" drops what it cannot mark ({", ".join(drops)}) in the queue of control traffic: '
                "notifications and acknowledgements are not ECN-capable"
            )
            yield DeviceFinding("wred-control", place, found, "set wred_*_enable false, or move control elsewhere")
        yield from _against_plan(context, place, tcs, profile)


def _carries_control(context: Context, port: PortView, tcs: set[int]) -> bool:
    planned = context.plan.classes.get(TrafficClass.CONTROL) if context.plan is not None else None
    points = _NETWORK_CONTROL if planned is None else frozenset({planned.dscp})
    return any(port.dscp_to_tc.get(dscp) in tcs for dscp in points)


def _against_plan(context: Context, place: str, tcs: set[int], profile: Entry) -> Iterator[DeviceFinding]:
    if context.plan is None or context.wanted is None or profile.get("ecn", "ecn_none") == "ecn_none":
        return
    for tc in sorted(tcs):
        kind = context.wanted.class_of_tc.get(tc)
        if kind is not None and context.plan.classes[kind].marking is None:
            found = f"the queue of {kind.value} marks, and the plan has ECN off for it"
            yield DeviceFinding("ecn-against-plan", place, found, "remove wred_profile from the queue")
