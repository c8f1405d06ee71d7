"""Search for ways to serve a load: units and their degree, how many of each phase, batches, streams, the KV network.

    result = plan(load_plan_spec("deepseek-512"))

Units of either phase that fit are rated by a few step times (`estimate`); the most promising pairs, and the best with
each value that is tried, are worked out as operating points, and those that lean to one side once or twice more with
other numbers of units. So not every pair is worked out; which were left out is told.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError
from fourlane.planner.estimate import decode_rate, prefill_rate
from fourlane.planner.exchange_runs import simulate_exchanges
from fourlane.planner.points import Points
from fourlane.planner.shapes import Shapes, kv_networks
from fourlane.planner.values import PlanResult, PlanRow
from fourlane.spec.twin import Twin, TwinPool
from fourlane.twin.assembly import assemble, named_parts
from fourlane.twin.steady.request_mix import request_mix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fourlane.spec.cluster import NetworkName
    from fourlane.spec.plan import PlanSpec

__all__ = ["plan"]

_FIRST = 0.6
"""Of all points, those for the first try of pairs; the others go on with the best of them."""
_ROUNDS = 4
_BUSY = {"prefill": 0.75, "decode": 0.95}
"""Share of a unit's capacity that is planned with at first: prompts queue, decode batches fill."""


@dataclass(frozen=True)
class _Pair:
    """Units of both phases, and how many requests a second one of each is expected to serve."""

    prefill: TwinPool
    decode: TwinPool
    kv: NetworkName
    prefill_rate: float = 0.0
    decode_rate: float = 0.0

    @property
    def rate_gpu(self) -> float:
        """Return the requests a second a GPU, both phases in proportion."""
        if not self.prefill_rate or not self.decode_rate:
            return 0.0
        return 1.0 / (self.prefill.ranks / self.prefill_rate + self.decode.ranks / self.decode_rate)

    def values(self) -> Iterable[tuple[str, object]]:
        """Yield what is tried in it, each with its name."""
        yield "kv", self.kv
        for phase, pool in (("prefill", self.prefill), ("decode", self.decode)):
            for name in ("ranks", "redundant_experts", "chunk_tokens", "max_running", "overlap"):
                yield f"{phase}.{name}", getattr(pool, name)


def plan(
    spec: PlanSpec, *, processes: int | None = None, progress: Callable[[int, int, str], object] | None = None
) -> PlanResult:
    """Return ways to serve, best first.

    Args:
        spec: what is asked for.
        processes: that work out points at once; None: as many as there are processors, where there is enough to do.
        progress: called with how much is done, of how much, and what is being done.

    Raises:
        SpecError: the spec names what is not there, or the model fits on nothing that it allows.
    """
    began = time.perf_counter()
    tell = progress or (lambda _done, _total, _text: None)
    tell(0, 1, "reading")
    architecture, cluster, gpu = named_parts(_twin(spec, _any_pair(), (1, 1)))
    shapes = Shapes(spec, architecture, cluster, gpu)
    networks = kv_networks(spec, cluster)
    simulate_exchanges(_one_of_each(spec, shapes, networks), architecture, cluster, processes=processes, tell=tell)
    with Points(processes) as points:
        points.start(spec.search.points)
        pairs = _rated(spec, shapes, networks, tell)
        search = _Search(spec, shapes.budget, points, tell)
        chosen = _chosen(pairs, spec.search.points)
        first = max(1, round(spec.search.points * _FIRST))
        search.try_pairs(chosen[:first])
        search.go_on()
        search.try_pairs(chosen[first : first + spec.search.points - search.points])
    rows = _ranked(search.rows)
    if not rows:
        raise SpecError(*dict.fromkeys(search.refused))
    refused = {**shapes.refused, **{why: search.refused.count(why) for why in search.refused}}
    return PlanResult(spec, rows, len(pairs), search.points, refused, time.perf_counter() - began)


def _one_of_each(spec: PlanSpec, shapes: Shapes, networks: Sequence[NetworkName]) -> list[Twin]:
    """Return twins among which every degree of either phase is, on every network KV cache may take."""
    prefill = {pool.ranks: pool for pool in shapes.prefill}
    decode = {pool.ranks: pool for pool in shapes.decode}
    pairs = [(pool, shapes.decode[0]) for pool in prefill.values()]
    pairs += [(shapes.prefill[0], pool) for pool in decode.values()]
    return [_twin(spec, _Pair(one, other, kv), (1, 1)) for kv in networks for one, other in pairs]


def _any_pair() -> _Pair:
    return _Pair(TwinPool(ranks=1), TwinPool(ranks=1), "hpn")


