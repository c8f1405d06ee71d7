"""Prove what buffers in config_db tables mean: sides, modes, headroom, and that the chip holds them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.render.config_db import indices, number
from fourlane.lanes.render.sonic_proofs.finding import Context, DeviceFinding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.render.config_db import Entry, PortView

__all__ = ["buffer_findings", "port_buffer_findings"]

_SIDE = {"BUFFER_PG": "egress", "BUFFER_QUEUE": "ingress"}
"""The pool type that a table's profiles may not have."""
_LISTS = {"BUFFER_PORT_INGRESS_PROFILE_LIST": "egress", "BUFFER_PORT_EGRESS_PROFILE_LIST": "ingress"}
_BUFFERMGRD = "pg_lossless_"
_UNLIMITED = 7
"""Alpha exponent that chips read as no limit (Mellanox SAI: infinity)."""


def buffer_findings(context: Context) -> Iterator[DeviceFinding]:
    """Yield what is wrong with pools and profiles, whichever port uses them."""
    for name, entry in context.db.table("BUFFER_PROFILE").items():
        yield from _profile(context, name, entry)
    for table, wrong in _LISTS.items():
        for port, entry in context.db.table(table).items():
            for name in entry.get("profile_list", "").split(","):
                yield from _side(context, f"{table}|{port}", name, wrong)
    yield from _sums(context)
    yield from _trimmed(context)


def port_buffer_findings(context: Context, port: PortView) -> Iterator[DeviceFinding]:
    """Yield what is wrong with a port's groups and queues; "{port}" stands for its name in places."""
    for table, wrong in _SIDE.items():
        for key, entry in port.keys[table].items():
            place = f"{table}|{{port}}|{key}"
            if indices(key) is None:
                yield DeviceFinding("number", place, f'expected a number or range, got "{key}"', 'write "3" or "3-4"')
            yield from _side(context, place, entry.get("profile", ""), wrong)
    groups = {port.pfc_to_group.get(priority) for priority in port.paused}
    for group, entry in port.spread["BUFFER_PG"].items():
        if number(_profile_of(context, entry).get("xoff")) and group not in groups:
            found = f"group {group} has headroom, but no priority of pfc_enable pauses for it"
            yield DeviceFinding("headroom-unused", f"BUFFER_PG|{{port}}|{group}", found, "enable PFC, or take it back")
    for tc, queue in context.used_queues(port):
        yield from _way_out(context, port, tc, queue)


def _profile_of(context: Context, entry: Entry) -> Entry:
    return context.db.named("BUFFER_PROFILE", entry.get("profile"))


def _side(context: Context, place: str, name: str, wrong: str) -> Iterator[DeviceFinding]:
    plain = context.db.plain(name)
    if plain == "NULL":
        return
    profile = context.db.named("BUFFER_PROFILE", plain)
    if plain not in context.db.table("BUFFER_PROFILE"):
        yield DeviceFinding(
            "unknown-name", place, f'there is no buffer profile "{plain}"', "define it, or name another"
        )
    elif context.db.named("BUFFER_POOL", profile.get("pool")).get("type") == wrong:
        found = f'profile "{plain}" draws from {context.db.plain(profile.get("pool"))}, a pool of the {wrong} side'
        right = "ingress" if wrong == "egress" else "egress"
        yield DeviceFinding("pool-side", place, found, f"name a profile of an {right} pool")


def _profile(context: Context, name: str, entry: Entry) -> Iterator[DeviceFinding]:
    place = f"BUFFER_PROFILE|{name}"
    pool_name = context.db.plain(entry.get("pool"))
    pool = context.db.named("BUFFER_POOL", pool_name)
    if not pool:
        yield DeviceFinding("unknown-name", place, f'there is no pool "{pool_name}"', "define it, or name another")
    if name.startswith(_BUFFERMGRD):
        found = "buffermgrd gives such names to its own profiles, and writes over yours"
        yield DeviceFinding("profile-name", place, found, f"choose a name that does not begin with {_BUFFERMGRD}")
    thresholds = [field for field in ("dynamic_th", "static_th") if field in entry]
    if len(thresholds) != 1 and entry.get("headroom_type") != "dynamic":
        found = f"has {' and '.join(thresholds) or 'neither dynamic_th nor static_th'}"
        yield DeviceFinding("threshold", place, found, "give exactly one")
    yield from _alpha(context, place, entry)
    size, xoff = number(entry.get("size")) or 0, number(entry.get("xoff")) or 0
    shared = number(pool.get("xoff")) or 0
    if xoff > (shared or size):
        what = f'the {shared} of the shared headroom of "{pool_name}"' if shared else f"its size of {size}"
        found = f"xoff = {xoff} is more than {what}: what arrives after a pause does not fit"
        yield DeviceFinding("xoff", place, found, "raise the size, or lower xoff to what the cable needs")


