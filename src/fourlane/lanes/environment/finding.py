"""What the environment linter finds, and what it looks at: one environment, against a plan or alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.lanes.environment.effects import effect_of
from fourlane.lanes.environment.libraries import KNOBS, STREAMS, home_of
from fourlane.lanes.environment.variables import wanted_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.lanes.environment.effects import Effect
    from fourlane.lanes.environment.libraries import Fabric, Home, Library, StreamName
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster
    from fourlane.spec.traffic import TrafficClass

__all__ = ["FORCED", "Finding", "Severity", "Subject"]

Severity = Literal["error", "warning", "note"]
FORCED = "/sys/class/infiniband/{device}/tc/1/traffic_class"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something in an environment: where (`place`: a variable, or a file), what it does, what mends it."""

    severity: Severity
    place: str
    does: str
    mend: str

    def __str__(self) -> str:
        """Write it as one line."""
        return f"{self.severity}: {self.place}: {self.does}; {self.mend}"


@dataclass(frozen=True)
class Subject:
    """One environment, and what it is held against; without a plan there are traps only, on RoCE.

    Args:
        env: known variables alone.
        plan, cluster: both or neither.
        forced: the ToS byte that an RDMA device forces on its queue pairs, by device.
    """

    env: Mapping[str, str]
    plan: LanePlan | None = None
    cluster: Cluster | None = None
    forced: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def homes(self) -> dict[StreamName, Home]:
        """Return where each stream belongs, of those that a class of the plan travels on."""
        if self.plan is None or self.cluster is None:
            return {}
        found = {stream: home_of(self.plan, self.cluster, stream) for stream in STREAMS}
        return {stream: home for stream, home in found.items() if home is not None}

    @cached_property
    def wanted(self) -> dict[str, str]:
        """Return the variables the plan wants, with their values."""
        if self.plan is None or self.cluster is None:
            return {}
        parts = wanted_variables(self.plan, self.cluster, "decode").values()
        return {variable.name: variable.value for part in parts for variable in part.variables}

    @cached_property
    def class_of_dscp(self) -> dict[int, TrafficClass]:
        """Return the class of every code point."""
        return self.plan.class_of_dscp() if self.plan is not None else {}

    def uses(self, library: Library) -> bool:
        """Tell whether a variable of a library is set."""
        return any(KNOBS[name].library == library for name in self.env)

    def streams(self) -> list[StreamName]:
        """Return the streams there is something to say of: they belong somewhere, or are set."""
        return [stream for stream in STREAMS if stream in self.homes or self._set(stream)]

    def _set(self, stream: StreamName) -> bool:
        facts = STREAMS[stream]
        if stream in ("NCCL clear-to-send", "NCCL GIN"):
            return bool({facts.tos, facts.sl} & set(self.env))
        return self.uses(facts.library)

    def fabric(self, stream: StreamName) -> Fabric:
        """Return what runs on a stream's wire; without a plan RoCE is assumed."""
        if stream in self.homes:
            return self.homes[stream].fabric
        return self.cluster.hpn.fabric if self.cluster is not None else "roce"

    def effect(self, stream: StreamName) -> Effect:
        """Return what a stream's connections carry."""
        devices = self.homes[stream].devices() if stream in self.homes else tuple(self.forced)
        forced = next((self.forced[device] for device in devices if device in self.forced), None)
        return effect_of(stream, self.env, self.fabric(stream), forced_tos=forced)

    def setting(self, name: str) -> str:
        """Return the line that sets a variable as the plan wants it, or takes it away."""
        value = self.wanted.get(name)
        return f"unset {name}" if value is None else f"export {name}={value}"
