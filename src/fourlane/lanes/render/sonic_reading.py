"""Read back from config_db what of a lane plan it holds, and tell where a device differs from the plan.

Not everything of a plan is in config_db: of a lossless class not what it reserves (it is one number with
the headroom), and neither routing nor the libraries that carry a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourlane.lanes.plan import Ecn
from fourlane.lanes.qos_maps import qos_maps
from fourlane.lanes.render.config_db import ConfigDb, number
from fourlane.units import Size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.lanes.plan import Lane, LanePlan
    from fourlane.lanes.render.config_db import Entry, PortView
    from fourlane.spec.cluster import NetworkName

__all__ = ["Classes", "Difference", "config_db_differences", "planned_classes", "read_config_db", "read_port"]

Classes = dict[int, dict[str, Any]]
"""By traffic class (the plan's priority), fields of `Lane` by name; `dscps` are `dscp` and `accept` in one."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where ports of a device and a plan differ; `None` is what is not there."""

    ports: tuple[str, ...]
    place: str
    planned: object
    found: object

    def __str__(self) -> str:
        """Return one line."""
        more = f" and {len(self.ports) - 1} more" if len(self.ports) > 1 else ""
        return f"{self.ports[0]}{more}: {self.place}: planned {_said(self.planned)}, found {_said(self.found)}"


def read_config_db(config: Mapping[str, object]) -> dict[str, Classes]:
    """Return what each port does with each class that a code point leads to.

    Args:
        config: the tables, PORT among them: without a port's speed its caps cannot be told.
    """
    db = ConfigDb(config)
    return {port.name: read_port(db, port) for port in db.ports}


def planned_classes(plan: LanePlan, network: NetworkName) -> Classes:
    """Return what `read_config_db` finds on every port of a switch that does what the plan says."""
    maps = qos_maps(plan, network)
    return {
        tc: _planned(plan.classes[kind], maps.dscps_of(tc))
        for tc, kind in maps.class_of_tc.items()
        if maps.dscps_of(tc)
    }


def config_db_differences(config: Mapping[str, object], plan: LanePlan, network: NetworkName) -> list[Difference]:
    """Hold a device's tables against a plan; like ports are told of together."""
    planned = planned_classes(plan, network)
    names = {tc: kind.value for tc, kind in qos_maps(plan, network).class_of_tc.items()}
    found: dict[tuple[str, str], list[str]] = {}
    values: dict[tuple[str, str], tuple[object, object]] = {}
    for port, classes in read_config_db(config).items():
        for place, want, got in _differing(planned, classes, names):
            found.setdefault((place, repr(got)), []).append(port)
            values[place, repr(got)] = (want, got)
    return [Difference(tuple(ports), key[0], *values[key]) for key, ports in found.items()]


def read_port(db: ConfigDb, port: PortView) -> Classes:
    """Return what one port does with each class."""
    dscps: dict[int, list[int]] = {}
    for dscp, tc in port.dscp_to_tc.items():
        dscps.setdefault(tc, []).append(dscp)
    return {tc: {"dscps": sorted(points), **_read(db, port, tc)} for tc, points in sorted(dscps.items())}


def _read(db: ConfigDb, port: PortView, tc: int) -> dict[str, Any]:
    queue = port.tc_to_queue.get(tc)
    group = port.tc_to_group.get(tc)
    lossless = tc in port.paused
    entry = port.of_index("QUEUE", queue) if queue is not None else {}
    scheduler = db.named("SCHEDULER", entry.get("scheduler"))
    outgoing = db.named(
        "BUFFER_PROFILE", port.of_index("BUFFER_QUEUE", queue).get("profile") if queue is not None else None
    )
    incoming = db.named(
        "BUFFER_PROFILE", port.of_index("BUFFER_PG", group).get("profile") if group is not None else None
    )
    kind = scheduler.get("type", "WRR").lower() if scheduler else None
    exponent = number((incoming if lossless else outgoing).get("dynamic_th"))
    return {
        "queue": queue,
        "scheduler": kind,
        "weight": number(scheduler.get("weight", "1")) if kind in ("dwrr", "wrr") else None,
        "cap": _cap(scheduler, port.rate),
        "alpha": None if exponent is None else 2.0**exponent,
        "lossless": lossless,
        "trim": outgoing.get("packet_discard_action") == "trim",
        "reserved": None if lossless else _size(outgoing.get("size")),
        "ecn": _ecn(db.named("WRED_PROFILE", entry.get("wred_profile"))),
    }


def _planned(lane: Lane, dscps: list[int]) -> dict[str, Any]:
    return {
        "dscps": dscps,
        "queue": lane.queue,
        "scheduler": lane.scheduler,
        "weight": lane.weight,
        "cap": lane.cap,
        "alpha": lane.alpha,
        "lossless": lane.lossless,
        "trim": lane.trim,
        "reserved": None if lane.lossless else lane.reserved,
        "ecn": lane.ecn,
    }


def _cap(scheduler: Entry, rate: int | None) -> int | None:
    """Return the percentage of the port's rate that a scheduler's peak rate, in bytes a second, is."""
    peak = number(scheduler.get("pir"))
    return None if peak is None or not rate else round(100 * 8 * peak / rate)


def _size(text: str | None) -> Size | None:
    value = number(text)
    return None if value is None or value < 0 else Size(value)


def _ecn(profile: Entry) -> Ecn | str:
    """Return the thresholds of green packets, which all are where no policer colours them."""
    if profile.get("ecn", "ecn_none") not in ("ecn_all", "ecn_green", "ecn_green_yellow", "ecn_green_red"):
        return "off"
    kmin, kmax = _size(profile.get("green_min_threshold")), _size(profile.get("green_max_threshold"))
    percent = number(profile.get("green_drop_probability", "100"))
    return Ecn(kmin=kmin or Size(0), kmax=kmax or Size(0), pmax=(percent or 0) / 100)


def _differing(planned: Classes, found: Classes, names: Mapping[int, str]) -> list[tuple[str, object, object]]:
    places: list[tuple[str, object, object]] = []
    for tc in sorted(planned.keys() | found.keys()):
        want, got = planned.get(tc), found.get(tc)
        name = names.get(tc, f"traffic class {tc}")
        if want is None or got is None:
            places.append((name, want and want["dscps"], got and got["dscps"]))
            continue
        places += [(f"{name}.{key}", want[key], got[key]) for key in want if want[key] != got[key]]
    return places


def _said(value: object) -> str:
    if isinstance(value, Ecn):
        return f"{value.kmin} to {value.kmax}, {value.pmax:.0%}"
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
