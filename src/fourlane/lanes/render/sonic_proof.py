"""Prove what SONiC's YANG models cannot: that config_db tables mean something, and fit the chip.

YANG sees structure; queue 99, a priority that pauses without headroom, or a DSCP nobody mapped pass it.
Takes any tables, rendered here or read from a device, and any values in them. Ports that are alike are
proven once and told of together. What is proven is listed in `CHECKS`. Not for
comparing a device with a plan field by field (`fourlane.lanes.render.sonic_reading`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.lanes.qos_maps import qos_maps
from fourlane.lanes.render.config_db import ConfigDb
from fourlane.lanes.render.sonic_proofs.buffers import buffer_findings, port_buffer_findings
from fourlane.lanes.render.sonic_proofs.finding import CHECKS, Context, DeviceFinding
from fourlane.lanes.render.sonic_proofs.form import form_findings
from fourlane.lanes.render.sonic_proofs.maps import classification_findings, queue_number_findings
from fourlane.lanes.render.sonic_proofs.pauses import pause_findings, watchdog_findings
from fourlane.lanes.render.sonic_proofs.queues import (
    marking_findings,
    marking_profile_findings,
    queue_findings,
    scheduler_findings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fourlane.lanes.plan import LanePlan
    from fourlane.lanes.render.config_db import PortView
    from fourlane.spec.cluster import NetworkName
    from fourlane.spec.hardware import SwitchModel

__all__ = ["CHECKS", "DeviceFinding", "prove_config_db"]


def prove_config_db(
    config: Mapping[str, object],
    *,
    chip: SwitchModel | None = None,
    plan: LanePlan | None = None,
    network: NetworkName = "hpn",
) -> list[DeviceFinding]:
    """Return every error of meaning in config_db tables; an empty list is a proof.

    Args:
        config: the tables, PORT among them.
        chip: what they are for; without one, eight queues are assumed and buffers are not added up.
        plan: what is wanted, if anything: ECN must be off where it says so.
        network: the switch's network in that plan.
    """
    db = ConfigDb(config)
    wanted = qos_maps(plan, network) if plan is not None else None
    context = Context(db, chip, plan, wanted)
    found = [
        *form_findings(db),
        *scheduler_findings(db),
        *marking_profile_findings(db),
        *watchdog_findings(db),
        *buffer_findings(context),
    ]
    for ports in _alike(db):
        others = "1 port" if len(ports) == 2 else f"{len(ports) - 1} ports"
        more = f" (and {others} like it)" if len(ports) > 1 else ""
        found += [
            finding.at(finding.place.replace("{port}", ports[0].name) + more) for finding in _port(context, ports[0])
        ]
    return found


def _alike(db: ConfigDb) -> list[list[PortView]]:
    """Gather ports of which the tables say the same."""
    groups: dict[str, list[PortView]] = {}
    for port in db.ports:
        said = (port.rate, port.qos, port.cable, port.watchdog, port.keys)
        groups.setdefault(repr(said), []).append(port)
    return list(groups.values())


def _port(context: Context, port: PortView) -> Iterator[DeviceFinding]:
    yield from classification_findings(port)
    yield from queue_number_findings(context, port)
    yield from pause_findings(context, port)
    yield from queue_findings(context, port)
    yield from marking_findings(context, port)
    yield from port_buffer_findings(context, port)
