"""What a search for plans finds, as values: ways to serve, ranked, each a twin with its operating point."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fourlane.planner.plan_file import VERSION, plain

if TYPE_CHECKING:
    from fourlane.spec.plan import PlanSpec
    from fourlane.spec.twin import Twin
    from fourlane.twin.point_values import OperatingPoint

__all__ = ["PlanResult", "PlanRow"]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One way to serve.

    Args:
        twin: it, ready to be simulated or rendered.
        point: what it does: at the asked rate, or at the greatest that meets the SLO.
        front: no other yields more a GPU, answers faster and begins sooner at once.
    """

    twin: Twin
    point: OperatingPoint
    front: bool = False

    @property
    def gpus(self) -> int:
        """Return its GPUs."""
        return self.twin.gpus

    @property
    def goodput_gpu(self) -> float:
        """Return the requests a second that meet the SLO, for each GPU."""
        return self.point.goodput / self.gpus

    @property
    def meets(self) -> bool:
        """Tell whether it keeps up and meets the SLO."""
        return self.point.stable and self.point.slo.met

    @property
    def tokens_gpu(self) -> float:
        """Return tokens a second, prompts and answers together, for each GPU."""
        return self.point.input_tokens_s_gpu + self.point.output_tokens_s_gpu

    @property
    def kv(self) -> str:
        """Return the network KV cache travels on; empty: the lane plan's."""
        return self.twin.lanes.kv or ""


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a search found.

    Args:
        spec: what was asked.
        rows: best first: those that meet the SLO by goodput a GPU, then the others by how nearly they do.
        shapes: pairs of prefill and decode units that fit.
        points: operating points that were worked out.
        refused: why ways to serve were left out, and how many each.
        seconds: the search took.
    """

    spec: PlanSpec
    rows: tuple[PlanRow, ...]
    shapes: int
    points: int
    refused: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def met(self) -> bool:
        """Tell whether anything meets the SLO."""
        return bool(self.rows) and self.rows[0].meets

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values: what plan.json holds."""
        rows = [
            {
                "row": number,
                "meets": row.meets,
                "front": row.front,
                "gpus": row.gpus,
                "goodput_gpu": row.goodput_gpu,
                "twin": plain(row.twin),
                "point": row.point.summary(),
            }
            for number, row in enumerate(self.rows, start=1)
        ]
        return {
            "version": VERSION,
            "spec": plain(self.spec),
            "met": self.met,
            "shapes": self.shapes,
            "points": self.points,
            "refused": self.refused,
            "seconds": self.seconds,
            "rows": rows,
        }