def _alpha(context: Context, place: str, entry: Entry) -> Iterator[DeviceFinding]:
    exponent = number(entry.get("dynamic_th"))
    if context.chip is None or exponent is None:
        return
    least, most = context.chip.alpha_exponents
    if not least <= exponent <= most:
        found = f"dynamic_th = {exponent}, but {context.chip_name} takes {least} to {most}"
        yield DeviceFinding("alpha", place, found, "choose within that; alpha is two to its power")


def _way_out(context: Context, port: PortView, tc: int, queue: int) -> Iterator[DeviceFinding]:
    """A queue in use has a profile, and one that pauses is limited by nothing."""
    place = f"BUFFER_QUEUE|{{port}}|{queue}"
    profile = _profile_of(context, port.of_index("BUFFER_QUEUE", queue))
    if not port.of_index("BUFFER_QUEUE", queue):
        found = f"traffic class {tc} waits in queue {queue}, which has no buffer profile"
        yield DeviceFinding("queue-buffer", place, found, "name one")
    if tc not in port.paused or not profile:
        return
    pool_size = number(context.db.named("BUFFER_POOL", profile.get("pool")).get("size")) or 0
    unlimited = number(profile.get("dynamic_th")) == _UNLIMITED or (number(profile.get("static_th")) or -1) >= pool_size
    if not unlimited:
        found = f"traffic class {tc} pauses, but its queue is limited on the way out and drops what was let in"
        mend = "give the queue a profile whose static_th is its pool's size"
        yield DeviceFinding("lossless-egress", place, found, mend)
    if profile.get("packet_discard_action") == "trim":
        found = f"traffic class {tc} pauses and trims"
        yield DeviceFinding("lossless-trim", place, found, "choose one: a lossless class drops nothing to trim")


def _sums(context: Context) -> Iterator[DeviceFinding]:
    """On either side, pools and what is reserved beside them are no more than the chip has."""
    if context.chip is None:
        return
    for side, table in (("ingress", "BUFFER_PG"), ("egress", "BUFFER_QUEUE")):
        pools = {
            name: entry
            for name, entry in context.db.table("BUFFER_POOL").items()
            if entry.get("type") in (side, "both") and (side == "ingress" or entry.get("mode") == "dynamic")
        }
        pooled = sum((number(entry.get(field)) or 0) for entry in pools.values() for field in ("size", "xoff"))
        reserved = sum(_reserved(context, port, table, set(pools)) for port in context.db.ports)
        if pooled + reserved > context.chip.buffer:
            found = (
                f"{pooled} bytes in {', '.join(pools)} and {reserved} reserved in {table} are {pooled + reserved} in "
                f"all, and {context.chip_name} has {int(context.chip.buffer)}"
            )
            yield DeviceFinding("buffer", f"BUFFER_POOL ({side})", found, "lower the pool by what is reserved")
    for name, entry in context.db.table("BUFFER_POOL").items():
        if (number(entry.get("size")) or 0) > context.chip.buffer:
            found = f"{entry['size']} bytes, and {context.chip_name} has {int(context.chip.buffer)}"
            yield DeviceFinding("buffer", f"BUFFER_POOL|{name}", found, "lower it")


def _reserved(context: Context, port: PortView, table: str, pools: set[str]) -> int:
    total = 0
    for key, entry in port.keys[table].items():
        profile = _profile_of(context, entry)
        if context.db.plain(profile.get("pool")) in pools:
            total += (number(profile.get("size")) or 0) * len(indices(key) or ())
    return total


def _trimmed(context: Context) -> Iterator[DeviceFinding]:
    """Where packets are trimmed, what is left of them has a mark and a queue."""
    trims = [
        name
        for name, entry in context.db.table("BUFFER_PROFILE").items()
        if entry.get("packet_discard_action") == "trim"
    ]
    settings = context.db.named("SWITCH_TRIMMING", "GLOBAL")
    missing = [field for field in ("size", "dscp_value", "queue_index") if field not in settings]
    if trims and missing:
        found = f"{', '.join(trims)} trim, but SWITCH_TRIMMING lacks {', '.join(missing)}: orchagent trims nothing"
        yield DeviceFinding("trimming", "SWITCH_TRIMMING|GLOBAL", found, "give all three")
