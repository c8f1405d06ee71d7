"""A whole cluster at once: how much longer exchanges take beside all other traffic, and how busy links are.

    use = cluster_use(assembly, load_of(assembly, operating_point(assembly)))
    use.slowdown["decode"].all        # of an exchange beside all other units and KV cache, over alone

Units exchange and KV cache travels for a share of the time, each independently of the others. What is under way is
drawn, again and again, and the network's rates are worked out at flow level (`fourlane.twin.flow_level`). The time of
an exchange alone comes from packets (`fourlane.twin.exchange`); this says what to multiply it by.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.twin.cluster_traffic import cluster_traffic
from fourlane.twin.fabric.flows import concatenated
from fourlane.twin.flow_level.port_use import PortUse
from fourlane.twin.flow_level.rates import FlowSets

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.cluster_traffic import ClusterTraffic
    from fourlane.twin.flow_level.port_use import LinkUse, TierUse
    from fourlane.twin.flow_level.rates import FlowRates
    from fourlane.twin.point_values import OperatingPoint
    from fourlane.twin.times import Phase

    Doubles = NDArray[np.float64]
    Longs = NDArray[np.int64]

__all__ = ["ClusterLoad", "ClusterUse", "Slowdown", "cluster_use", "load_of"]

_SAMPLES = 24
"""Exchanges of each phase that are looked at, beside others and alone, where there are as many units."""
_MOST_DRAWS = 12
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class ClusterLoad:
    """How much of the time traffic is under way.

    Args:
        prefill, decode: share of time in which a unit of the phase exchanges.
        kv_rate: bytes a second of KV cache out of each prefill rank, on average.
    """

    prefill: float
    decode: float
    kv_rate: float


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How many times longer a unit's exchange takes than alone: by the mean speed of those that were drawn.

    An exchange that stands still for a while so counts as that, not as endless.

    Args:
        units: beside other units' exchanges.
        kv: beside KV cache, over the same without it.
        all: beside both.
        worst: the same of the exchange that fared worst.
    """

    units: float
    kv: float
    all: float
    worst: float


@dataclass(frozen=True)
class ClusterUse:
    """What all traffic of a service does to each other and to the links of its cluster.

    Args:
        gpus: that its units have.
        load: how much of it was under way.
        slowdown: of exchanges, by phase.
        kv_slowdown: of KV transfers beside all other traffic.
        tiers: use of links, tier by tier, on average.
        busiest: links between switches, the busiest first, on average.
        draws: how often it was drawn what is under way.
        source: in words.
    """

    gpus: int
    load: ClusterLoad
    slowdown: dict[Phase, Slowdown]
    kv_slowdown: float
    tiers: tuple[TierUse, ...]
    busiest: tuple[LinkUse, ...]
    draws: int
    source: str

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        document = asdict(self)
        document["tiers"] = [tier._asdict() for tier in self.tiers]
        document["busiest"] = [link._asdict() for link in self.busiest]
        return document


def load_of(assembly: Assembly, point: OperatingPoint) -> ClusterLoad:
    """Return how much traffic is under way at an operating point."""
    shares = {
        each.phase: each.busy * min(1.0, each.step.exchange_s / each.step.seconds) if each.step.seconds > 0 else 0.0
        for each in (point.prefill, point.decode)
    }
    tokens_s = point.input_tokens_s_gpu * assembly.twin.gpus
    kv_rate = tokens_s * assembly.kv_token_bytes / max(1, assembly.prefill.ranks)
    return ClusterLoad(prefill=shares["prefill"], decode=shares["decode"], kv_rate=kv_rate)


