"""Ranks, links, switches and KV paths that fail while a service is simulated, and are mended.

As in the live service (docs/architecture.md, "Failure"): a rank that dies stops its group, whose other ranks keep their
sequences; only the dead rank's are tried again, elsewhere. A KV path that is cut breaks every transfer over it, and
ranks behind it are still given prompts, because nothing tells the gateway. Links and switches make exchanges and
transfers of the units that used them slower.
"""

from __future__ import annotations

from functools import cached_property
from math import isinf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.spec.twin import Fault
    from fourlane.twin.fault_factors import FaultFactors
    from fourlane.twin.serving.sequence import Sequence
    from fourlane.twin.serving.simulation import Service
    from fourlane.twin.times import Phase

__all__ = ["plan_faults"]


def plan_faults(service: Service) -> None:
    """Let the faults of a service's twin happen at their times."""
    for fault in service.assembly.twin.faults:
        _plan(service, fault)


def _plan(service: Service, fault: Fault) -> None:
    kinds: dict[str, Callable[[Service, Fault], _Outage]] = {"rank": _DeadRank, "kv": _CutKv}
    outage = kinds.get(fault.kind, _SlowNetwork)(service, fault)
    begin = fault.at.seconds
    service.clock.at(begin, outage.begin)
    if fault.lasts is not None:
        service.clock.at(begin + fault.lasts.seconds + outage.recovery_s, outage.end)


class _Outage:
    """A fault of a service; `recovery_s` passes between its mending and `end`."""

    recovery_s = 0.0

    def __init__(self, service: Service, fault: Fault) -> None:
        self.service, self.fault = service, fault

    def begin(self) -> None:
        """Let it happen."""

    def end(self) -> None:
        """Go on as before."""

    def _place(self) -> tuple[Phase, int]:
        """Return the phase and the number that the fault's target names."""
        phase, _, number = self.fault.target.partition("/")
        return _phase(phase), int(number)

    def _open(self) -> list[Sequence]:
        return [sequence for sequence in self.service.sequences if not sequence.over]


class _DeadRank(_Outage):
    """A rank's process ends; its unit stands still until there is another."""

    def __init__(self, service: Service, fault: Fault) -> None:
        super().__init__(service, fault)
        self.recovery_s = fault.recovery.seconds

    def begin(self) -> None:
        phase, rank = self._place()
        service = self.service
        service.stop_unit(phase, rank // service.assembly.phases()[phase].pool.ranks)
        lost = f"rank {self.fault.target} was lost"
        for sequence in self._open():
            if phase == "decode" and sequence.decode_rank == rank and sequence.state != "waiting":
                service.retry(sequence, lost, avoid_decode=rank, at_once=True)
            elif (
                phase == "prefill"
                and sequence.prefill_rank == rank
                and sequence.state in {"reserving", "prefilling", "leaving"}
            ):
                service.retry(sequence, lost, avoid_prefill=rank, at_once=True)
        if phase == "prefill":
            service.prefill[rank // service.assembly.prefill.pool.ranks].clear(rank)
            service.gateway.seen.forget(rank)

    def end(self) -> None:
        phase, rank = self._place()
        self.service.start_unit(phase, rank // self.service.assembly.phases()[phase].pool.ranks)


class _CutKv(_Outage):
    """No KV gets out of a prefill unit, or into a decode unit."""

    def begin(self) -> None:
        cut_kv(self.service, *self._place())

    def end(self) -> None:
        self.service.kv_cut.remove(self._place())


class _SlowNetwork(_Outage):
    """A link or switch is down: what went over it goes over those that are left, or nowhere."""

    def begin(self) -> None:
        for phase, unit, factor in self._exchanges():
            if isinf(factor):
                self.service.stop_unit(phase, unit)
            else:
                self.service.slower[phase][unit] *= factor
        for unit, factor in enumerate(self._factors.kv):
            if isinf(factor):
                cut_kv(self.service, "prefill", unit)
            else:
                self.service.kv.slowdown[unit] *= factor
        self._replan()

    def end(self) -> None:
        for phase, unit, factor in self._exchanges():
            if isinf(factor):
                self.service.start_unit(phase, unit)
            else:
                self.service.slower[phase][unit] /= factor
        for unit, factor in enumerate(self._factors.kv):
            if isinf(factor):
                self.service.kv_cut.remove(("prefill", unit))
            else:
                self.service.kv.slowdown[unit] /= factor
        self._replan()

    @cached_property
    def _factors(self) -> FaultFactors:
        from fourlane.twin.fault_factors import fault_factors

        return fault_factors(self.service.assembly, self.fault)

    def _exchanges(self) -> Iterator[tuple[Phase, int, float]]:
        for phase, factors in self._factors.exchange.items():
            for unit, factor in enumerate(factors):
                yield phase, unit, factor

    def _replan(self) -> None:
        for unit in self.service.decode:
            unit.replan()


def cut_kv(service: Service, phase: Phase, unit: int) -> None:
    """Break all transfers out of a prefill unit, or into a decode unit, and those that begin from now on."""
    service.kv_cut.append((phase, unit))
    for sequence in service.sequences:
        if sequence.state not in {"prefilling", "leaving"}:
            continue
        at = service.prefill_unit(sequence) if phase == "prefill" else service.decode_unit(sequence)
        if at.index == unit and (sequence.state == "leaving" or sequence.computed):
            service.retry(sequence, "its KV transfer broke", avoid_prefill=sequence.prefill_rank)


def _phase(name: str) -> Phase:
    return "prefill" if name == "prefill" else "decode"
