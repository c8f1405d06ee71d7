"""Who computes at the same time as whom, where ranks share processors.

A host with fewer cores than ranks that compute shares them fairly: every step takes as many times as long as there are
ranks for a core. Where every rank has a device of its own nothing here happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.twin.serving.clock import Clock
    from fourlane.twin.serving.records import Records
    from fourlane.twin.times import Phase

__all__ = ["Host", "Stepping", "Surroundings"]


class Stepping(Protocol):
    """A unit, as far as its pace depends on others."""

    phase: Phase
    ranks: int

    @property
    def stepping(self) -> bool:
        """Tell whether it is in a step."""
        ...

    def pace(self, speed: float) -> None:
        """Go on at this share of full speed."""
        ...


class Host:
    """The processors that all units share; `cores` None: no unit slows another."""

    def __init__(self, cores: int | None) -> None:
        self._cores = cores
        self._units: list[Stepping] = []
        self.speed = 1.0

    def watch(self, units: Iterable[Stepping]) -> None:
        """Take these units for those that share the host."""
        self._units = list(units)

    def changed(self) -> None:
        """Pace all units anew: one has begun to step, or has ceased to."""
        if self._cores is None:
            return
        busy = sum(unit.ranks for unit in self._units if unit.stepping)
        speed = min(1.0, self._cores / busy) if busy else 1.0
        if speed == self.speed:
            return
        self.speed = speed
        for unit in self._units:
            if unit.stepping:
                unit.pace(speed)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all units of a simulation share."""

    clock: Clock
    host: Host
    records: Records