def _twin(spec: PlanSpec, pair: _Pair, units: tuple[int, int]) -> Twin:
    pools = [
        msgspec.structs.replace(pool, units=count)
        for pool, count in zip((pair.prefill, pair.decode), units, strict=True)
    ]
    return Twin(
        name=spec.name,
        model=spec.model,
        cluster=spec.cluster,
        hardware=spec.hardware,
        prefill=pools[0],
        decode=pools[1],
        lanes=msgspec.structs.replace(spec.lanes, kv=pair.kv),
        experts=spec.experts,
        workload=spec.workload,
        slo=spec.slo,
        assumptions=spec.assumptions,
        block_size=spec.block_size,
        seed=spec.seed,
    )


def _rated(
    spec: PlanSpec, shapes: Shapes, networks: Sequence[NetworkName], tell: Callable[[int, int, str], object]
) -> list[_Pair]:
    """Return all pairs with what a unit of each phase serves, the most promising first.

    Units of a phase are rated beside any of the other: until they meet in the KV path they know nothing of each other.
    """
    mix = request_mix(spec.workload, block_size=spec.block_size, cache_blocks=0, seed=spec.seed)
    beside_prefill, beside_decode = shapes.decode[0], shapes.prefill[0]
    total = len(networks) * (len(shapes.prefill) + len(shapes.decode))
    done = 0
    pairs: list[_Pair] = []
    for kv in networks:
        prefill: dict[TwinPool, float] = {}
        decode: dict[TwinPool, float] = {}
        for pool in shapes.prefill:
            assembly = assemble(_twin(spec, _Pair(pool, beside_prefill, kv), (1, 1)))
            prefill[pool] = prefill_rate(assembly.prefill, mix)
            tell(done := done + 1, total, "rating units")
        for pool in shapes.decode:
            assembly = assemble(_twin(spec, _Pair(beside_decode, pool, kv), (1, 1)))
            decode[pool] = decode_rate(assembly, mix, spec.slo)
            tell(done := done + 1, total, "rating units")
        pairs += [
            _Pair(one, other, kv, prefill[one], decode[other])
            for one in shapes.prefill
            for other in _unlike(decode)
            if one.ranks + other.ranks <= shapes.budget
        ]
    return sorted(pairs, key=lambda pair: -pair.rate_gpu)


def _unlike(rates: Mapping[TwinPool, float]) -> list[TwinPool]:
    """Return units without those that are allowed larger batches than memory and TPOT let them have anyhow."""
    kept: dict[TwinPool, list[float]] = {}
    found = []
    for pool in sorted(rates, key=lambda pool: pool.max_running):
        seen = kept.setdefault(msgspec.structs.replace(pool, max_running=0), [])
        if not any(math.isclose(rates[pool], other, rel_tol=2e-3) for other in seen):
            found.append(pool)
            seen.append(rates[pool])
    return found


def _chosen(pairs: Sequence[_Pair], most: int) -> list[_Pair]:
    """Return the best pair with each value that is tried, then the best of all, so many at most."""
    best: dict[tuple[str, object], _Pair] = {}
    for pair in pairs:
        for value in pair.values():
            best.setdefault(value, pair)
    return list(dict.fromkeys([pairs[0], *best.values(), *pairs]))[:most]


