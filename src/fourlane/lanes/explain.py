"""Say why each figure of a class is what it is: the plan's own, the default's, and what follows from both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.lanes.buffers import headroom_of, queue_limit, switch_budget
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.overview import CONGESTED
from fourlane.lanes.ports import switches
from fourlane.lanes.reasons import PFC_REASONS, TRIMMING_REASONS, Reason, reasons
from fourlane.spec.traffic import TrafficClass
from fourlane.spec.writing import inline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fourlane.lanes.plan import Lane, LanePlan
    from fourlane.spec.cluster import Cluster

__all__ = ["SUBJECTS", "Explained", "explain"]

SUBJECTS = (*(kind.value for kind in TrafficClass), "pfc", "trimming")
"""What can be explained: the classes, and the two tables that hold for all of them."""
_NOTHING = "not set"


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """A figure, why it is what it is, and where that was read or worked out.

    `default` is the default plan's figure where the plan has another one, else None; `why` is then
    the default's reason.
    """

    field: str
    value: str
    default: str | None
    why: str
    source: str

    @property
    def text(self) -> str:
        """Return the reason as a sentence."""
        return self.why if self.default is None else f"yours; default {self.default}, because {self.why}"


def explain(plan: LanePlan, cluster: Cluster, subject: str) -> list[Explained]:
    """Explain every figure of a class, or of the tables `pfc` and `trimming`; then what follows from them."""
    usual = default_plan(cluster)
    if subject == "pfc":
        return list(_fields(plan.pfc, usual.pfc, PFC_REASONS))
    if subject == "trimming":
        return list(_fields(plan.trimming, usual.trimming, TRIMMING_REASONS))
    kind = TrafficClass(subject)
    lane = plan.classes[kind]
    return [
        *_fields(lane, usual.classes[kind], reasons(cluster, kind)),
        *_marks(lane),
        *_headroom(plan, cluster, lane),
        *_queues(plan, cluster, lane),
    ]


def _fields(table: msgspec.Struct, usual: msgspec.Struct, why: Mapping[str, Reason]) -> Iterator[Explained]:
    for name in table.__struct_fields__:
        value, default = getattr(table, name), getattr(usual, name)
        if value is None and default is None:
            continue
        reason = why.get(name) or _WHY_NOT_SET[name]
        yield Explained(
            field=name,
            value=_shown(value),
            default=None if value == default else _shown(default),
            why=reason.why,
            source=reason.source,
        )


_WHY_NOT_SET = {
    "weight": Reason("a strict class goes first and needs no share", "default plan"),
    "cap": Reason("a weighted class may take what the others leave idle", "default plan"),
    "ect": Reason("RDMA senders declare themselves ECN-capable just where the queue marks", "RFC 3168"),
    "headroom": Reason("the formula, or the figure published for the switch, serves", "switch catalog"),
}


def _shown(value: object) -> str:
    return _NOTHING if value is None else inline(value)


def _marks(lane: Lane) -> Iterator[Explained]:
    bits = lane.tos & 3
    yield Explained(
        field="(ToS byte)",
        value=f"{lane.tos} (0x{lane.tos:02X})",
        default=None,
        why=f"DSCP {lane.dscp} x 4 + ECN bits {bits}: "
        + ("its packets declare themselves ECN-capable" if bits else "no switch can mark its packets")
        + ("; TCP sets the bits itself" if lane.over_tcp else ""),
        source="RFC 2474, RFC 3168",
    )
    yield Explained(
        field="(priority group)",
        value=str(lane.group),
        default=None,
        why="its own, since it pauses" if lane.lossless else "the one all lossy classes share",
        source="convention of this plan",
    )


def _headroom(plan: LanePlan, cluster: Cluster, lane: Lane) -> Iterator[Explained]:
    """Explain what a lossless class reserves on each kind of port."""
    seen = set()
    for switch in switches(cluster):
        for port in switch.ports if lane.lossless and lane.on(switch.network) else ():
            key = (switch.name, port.rate, port.cable)
            if key in seen:
                continue
            seen.add(key)
            room = headroom_of(plan, switch, port)
            yield Explained(
                field=f"(headroom, {switch.name}, {port.rate} over {port.cable})",
                value="unknown" if room is None else f"{int(room.size):,} B",
                default=None,
                why="no figure is published for such ports"
                if room is None
                else f"{int(room.xoff):,} B may still arrive after a pause, {int(room.xon):,} B in its pipeline",
                source=_headroom_source(plan, switch.model.headroom),
            )


def _headroom_source(plan: LanePlan, way: str) -> str:
    if plan.pfc.headroom is not None:
        return "pfc.headroom of the plan"
    return "SONiC doc/qos/dynamically-headroom-calculation.md" if way == "formula" else "switch catalog"


def _queues(plan: LanePlan, cluster: Cluster, lane: Lane) -> Iterator[Explained]:
    for switch in switches(cluster):
        if not lane.on(switch.network):
            continue
        shared = switch_budget(plan, switch).shared
        longest = [f"{queue_limit(lane, shared, congested=count) / 1e6:.2f} MB" for count in CONGESTED]
        yield Explained(
            field=f"(longest queue, {switch.name})",
            value=" / ".join(longest),
            default=None,
            why=f"alpha {lane.alpha:g} of {max(shared, 0) / 1e6:.1f} MB to share, with "
            + " / ".join(map(str, CONGESTED))
            + " such queues full at once",
            source="dynamic thresholds (Choudhury and Hahne, 1998)",
        )