def cluster_use(
    assembly: Assembly,
    load: ClusterLoad,
    *,
    draws: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> ClusterUse:
    """Work out what a service's traffic does to itself.

    Args:
        assembly: the service.
        load: how much of it is under way.
        draws: how often to draw what is; None: until some two dozen exchanges of each phase were seen.
        progress: called with how many sets of rates have been worked out, and how many there will be.

    Raises:
        SpecError: its exchange does not go by a simulated network, or its cluster has too few GPUs.
    """
    traffic = cluster_traffic(assembly)
    drawn = _draw(assembly, traffic, load, draws)
    runs = _Runs(traffic, drawn, progress)
    uses = runs.mean_use()
    links = [link for use in uses for link in use.busiest(_SHOWN, between_switches=True)]
    return ClusterUse(
        gpus=assembly.twin.gpus,
        load=load,
        slowdown={phase: runs.slowdown(phase) for phase in drawn.units},
        kv_slowdown=runs.kv_slowdown(),
        tiers=tuple(tier for use in uses for tier in use.tiers()),
        busiest=tuple(sorted(links, key=lambda link: -link.share)[:_SHOWN]),
        draws=drawn.draws,
        source=f"flow level: max-min rates on {traffic.topology.name}, {traffic.lanes.name}; {drawn.draws} draws",
    )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What is under way: bool [draws, units] by phase; GPUs of KV transfers, draw by draw."""

    draws: int
    units: dict[Phase, NDArray[np.bool_]]
    kv: list[tuple[Longs, Longs]]

    def looked_at(self, phase: Phase) -> list[tuple[int, int]]:
        """Return draw and unit of the exchanges whose times are compared with those alone: some of each draw."""
        each = max(1, _SAMPLES // self.draws)
        return [(draw, int(unit)) for draw, row in enumerate(self.units[phase]) for unit in np.flatnonzero(row)[:each]]


def _draw(assembly: Assembly, traffic: ClusterTraffic, load: ClusterLoad, draws: int | None) -> _Drawn:
    """Draw it; in every draw at least one unit of each phase exchanges, so that there is something to look at."""
    rng = np.random.default_rng([assembly.twin.seed, 7])
    shares: dict[Phase, float] = {"prefill": load.prefill, "decode": load.decode}
    count = draws or max(_needed(len(traffic.gpu_UR[phase]), share) for phase, share in shares.items())
    units: dict[Phase, NDArray[np.bool_]] = {}
    for phase, share in shares.items():
        total = len(traffic.gpu_UR[phase])
        units[phase] = rng.random((count, total)) < share
        units[phase][np.arange(count), rng.integers(total, size=count)] = True
    sources, targets = (traffic.gpu_UR[phase].reshape(-1) for phase in shares)
    share = min(1.0, load.kv_rate / assembly.kv.out_rate) if assembly.kv.out_rate > 0 else 0.0
    sending = [sources[rng.random(len(sources)) < share] for _ in range(count)]
    return _Drawn(count, units, [(each, rng.choice(targets, len(each))) for each in sending])


def _needed(units: int, share: float) -> int:
    return min(_MOST_DRAWS, max(2, -(-_SAMPLES // max(1, round(units * share)))))


class _Runs:
    """Rates of what was drawn, each set worked out once."""

    def __init__(self, traffic: ClusterTraffic, drawn: _Drawn, progress: Callable[[int, int], object] | None) -> None:
        self._traffic, self._drawn, self._progress = traffic, drawn, progress
        parts = list(traffic.exchange.values())
        self._first = dict(zip(traffic.exchange, np.cumsum([0, *map(len, parts)]).tolist(), strict=False))
        kv = [traffic.kv(*pair) for pair in drawn.kv]
        self._on_dcn = traffic.dcn is not None
        begin = 0 if self._on_dcn else sum(map(len, parts))
        self._kv_first = begin + np.cumsum([0, *map(len, kv)])
        any_kv = self._kv_first[-1] > begin
        shared = parts if self._on_dcn or not any_kv else [*parts, *kv]
        self._hpn = FlowSets(traffic.scenario(*shared)) if parts else None
        self._dcn = FlowSets(traffic.dcn_scenario(concatenated(kv))) if self._on_dcn and any_kv else None
        alone = sum(len({unit for _, unit in drawn.looked_at(phase)}) for phase in self._first)
        self._done, self._total = 0, alone + drawn.draws * (1 if self._on_dcn else 2)
        self._known: dict[tuple[int, bool], FlowRates] = {}

    def slowdown(self, phase: Phase) -> Slowdown:
        """Return the slowdown of a phase's exchanges."""
        if phase not in self._first:
            return Slowdown(1.0, 1.0, 1.0, 1.0)
        seen = self._drawn.looked_at(phase)
        alone = {unit: self._seconds(self._rates(self._flows_of(phase, unit)), phase, unit) for _, unit in seen}
        beside_units, beside_all = (
            np.array([alone[unit] / self._seconds(self._in_draw(draw, kv=kv), phase, unit) for draw, unit in seen])
            for kv in (False, True)
        )
        units, both = 1 / float(beside_units.mean()), 1 / float(beside_all.mean())
        return Slowdown(units=units, kv=both / units, all=both, worst=1 / float(beside_all.min()))

    def kv_slowdown(self) -> float:
        """Return by how much KV transfers are slowed down: what their NICs could do over what they got."""
        sets = self._dcn if self._on_dcn else self._hpn
        if sets is None:
            return 1.0
        speeds = [np.zeros(0)]
        for draw in range(self._drawn.draws):
            flows = self._kv(draw)
            run = sets.rates(flows) if self._on_dcn else self._in_draw(draw, kv=True)
            ends = sets.compiled.flow_src_port[flows], sets.compiled.flow_dst_port[flows]
            speeds.append(run.wire_rate[flows] / np.minimum(*(sets.topology.port_rate[end] for end in ends)))
        found = np.concatenate(speeds)
        return 1 / max(1e-9, float(found.mean())) if len(found) else 1.0

    def mean_use(self) -> list[PortUse]:
        """Return what links carry on average, network by network."""
        draws = range(self._drawn.draws)
        runs = [] if self._hpn is None else [[self._in_draw(draw, kv=True) for draw in draws]]
        if self._dcn is not None:
            runs.append([self._dcn.rates(self._kv(draw)) for draw in draws])
        return [
            PortUse(each[0].topology, each[0].use.queue_names, np.mean([run.use.rate_PQ for run in each], axis=0))
            for each in runs
        ]

    def _in_draw(self, draw: int, *, kv: bool) -> FlowRates:
        """Return the rates of what is under way on the HPN in a draw, with or without KV cache."""
        key = draw, kv and not self._on_dcn
        if key not in self._known:
            parts = [
                self._flows_of(phase, int(unit))
                for phase in self._first
                for unit in np.flatnonzero(self._drawn.units[phase][draw])
            ]
            self._known[key] = self._rates(np.concatenate([*parts, self._kv(draw)] if key[1] else parts))
        return self._known[key]

    def _rates(self, flows: Longs) -> FlowRates:
        assert self._hpn is not None
        found = self._hpn.rates(flows)
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        return found

    def _flows_of(self, phase: Phase, unit: int) -> Longs:
        each = self._traffic.per_unit[phase]
        return self._first[phase] + unit * each + np.arange(each)

    def _seconds(self, run: FlowRates, phase: Phase, unit: int) -> float:
        """Return when the last of a unit's flows ends."""
        return float(run.duration_us[self._flows_of(phase, unit)].max()) * 1e-6

    def _kv(self, draw: int) -> Longs:
        return np.arange(self._kv_first[draw], self._kv_first[draw + 1])