class _Search:
    """Points that are worked out, and where they lead.

    Args:
        spec: what is asked for.
        budget: GPUs at most.
        worked_out: who works out operating points.
        tell: as `progress` of `plan`.
    """

    def __init__(
        self, spec: PlanSpec, budget: int, worked_out: Points, tell: Callable[[int, int, str], object]
    ) -> None:
        self.spec = spec
        self.budget = budget
        self.worked_out = worked_out
        self.tell = tell
        self.found: dict[_Pair, list[PlanRow]] = {}
        self.refused: list[str] = []
        self.tried: set[tuple[_Pair, int, int]] = set()

    @property
    def points(self) -> int:
        """Return how many points were worked out."""
        return len(self.tried)

    @property
    def rows(self) -> list[PlanRow]:
        """Return the best row of each pair."""
        return [min(rows, key=_order) for rows in self.found.values()]

    def try_pairs(self, pairs: Sequence[_Pair]) -> None:
        """Work out each pair with the numbers of units that its rating calls for."""
        rates = ((pair, pair.prefill_rate * _BUSY["prefill"], pair.decode_rate * _BUSY["decode"]) for pair in pairs)
        self._work_out([(pair, _units(self.spec, self.budget, pair, one, other)) for pair, one, other in rates])

    def go_on(self) -> None:
        """Spend the points that are left on other numbers of units, for the best pairs first."""
        for _ in range(_ROUNDS):
            left = self.spec.search.points - self.points
            wanted = []
            for pair in sorted(self.found, key=lambda pair: _order(min(self.found[pair], key=_order))):
                units = self._next_units(pair)
                if units is not None and (pair, *units) not in self.tried:
                    wanted.append((pair, units))
            if not wanted or left <= 0:
                return
            self._work_out(wanted[: max(1, left // 2)] if len(wanted) > left // 2 else wanted)

    def _work_out(self, wanted: Sequence[tuple[_Pair, tuple[int, int]]]) -> None:
        done, total = self.points, self.spec.search.points
        twins = [_twin(self.spec, pair, units) for pair, units in wanted]
        outcomes = self.worked_out.of(
            twins,
            progress=lambda now, _all: self.tell(min(done + now, total), total, "operating points"),
        )
        for (pair, units), twin, outcome in zip(wanted, twins, outcomes, strict=True):
            self.tried.add((pair, *units))
            if isinstance(outcome, str):
                self.refused.append(outcome)
            else:
                self.found.setdefault(pair, []).append(PlanRow(twin, outcome))

    def _next_units(self, pair: _Pair) -> tuple[int, int] | None:
        """Return other numbers of units for a pair, as its latest point calls for; None: it is well as it is."""
        row = self.found[pair][-1]
        if self.spec.workload.rate is None:
            return _units(self.spec, self.budget, pair, *_usable(row))
        units = _stepped(row)
        return units if _gpus(pair, units) <= self.budget else None


def _gpus(pair: _Pair, units: tuple[int, int]) -> int:
    return units[0] * pair.prefill.ranks + units[1] * pair.decode.ranks


def _units(spec: PlanSpec, budget: int, pair: _Pair, one: float, other: float) -> tuple[int, int]:
    """Return how many units of each phase to take, where one serves so many requests a second.

    As few as serve the rate that is asked for; else those that serve most with the GPUs there are, without idle ones.
    """
    if spec.workload.rate is not None and one > 0 and other > 0:
        units = math.ceil(spec.workload.rate / one), math.ceil(spec.workload.rate / other)
        if _gpus(pair, units) <= budget:
            return units
    best, found = -1.0, (1, 1)
    for decode in range(1, (budget - pair.prefill.ranks) // pair.decode.ranks + 1):
        prefill = (budget - decode * pair.decode.ranks) // pair.prefill.ranks
        served = min(prefill * one, decode * other)
        if served > best:
            best, found = served, (prefill, decode)
    if best <= 0:
        return found
    return min(found[0], math.ceil(best / one)), min(found[1], math.ceil(best / other))


def _usable(row: PlanRow) -> tuple[float, float]:
    """Return the requests a second that a unit of each phase really serves, as a point shows."""
    point, twin = row.point, row.twin
    held_back = point.rate / twin.prefill.units, point.rate / twin.decode.units
    room = (
        point.prefill.capacity / twin.prefill.units * max(_BUSY["prefill"], point.prefill.utilisation),
        point.decode.capacity / twin.decode.units * max(_BUSY["decode"], point.decode.utilisation),
    )
    by_prefill, by_decode = point.binds in ("ttft", "prefill", "kv"), point.binds in ("tpot", "decode")
    return held_back[0] if by_prefill else room[0], held_back[1] if by_decode else room[1]


def _stepped(row: PlanRow) -> tuple[int, int]:
    """Return one unit more of what stands in the way of a rate that is asked for, or one fewer of what has room."""
    units = row.twin.prefill.units, row.twin.decode.units
    if not row.meets:
        binds = row.point.slo.binds if row.point.stable else row.point.binds
        return (units[0], units[1] + 1) if binds in ("tpot", "decode") else (units[0] + 1, units[1])
    idle = 1 - row.point.prefill.utilisation, 1 - row.point.decode.utilisation
    if idle[0] * units[0] > 1 and units[0] > 1 and idle[0] * row.twin.prefill.ranks >= idle[1] * row.twin.decode.ranks:
        return units[0] - 1, units[1]
    if idle[1] * units[1] > 1 and units[1] > 1:
        return units[0], units[1] - 1
    return units


def _order(row: PlanRow) -> tuple[float, ...]:
    """Return what rows are sorted by: goodput a GPU where the SLO is met, else how nearly it is."""
    first = row.point.ttft.mean
    if row.meets:
        return (0.0, -row.goodput_gpu, float(row.gpus), first)
    return (1.0, -row.point.slo.attainment, 0.0 if row.point.stable else 1.0, float(row.gpus))


def _ranked(rows: Sequence[PlanRow]) -> tuple[PlanRow, ...]:
    """Return rows best first, those marked that no other beats in everything."""
    ordered = sorted(rows, key=_order)
    figures = [(-row.tokens_gpu, row.point.tpot.mean, row.point.ttft.mean) for row in ordered]
    return tuple(
        replace(row, front=row.point.stable and not any(_beats(other, own) for other in figures))
        for row, own in zip(ordered, figures, strict=True)
    )


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= yours for mine, yours in zip(one, other, strict=True))
