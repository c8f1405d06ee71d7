"""Say what an environment really does, stream by stream, and what of it contradicts a plan or is a trap.

Not for reading environments (`fourlane.lanes.environment.reading`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fourlane.lanes.environment.finding import Finding, Subject
from fourlane.lanes.environment.libraries import STREAMS
from fourlane.lanes.environment.marks import lint_marks, lint_numbers
from fourlane.lanes.environment.places import lint_places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.lanes.environment.libraries import StreamName
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

__all__ = ["Report", "Row", "lint_environment"]

_ORDER = ("error", "warning", "note")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What the connections of one kind do; None where there is no such thing, or it is not known.

    `lands_in` is the class that switches take it for, `wanted` the classes the plan lets it carry.
    """

    stream: str
    fabric: str
    tos: int | None
    dscp: int | None
    ecn: int | None
    service_level: int | None
    decided_by: str
    because: str
    lands_in: str | None
    wanted: str | None
    devices: str | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, the worst first."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def contradicts(self) -> bool:
        """Tell whether anything is an error."""
        return any(finding.severity == "error" for finding in self.findings)


def lint_environment(
    env: Mapping[str, str],
    case: tuple[LanePlan, Cluster] | None = None,
    *,
    forced: Mapping[str, int] | None = None,
) -> Report:
    """Judge an environment.

    Args:
        env: known variables.
        case: what it is held against; without, only traps are found, and RoCE is assumed.
        forced: the ToS byte that an RDMA device forces on its queue pairs, by device.
    """
    plan, cluster = case if case is not None else (None, None)
    subject = Subject(env, plan, cluster, forced or {})
    findings = [*lint_numbers(subject), *lint_marks(subject), *lint_places(subject)]
    findings.sort(key=lambda finding: _ORDER.index(finding.severity))
    return Report(rows=tuple(_row(subject, stream) for stream in subject.streams()), findings=tuple(findings))


_DEVICES: dict[str, str] = {
    "NCCL": "NCCL_IB_HCA",
    "NCCL clear-to-send": "NCCL_IB_HCA",
    "NCCL GIN": "NCCL_IB_HCA",
    "NVSHMEM": "NVSHMEM_HCA_LIST",
    "UCX": "UCX_NET_DEVICES",
    "Gloo": "GLOO_SOCKET_IFNAME",
}


def _row(subject: Subject, stream: StreamName) -> Row:
    effect, home = subject.effect(stream), subject.homes.get(stream)
    tos = effect.tos.value if effect.tos is not None else None
    level = effect.sl.value if effect.sl is not None else None
    decides = effect.tos or effect.sl
    kind = None
    if tos is not None:
        kind = subject.class_of_dscp.get(tos >> 2)
    elif level is not None and subject.plan is not None:
        kind = next((k for k, lane in subject.plan.classes.items() if lane.priority == level), None)
    name = _DEVICES.get(stream)
    return Row(
        stream=stream,
        fabric=effect.fabric,
        tos=tos,
        dscp=None if tos is None else tos >> 2,
        ecn=None if tos is None or STREAMS[stream].dscp_only else tos & 3,
        service_level=level,
        decided_by=decides.decided_by if decides is not None else "nothing",
        because=decides.because if decides is not None else "it cannot mark its sockets; the host does",
        lands_in=kind.value if kind is not None else None,
        wanted=home.names() if home is not None else None,
        devices=subject.env.get(name) if name is not None else None,
    )
