"""What a ladder is: measures taken one after another, and what each brings.

`fourlane.twin.ladder` works it out, `fourlane.report` draws it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourlane.spec.twin import Twin
    from fourlane.twin.point_values import OperatingPoint

__all__ = ["LadderResult", "Rung"]


@dataclass(frozen=True, slots=True)
class Rung:
    """A measure, and the service once it is taken beside all those before.

    Args:
        name: short, as the picture's axis has it: "Adaptive routing"; of the first, "Baseline".
        measure: in words: "ECMP -> adaptive routing".
        twin: the service with it.
        point: at the ladder's rate: latencies of the same load on each rung.
        peak: near the greatest rate the rung can serve, whatever its SLO.
        exchange_s: a mean step's dispatch and combine, by phase.
        slowdown: by phase, how much longer these take beside all other traffic of the cluster than alone.
        gain: of this measure over the rung before: "ttft", "tpot" as shares of time saved at the ladder's rate;
            "throughput" as a share gained, that of the weakest part, and "prefill", "decode" that of each phase; empty
            for the first.
        sources: of its figures, by name.
    """

    name: str
    measure: str
    twin: Twin
    point: OperatingPoint
    peak: OperatingPoint
    exchange_s: dict[str, float]
    slowdown: dict[str, float]
    gain: dict[str, float]
    sources: dict[str, str]


@dataclass(frozen=True, slots=True)
class LadderResult:
    """All rungs, from the baseline up.

    Args:
        name: of the twin.
        gpus: of all units.
        rate: requests a second at which latencies are compared: what the weakest rung can serve, by `rate_says`.
        rate_says: how it was chosen.
        rungs: in order.
        total: gain of the last rung over the first, as in `Rung.gain`.
        seconds: it took to work out.
        skipped: measures that do not apply to this twin, and why.
    """

    name: str
    gpus: int
    rate: float
    rate_says: str
    rungs: tuple[Rung, ...]
    total: dict[str, float]
    seconds: float
    skipped: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """Return everything but the twins as plain values for JSON."""
        document = asdict(self)
        for rung in document["rungs"]:
            del rung["twin"]
        return document
