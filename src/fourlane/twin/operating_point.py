"""A service in steady state, in closed form: latencies, throughput and what bounds them, at a rate.

    point = operating_point(assemble(twin))            # at the workload's own load
    best = peak_point(assemble(twin))                  # at the greatest rate that meets the SLO

Prefill, the way of KV cache and decode are each a fixed point (`fourlane.twin.steady`); they meet in how long a
sequence holds its blocks, and in how much of its NIC KV cache takes from expert traffic. How near this comes to the
simulation of single requests (`fourlane.twin.serving`) is measured by a test. Not for bursts, faults, or anything that
changes in time.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from fourlane.twin.steady.point import Steady

if TYPE_CHECKING:
    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.point_values import OperatingPoint

__all__ = ["NEAR_CAPACITY", "operating_point", "peak_point", "saturation_point"]

NEAR_CAPACITY = 0.95
"""Of what the weakest part can do: the rate that is sought where there is no SLO."""
_LEAST = 0.01
_HALVINGS = 12


def operating_point(assembly: Assembly, rate: float | None = None) -> OperatingPoint:
    """Return the service's steady state.

    Args:
        assembly: the service.
        rate: requests a second; None: the workload's own rate, or concurrency (closed loop); of a workload that says
            neither, the greatest that meets the SLO.
    """
    steady = _steady(assembly)
    mix = steady.mix
    if rate is not None:
        return steady.point(rate, offered=rate)
    if mix.concurrency is not None:
        return _closed_loop(steady, mix.concurrency)
    if mix.rate is not None:
        return steady.point(mix.rate, offered=mix.rate)
    return peak_point(assembly)


def peak_point(assembly: Assembly) -> OperatingPoint:
    """Return the service at the greatest rate that meets its SLO; without one, near the capacity of its weakest part.

    Where no rate meets the SLO, the point is that of a service with hardly anything to do, and its verdict says what
    binds and what is missed by least.
    """
    steady = _steady(assembly)
    most = steady.capacity * NEAR_CAPACITY
    slo = assembly.twin.slo
    if slo.ttft is None and slo.tpot is None:
        return saturation_point(assembly)
    low, high = _LEAST * most, most
    if not steady.meets(low):
        return steady.point(low, offered=None)
    if steady.meets(high):
        return steady.point(high, offered=None)
    for _ in range(_HALVINGS):
        between = math.sqrt(low * high)
        low, high = (between, high) if steady.meets(between) else (low, between)
    return steady.point(low, offered=None, limit=steady.binding(high))


def saturation_point(assembly: Assembly) -> OperatingPoint:
    """Return the service near the capacity of its weakest part, whatever its SLO."""
    steady = _steady(assembly)
    return steady.point(steady.capacity * NEAR_CAPACITY, offered=None)


def _closed_loop(steady: Steady, concurrency: int) -> OperatingPoint:
    """Return the point at which so many requests are under way (Little's law)."""
    low, high = 0.0, steady.capacity * (1 - 1e-6)
    for _ in range(40):
        rate = (low + high) / 2
        low, high = (rate, high) if steady.under_way(rate) < concurrency else (low, rate)
        if high - low < 1e-4 * high:
            break
    return steady.point((low + high) / 2, offered=None)


@lru_cache(maxsize=64)
def _steady(assembly: Assembly) -> Steady:
    return Steady(assembly)
