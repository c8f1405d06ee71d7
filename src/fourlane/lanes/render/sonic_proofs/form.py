"""Prove that config_db tables are tables, and their numbers numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.plan import DSCPS
from fourlane.lanes.render.config_db import number
from fourlane.lanes.render.sonic_proofs.finding import DeviceFinding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lanes.render.config_db import ConfigDb, Entry

__all__ = ["form_findings"]

_NUMERIC = {
    "SCHEDULER": ("weight", "cir", "cbs", "pir", "pbs"),
    "WRED_PROFILE": tuple(
        f"{colour}_{field}"
        for colour in ("green", "yellow", "red")
        for field in ("min_threshold", "max_threshold", "drop_probability")
    ),
    "BUFFER_POOL": ("size", "xoff"),
    "BUFFER_PROFILE": ("size", "xoff", "xon", "dynamic_th", "static_th"),
    "PFC_WD": ("POLL_INTERVAL", "detection_time", "restoration_time"),
}
_MAPS = (
    "DSCP_TO_TC_MAP",
    "TC_TO_QUEUE_MAP",
    "TC_TO_PRIORITY_GROUP_MAP",
    "MAP_PFC_PRIORITY_TO_QUEUE",
    "PFC_PRIORITY_TO_PRIORITY_GROUP_MAP",
)


def form_findings(db: ConfigDb) -> Iterator[DeviceFinding]:
    """Yield what is no table, entry, text, number or code point."""
    for place, what in db.malformed:
        yield DeviceFinding("form", place, what, "write it as SONiC's CONFIG_DB has it")
    for name in db.tables:
        if name.startswith("ARS_"):
            found = "upstream SONiC has no such table: it is accepted and does nothing"
            yield DeviceFinding("inert-table", name, found, "keep it in a file of its own, for builds that read it")
    for table in _MAPS:
        for name, entry in db.table(table).items():
            for key, value in entry.items():
                yield from _map_entry(f"{table}|{name}", key, value)
    for table, fields in _NUMERIC.items():
        for name, entry in db.table(table).items():
            yield from _numbers(f"{table}|{name}", fields, entry)


def _numbers(place: str, fields: tuple[str, ...], entry: Entry) -> Iterator[DeviceFinding]:
    for field in fields:
        least = -8 if field == "dynamic_th" else 0
        value = number(entry.get(field, "0"))
        if value is None or value < least:
            found = f'expected a whole number of at least {least}, got "{entry[field]}"'
            yield DeviceFinding("number", f"{place}: {field}", found, "write the number, without unit")


def _map_entry(place: str, key: str, value: str) -> Iterator[DeviceFinding]:
    if not key or not value:
        found = f'"{key}": "{value}" is half empty, which the YANG pattern admits and orchagent reads as 0'
        yield DeviceFinding("empty-entry", place, found, "give both numbers, or remove the entry")
    elif number(key) is None or number(value) is None:
        yield DeviceFinding("number", place, f'expected numbers, got "{key}": "{value}"', "give both numbers")
    elif place.startswith("DSCP_TO_TC_MAP") and number(key) not in DSCPS:
        found = f"{key} is no DSCP (0 to 63)"
        yield DeviceFinding("dscp-range", place, found, "give the DSCP, which is a quarter of the ToS byte")
