"""Steps that are remembered: candidates share units, and operating points ask like units for like steps.

Only for many twins in one process. Not for how long steps take (`fourlane.twin.step_model`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.policy.overlap_order import Interval
    from fourlane.twin.assembly_parts import Assembly, PhaseModel
    from fourlane.twin.times import ExchangeTimes, GroupLoad, StepTime

__all__ = ["Memory"]


@dataclass(frozen=True)
class _Steps:
    """Steps of a unit, each worked out once; as a `StepModel` it has its exchange as a field, to be replaced.

    Args:
        steps: what works them out.
        exchange: of the unit.
        kept: by load, for each state of the network.
    """

    steps: Any
    exchange: ExchangeTimes
    kept: dict[str, dict[GroupLoad, StepTime]] = field(default_factory=dict)

    def step(self, load: GroupLoad) -> StepTime:
        """Return what a step takes, and what it is made of."""
        known = self.kept.setdefault(getattr(self.exchange, "beside", ""), {})
        if load not in known:
            known[load] = self._model.step(load)
        return known[load]

    def timeline(self, load: GroupLoad) -> tuple[StepTime, Sequence[Interval], Sequence[str]]:
        """Return it with when what was computed or travelled."""
        found: tuple[StepTime, Sequence[Interval], Sequence[str]] = self._model.timeline(load)
        return found

    @property
    def _model(self) -> Any:
        return self.steps if self.exchange is self.steps.exchange else replace(self.steps, exchange=self.exchange)


class Memory:
    """Steps of all units that were asked for."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, bytes], _Steps] = {}

    def of(self, assembly: Assembly) -> Assembly:
        """Return an assembly that works out no step twice, nor one that another of the same units has."""
        return replace(
            assembly,
            prefill=self._remembered(assembly, assembly.prefill),
            decode=self._remembered(assembly, assembly.decode),
        )

    def _remembered(self, assembly: Assembly, model: PhaseModel) -> PhaseModel:
        key = (model.phase, _unit(assembly, model))
        if key not in self._found:
            self._found[key] = _Steps(model.steps, model.exchange)
        return replace(model, steps=self._found[key], exchange=self._found[key].exchange)


def _unit(assembly: Assembly, model: PhaseModel) -> bytes:
    """Return all that steps of a unit depend on: its twin, but for how many units there are, and the load."""
    twin = msgspec.structs.replace(assembly.twin, name="")
    pool = msgspec.structs.replace(model.pool, units=1)
    parts = (twin.model, twin.cluster, twin.hardware, twin.lanes, twin.experts, twin.assumptions, twin.seed, pool)
    return msgspec.json.encode(parts, enc_hook=str)
