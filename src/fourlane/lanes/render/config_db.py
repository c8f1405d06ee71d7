"""Read SONiC's config_db tables as a switch would: names resolved, ranges spread, numbers as numbers.

Takes any dictionary, also one read from a device or written by hand: what cannot be understood is noted,
never raised. Not for judging what is written there (`fourlane.lanes.render.sonic_proof`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

__all__ = ["ConfigDb", "PortView", "indices", "number"]

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_INDICES = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?")
_PORT_TABLES = ("PORT_QOS_MAP", "QUEUE", "BUFFER_PG", "BUFFER_QUEUE")
NO_PORTS = ("global", "CPU")

Entry = dict[str, str]


def number(text: str | None) -> int | None:
    """Return a whole number; None if it is none."""
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def indices(text: str) -> range | None:
    """Return the indices of "3" or "3-4"; None if it is neither."""
    match = _INDICES.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    return range(first, last + 1) if first <= last else None


@dataclass(slots=True)
class PortView:
    """What the tables say of one port.

    `rate` is in bit/s. Of QUEUE, BUFFER_PG and BUFFER_QUEUE the entries by their key's last part, as written,
    and by index; of two claims to an index the first counts.
    """

    name: str
    rate: int | None
    qos: Entry
    dscp_to_tc: dict[int, int]
    tc_to_queue: dict[int, int]
    tc_to_group: dict[int, int]
    pfc_to_queue: dict[int, int]
    pfc_to_group: dict[int, int]
    paused: tuple[int, ...]
    watched: tuple[int, ...]
    watchdog: Entry
    cable: str | None
    keys: dict[str, dict[str, Entry]]
    spread: dict[str, dict[int, Entry]] = field(default_factory=dict)

    def of_index(self, table: str, index: int) -> Entry:
        """Return the entry of a queue or group; empty if there is none."""
        return self.spread[table].get(index, {})


class ConfigDb:
    """The tables, every value as text; `malformed` holds places and what is no table, entry or text there."""

    def __init__(self, config: Mapping[str, object]) -> None:
        self.malformed: list[tuple[str, str]] = []
        self.tables = {str(name): self._table(str(name), table) for name, table in config.items()}

    def _table(self, name: str, table: object) -> dict[str, Entry]:
        if not isinstance(table, Mapping):
            self.malformed.append((name, "expected a table of entries"))
            return {}
        return {str(key): self._entry(f"{name}|{key}", entry) for key, entry in table.items()}

    def _entry(self, place: str, entry: object) -> Entry:
        if not isinstance(entry, Mapping):
            self.malformed.append((place, "expected an entry of fields"))
            return {}
        return {str(key): self._text(f"{place}: {key}", value) for key, value in entry.items()}

    def _text(self, place: str, value: object) -> str:
        if isinstance(value, list):
            return ",".join(str(item) for item in value)
        if not isinstance(value, str):
            self.malformed.append((place, f"expected text, which SONiC keeps all values as, got {value!r}"))
        return str(value)

    def table(self, name: str) -> dict[str, Entry]:
        """Return a table; empty if there is none."""
        return self.tables.get(name, {})

    def named(self, table: str, name: str | None) -> Entry:
        """Return an entry that another refers to, in either of SONiC's spellings; empty if there is none."""
        return self.table(table).get(self.plain(name), {})

    @staticmethod
    def plain(name: str | None) -> str:
        """Return a reference's name: "x" of "x" and of the older "[TABLE|x]"."""
        return (name or "").strip("[]").rpartition("|")[2]

    def map_of(self, table: str, name: str | None) -> dict[int, int]:
        """Return a map of numbers, without what is none."""
        pairs = ((number(key), number(value)) for key, value in self.named(table, name).items())
        return {key: value for key, value in pairs if key is not None and value is not None}

    @property
    def buffer_model(self) -> str:
        """Return "traditional" or "dynamic"; SONiC takes the first for granted."""
        return self.named("DEVICE_METADATA", "localhost").get("buffer_model", "traditional")

    @cached_property
    def ports(self) -> list[PortView]:
        """The ports that any table gives queues, groups or maps, in order of first mention."""
        parts: dict[str, dict[str, dict[str, Entry]]] = {}
        for table in _PORT_TABLES:
            for key, entry in self.table(table).items():
                names, _, last = ("", "", "") if key in NO_PORTS else key.rpartition("|")
                if table == "PORT_QOS_MAP":
                    names, last = ("" if key in NO_PORTS else key), ""
                for name in names.split(","):
                    if name and name not in NO_PORTS:
                        parts.setdefault(name, {}).setdefault(table, {})[last] = entry
        return [self._port(name, keys) for name, keys in parts.items()]

    def _port(self, name: str, keys: dict[str, dict[str, Entry]]) -> PortView:
        qos = keys.get("PORT_QOS_MAP", {}).get("", {})
        everywhere = self.named("PORT_QOS_MAP", "global")
        speed = number(self.named("PORT", name).get("speed"))
        paused = _priorities(qos.get("pfc_enable"))
        own = dict(zip(paused, paused, strict=True))
        cables = [entry[name] for entry in self.table("CABLE_LENGTH").values() if name in entry]
        view = PortView(
            name=name,
            rate=None if speed is None else speed * 10**6,
            qos=qos,
            dscp_to_tc=self.map_of("DSCP_TO_TC_MAP", qos.get("dscp_to_tc_map") or everywhere.get("dscp_to_tc_map")),
            tc_to_queue=self.map_of("TC_TO_QUEUE_MAP", qos.get("tc_to_queue_map")),
            tc_to_group=self.map_of("TC_TO_PRIORITY_GROUP_MAP", qos.get("tc_to_pg_map")),
            pfc_to_queue=self.map_of("MAP_PFC_PRIORITY_TO_QUEUE", qos.get("pfc_to_queue_map")) or own,
            pfc_to_group=self.map_of("PFC_PRIORITY_TO_PRIORITY_GROUP_MAP", qos.get("pfc_to_pg_map")) or own,
            paused=paused,
            watched=_priorities(qos.get("pfcwd_sw_enable")),
            watchdog=self.named("PFC_WD", name),
            cable=cables[0] if cables else None,
            keys={table: keys.get(table, {}) for table in _PORT_TABLES},
        )
        for table in _PORT_TABLES[1:]:
            view.spread[table] = _spread(view.keys[table])
        return view


def _priorities(text: str | None) -> tuple[int, ...]:
    numbers = [number(part) for part in (text or "").split(",")]
    return tuple(sorted({value for value in numbers if value is not None}))


def _spread(keys: dict[str, Entry]) -> dict[int, Entry]:
    found: dict[int, Entry] = {}
    for key, entry in keys.items():
        for index in indices(key) or ():
            found.setdefault(index, entry)
    return dict(sorted(found.items()))
