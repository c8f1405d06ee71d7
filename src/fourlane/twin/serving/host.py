"""Who computes at the same time as whom, where ranks share processors.

A host with fewer cores than ranks that compute shares them: fairly, so that every step takes as many times as long as
there are ranks for a core; or as was measured (`spec.hardware_profile.Crowding`). Where every rank has a device of its
own nothing here happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.spec.hardware_profile import Crowding
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

    @property
    def evenness(self) -> float:
        """Return what the mean rank has to compute in its step, as a share of what the fullest has."""
        ...

    def pace(self, speed: float) -> None:
        """Go on at this share of full speed."""
        ...


class Host:
    """The processors that all units share.

    Args:
        cores: how many there are; None: no unit slows another.
        crowding: what was measured of it; None: they are shared fairly.
    """

    def __init__(self, cores: int | None, crowding: Crowding | None = None) -> None:
        self._cores = cores
        self._crowding = crowding
        self._units: list[Stepping] = []
        self._pace: dict[Stepping, float] = {}
        self._requests = 0

    def watch(self, units: Iterable[Stepping]) -> None:
        """Take these units for those that share the host."""
        self._units = list(units)

    def changed(self) -> None:
        """Pace all units anew: one has begun a step, or has ceased to."""
        if self._cores is None:
            return
        for unit in self._units:
            if unit.stepping:
                speed = self.speed(unit)
                if self._pace.get(unit) != speed:
                    self._pace[unit] = speed
                    unit.pace(speed)

    def begin_request(self) -> None:
        """Give a core to gateway and client, who see to a request; who wakes up comes before who computes."""
        self._requests += 1
        self.changed()

    def end_request(self) -> None:
        """Take it back."""
        self._requests -= 1
        self.changed()

    def speed(self, unit: Stepping) -> float:
        """Return the share of its full speed at which a unit steps, beside those that do now."""
        if self._cores is None:
            return 1.0
        stepping = [each for each in self._units if each.stepping]
        busy = sum(each.ranks for each in stepping)
        cores = self._cores - (self._requests > 0) * self._cores / (self._cores + 1)
        fair = min(1.0, cores / busy) if busy else 1.0
        others = [each for each in stepping if each.phase != unit.phase]
        if fair == 1.0 or not others or self._crowding is None:
            return fair
        prefill = unit if unit.phase == "prefill" else others[0]
        shared = max(1.0, (unit.ranks + others[0].ranks) / self._cores)  # what two units would lose, sharing fairly
        return min(1.0, fair * shared / self._crowding.factor(unit.phase, prefill.evenness, prefill.ranks))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all units of a simulation share."""

    clock: Clock
    host: Host
    records: Records
