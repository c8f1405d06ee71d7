"""How long dispatch and combine take: a table of packet runs, read between its points.

A run's time is the network's; what kernels take beside it is added (`ExchangeSetting.beside_ps`). Over tokens a rank,
times are read along straight lines from run to run, and on beyond the last one along the last line: the network's time
is a constant and so much a token, as nearly as `tests/unit/twin/exchange` holds it to. Over how full the fullest rank
is: with low-latency kernels, what goes there takes in proportion, beside the constant, and the others take as long as
without it; the longer of both counts. With normal kernels, which send a token once to a node, imbalance costs less, and
times lie on a line between those that were run. Times never fall where tokens or imbalance rise. Not for which runs are
made and kept (`fourlane.twin.exchange.filling`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.times import Operation, Timed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fourlane.twin.exchange.setting import ExchangeSetting

__all__ = ["ExchangeTable", "IdealExchange", "Measured"]

_PS = 1e-12


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a packet run showed: seconds on the network, and the use of the busiest NIC and NVLink port meanwhile."""

    operation: Operation
    tokens: int
    max_over_mean: float
    seconds: float
    nic: float
    nvlink: float


@dataclass(frozen=True)
class ExchangeTable:
    """Times of a setting's dispatch and combine.

    Args:
        setting: what is exchanged, and where.
        runs: packet runs: of each operation, for each imbalance, at two or more numbers of tokens.
        key: of the table in the cache, which names all that went into it.
        slowdowns: by what the network's time of each operation grows where KV cache shares the network.
        beside: what shares it, in words.
    """

    setting: ExchangeSetting
    runs: tuple[Measured, ...]
    key: str
    slowdowns: Mapping[str, float] = field(default_factory=dict)
    beside: str = ""

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return what it takes with so many tokens a rank, the fullest receiver getting so many times the mean."""
        if self.setting.ranks == 1:
            return Timed(0.0, "none", "one rank: nothing is exchanged")
        network = self.network_s(operation, tokens, max_over_mean)
        fixed = self.setting.beside_ps(operation, tokens) * _PS
        still = self.network_s(operation, 0.0, 1.0) + self.setting.beside_ps(operation, 0.0) * _PS
        bound = "latency" if still > (network + fixed) / 2 else self._port(operation)
        return Timed(network + fixed, bound, self.source)

    def network_s(self, operation: Operation, tokens: float, max_over_mean: float = 1.0) -> float:
        """Return the seconds of it that the network takes."""
        (_, balanced), (level, skewed) = self._curves[operation]
        evenly, found = balanced.at(tokens), skewed.at(tokens)
        if self.setting.mode == "normal":
            found = evenly + max(0.0, found - evenly) * (max(max_over_mean, 1.0) - 1.0) / (level - 1.0)
        else:
            still = balanced.at(0.0)
            found = max(evenly, still + (found - still) * max_over_mean / level)
        return found * self.slowdowns.get(operation, 1.0)

    def with_background(self, share: float) -> ExchangeTable:
        """Return the times beside KV cache on the same network.

        A transfer comes (decode) or goes (prefill) at the full rate of its lane, and now and then: the exchange waits
        for the rank that has one, and whether any of them has is a matter of chance. What one takes longer then is
        found by packet runs, which are kept too.

        Args:
            share: of each rank's NIC that KV cache takes, mean over time; of no account where it has its own network.

        Raises:
            SpecError: a share below 0.
            SimulationError: a run did not end.
        """
        from fourlane.twin.exchange.background import background_slowdowns

        if not share >= 0:
            raise SpecError(f"background: expected a share of the NIC from 0 up, got {share}")
        alone = replace(self, slowdowns={}, beside="")
        if not share or self.setting.lanes.kv_network != "hpn" or not self.setting.by_nic:
            return alone
        slowdowns = background_slowdowns(alone, share)
        most = max(slowdowns.values())
        return replace(alone, slowdowns=slowdowns, beside=f", KV cache on {share:.1%} of each NIC (x{most:.3f})")

    @property
    def source(self) -> str:
        """Return where its times come from, in words."""
        setting, lanes = self.setting, self.setting.lanes
        what = f"packets: EP{setting.ranks} on {setting.cluster.name}, {lanes.name}"
        return f"{what}{self.beside}; table {self.key[:8]}, {len(self.runs)} runs; {setting.kernels_source}"

    @cached_property
    def _curves(self) -> dict[str, list[tuple[float, _Curve]]]:
        found: dict[str, dict[float, list[Measured]]] = {}
        for run in self.runs:
            found.setdefault(run.operation, {}).setdefault(run.max_over_mean, []).append(run)
        return {operation: _levels(sorted(levels.items())) for operation, levels in found.items()}

    def _port(self, operation: Operation) -> str:
        last = max((run for run in self.runs if run.operation == operation), key=lambda run: run.tokens)
        return "nic" if last.nic >= last.nvlink else "nvlink"


@dataclass(frozen=True)
class _Curve:
    """Seconds over tokens, along straight lines that never fall."""

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]

    @staticmethod
    def of(runs: Sequence[Measured]) -> _Curve:
        ordered = sorted(runs, key=lambda run: run.tokens)
        rising = np.maximum.accumulate([run.seconds for run in ordered])
        return _Curve(tuple(float(run.tokens) for run in ordered), tuple(rising.tolist()))

    def times(self, factor: float) -> _Curve:
        return _Curve(self.tokens, tuple(second * factor for second in self.seconds))

    def at(self, tokens: float) -> float:
        return max(0.0, _between(self.tokens, self.seconds, tokens))


def _levels(runs: Sequence[tuple[float, list[Measured]]]) -> list[tuple[float, _Curve]]:
    """Return a curve for each imbalance; one that was run once is as many times the first as it was there."""
    first = _Curve.of(runs[0][1])
    curves = []
    for level, measured in runs:
        only = measured[0]
        curve = first.times(only.seconds / first.at(only.tokens)) if len(measured) == 1 else _Curve.of(measured)
        curves.append((level, curve))
    return curves


def _between(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """Return a value between points, or beyond the first or last two along their line."""
    if len(places) == 1:
        return values[0]
    upper = min(max(bisect_right(places, place), 1), len(places) - 1)
    low, high = places[upper - 1], places[upper]
    slope = (values[upper] - values[upper - 1]) / (high - low)
    return values[upper - 1] + slope * (place - low)


@dataclass(frozen=True, slots=True)
class IdealExchange:
    """A network on which only bytes take time, for bounds.

    Args:
        dispatch_bytes, combine_bytes: of a token's copy.
        copies: of each token.
        rate: bytes a second of a rank's NIC.
        source: in words.
    """

    dispatch_bytes: float
    combine_bytes: float
    copies: float
    rate: float
    source: str = "bytes over the NIC's rate"

    def operation(self, operation: Operation, tokens: float, max_over_mean: float) -> Timed:
        """Return what it takes with so many tokens a rank, the fullest receiver getting so many times the mean."""
        size: dict[str, Any] = {"dispatch": self.dispatch_bytes, "combine": self.combine_bytes}
        return Timed(tokens * self.copies * size[operation] / self.rate * max_over_mean, "nic", self.source)
