"""What kernels of expert exchange, and the hardware under them, cost beside what packets on ports explain.

A few figures for each generation of kernels, each with a meaning, from `published/expert_kernels.toml`; the rows they
were held against are in `published/expert_exchange.toml`. Not for the simulation of a row
(`fourlane.twin.fabric.exchange_validation`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.errors import SpecError
from fourlane.spec.load import load
from fourlane.spec.reading import Fault
from fourlane.twin.fabric.topology import NVLINK
from fourlane.units import Duration, Rate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.twin.fabric.topology import Topology

__all__ = [
    "OPERATIONS",
    "ExchangeRow",
    "ExpertKernels",
    "Operation",
    "expert_kernels",
    "kernels_named",
    "published_exchanges",
]

Operation = Literal["dispatch", "combine"]
OPERATIONS: tuple[Operation, ...] = ("dispatch", "combine")
_PUBLISHED = Path(__file__).parent / "published"
_PS_A_SECOND = 10**12


class Overhead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time an operation takes whatever it moves: launch, casts, the first and the last message's way."""

    dispatch: Duration
    combine: Duration


class ExpertKernels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A generation of kernels on its hardware.

    Args:
        nic: rate of each GPU's NIC.
        nic_gap: what a message costs the NIC beside its bytes.
        signal: what the atomic costs the NIC that closes the stream to an expert; low-latency kernels send one to each.
        nvlink: rate at which kernels write over NVLink, packet headers included.
        nvlink_gap: what a message costs there beside its bytes.
        forwarding: rate at which kernels that forward keep the NIC fed; None: its own.
        reduction: rate at which combine reads what it sums.
        over_nic: overhead where messages leave the node.
        over_nvlink: overhead where none does.
        forwarded: overhead of kernels that forward.
        fitted: which of these figures were fitted, and on which rows ("name" or "name: operation").
        source: of the others.
    """

    nic: Rate
    nic_gap: Duration = Duration(0)
    signal: Duration = Duration(0)
    nvlink: Rate
    nvlink_gap: Duration = Duration(0)
    forwarding: Rate | None = None
    reduction: Rate
    over_nic: Overhead
    over_nvlink: Overhead
    forwarded: Overhead
    fitted: dict[str, tuple[str, ...]]
    source: str

    def on(self, topology: Topology, *, forwards: bool = False) -> Topology:
        """Return a topology whose NICs and NVLink ports are as fast as these kernels drive them."""
        rate, gap = topology.port_rate.copy(), topology.port_message_gap.copy()
        at_host = topology.node_kind[topology.port_node] == 0
        facing = at_host[topology.port_peer]
        for place, network in enumerate(topology.networks):
            own = topology.port_network == place
            line, between = (self.nvlink, self.nvlink_gap) if network == NVLINK else (self.nic, self.nic_gap)
            if forwards and network != NVLINK:
                line = min(line, self.forwarding or line)
            rate[own & (at_host | facing)] = int(line)
            gap[own & at_host] = int(between)
        return topology.replaced(port_rate=rate, port_message_gap=gap)

    def fixed_ps(self, operation: Operation, *, by_nic: bool, forwards: bool = False) -> int:
        """Return the overhead of an operation."""
        overhead = self.forwarded if forwards else self.over_nic if by_nic else self.over_nvlink
        return int(getattr(overhead, operation))

    def beside_ps(self, operation: Operation, *, by_nic: bool, experts: int, reduced: int) -> int:
        """Return what low-latency kernels take beside what the network does.

        Args:
            operation: dispatch or combine.
            by_nic: messages leave the node.
            experts: those that each rank sends to by NIC, to close the streams to.
            reduced: bytes that combine sums.
        """
        taken = self.fixed_ps(operation, by_nic=by_nic) + self.signals_ps(experts)
        return taken + (self.reduction_ps(reduced) if operation == "combine" else 0)

    def signals_ps(self, experts: int) -> int:
        """Return what closing the streams to so many experts costs the NIC."""
        return int(self.signal) * experts

    def reduction_ps(self, size: int) -> int:
        """Return how long combine reads so many bytes that it sums."""
        return size * 8 * _PS_A_SECOND // int(self.reduction)


class ExchangeRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published time, or rate, of dispatch and combine, and how it was measured.

    Units:
        dispatch_rate, combine_rate: bytes of all copies a rank's tokens have, those that never leave the node (on one
        node: the GPU) counted too, over the time; as DeepEP's tests count them.
    """

    name: str
    kernels: str
    mode: Literal["low-latency", "normal"]
    nvlink: bool = False
    ranks: int
    tokens: int
    experts: int
    top_k: int = 8
    groups: int = 1
    top_groups: int = 1
    hidden: int = 7168
    dispatch_us: float | None = None
    combine_us: float | None = None
    dispatch_rate: Rate | None = None
    combine_rate: Rate | None = None
    bottleneck: Literal["nic", "nvlink"]
    tolerance: float = 0.05
    source: str

    def published(self, operation: Operation) -> float:
        """Return the published time in us, or rate in GB/s."""
        time_us, rate = getattr(self, f"{operation}_us"), getattr(self, f"{operation}_rate")
        return float(time_us) if time_us is not None else int(rate) / 8e9

    def was_fitted(self, operation: Operation) -> bool:
        """Tell whether the operation's figure fixed one of its kernels', rather than being predicted."""
        rows = {row for rows in kernels_named(self.kernels).fitted.values() for row in rows}
        return not rows.isdisjoint({self.name, f"{self.name}: {operation}"})

    @property
    def in_rates(self) -> bool:
        """Tell whether rates were published, not times."""
        return self.dispatch_us is None


class _Kernels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kernels: dict[str, ExpertKernels]


class _Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: tuple[ExchangeRow, ...]


@cache
def expert_kernels() -> dict[str, ExpertKernels]:
    """Return the generations of kernels there are figures of, by name."""
    return load(_PUBLISHED / "expert_kernels.toml", _Kernels).kernels


def kernels_named(name: str) -> ExpertKernels:
    """Return a generation of kernels.

    Raises:
        SpecError: there are no figures of such.
    """
    if name not in expert_kernels():
        raise SpecError(f'kernels: expected one of {", ".join(expert_kernels())}, got "{name}"')
    return expert_kernels()[name]


@cache
def published_exchanges() -> tuple[ExchangeRow, ...]:
    """Return the published rows."""
    return load(_PUBLISHED / "expert_exchange.toml", _Rows, rules=_row_faults).rows


def _row_faults(read: _Rows) -> Iterator[Fault]:
    names = {row.name for row in read.rows}
    for kernels, figures in expert_kernels().items():
        for rows in figures.fitted.values():
            unknown = sorted({row.partition(":")[0] for row in rows} - names)
            if unknown:
                yield Fault("rows", f"expected all that {kernels} was fitted on, found no {', '.join(unknown)}")
    for place, row in enumerate(read.rows):
        given = [getattr(row, f"{operation}_{unit}") is not None for operation in OPERATIONS for unit in ("us", "rate")]
        if given not in ([True, False, True, False], [False, True, False, True]):
            yield Fault(f"rows[{place}]", f"{row.name}: expected times of both operations, or rates of both")
        if row.kernels not in expert_kernels():
            yield Fault(f"rows[{place}].kernels", f"expected one of {', '.join(expert_kernels())}, got {row.kernels}")
