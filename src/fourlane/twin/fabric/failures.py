"""Links and switches that fail and are repaired: what is up when, and when routing tables follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric.routing import routing_table, unroutable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.routing import RoutingTable
    from fourlane.twin.fabric.settings import Failure
    from fourlane.twin.fabric.topology import Topology

    Ints = npt.NDArray[np.int32]
    Ups = npt.NDArray[np.uint8]

__all__ = ["Epochs", "epochs_of", "refuse_unroutable"]

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Epochs:
    """The times between which nothing fails or is repaired.

    Attributes:
        times: i64 [epochs], ps; the first is 0.
        up: u8 [epochs, ports], what is up.
        table: i32 [epochs], which of `tables` switches use.
        tables: each worked out once.
        routed: u8 [ports] for each table, what it takes to be up.
    """

    times: npt.NDArray[np.int64]
    up: Ups
    table: Ints
    tables: tuple[RoutingTable, ...]
    routed: tuple[Ups, ...]


def epochs_of(topology: Topology, failures: Sequence[Failure]) -> Epochs:
    """Work out the epochs.

    Raises:
        SpecError: a failure names no link or switch there is, or its repair comes before it.
    """
    faults: list[str] = []
    found: list[tuple[Failure, Ints]] = []
    for place, failure in enumerate(failures):
        try:
            found.append((failure, _ports(topology, failure)))
        except SpecError as error:
            faults += [f"failures[{place}]: {fault}" for fault in error.faults]
    if faults:
        raise SpecError(*faults)
    times = sorted({0, *(time for failure, _ in found for time in _times(failure))})
    up = np.ones((len(times), topology.ports), np.uint8)
    known = np.ones_like(up)
    for failure, ports in found:
        for epoch, time in enumerate(times):
            if _between(time, failure, 0):
                up[epoch, ports] = 0
            if _between(time, failure, int(failure.reroute)):
                known[epoch, ports] = 0
    tables: dict[bytes, int] = {}
    number = [tables.setdefault(row.tobytes(), len(tables)) for row in known]
    routed = tuple(known[number.index(table)] for table in range(len(tables)))
    made = tuple(routing_table(topology, None if row.all() else row) for row in routed)
    return Epochs(np.array(times, np.int64), up, np.array(number, np.int32), made, routed)


def _times(failure: Failure) -> Iterator[int]:
    for time in (failure.at, failure.repaired):
        if time is not None:
            yield int(time)
            yield int(time) + int(failure.reroute)


def _between(time: int, failure: Failure, later: int) -> bool:
    return failure.at + later <= time and (failure.repaired is None or time < failure.repaired + later)


def _ports(topology: Topology, failure: Failure) -> Ints:
    """Return both ends of every cable that fails."""
    if (failure.link is None) == (failure.switch is None):
        raise SpecError('expected either link or switch, such as link = "leaf0-spine1", got both or neither')
    if failure.repaired is not None and failure.repaired <= failure.at:
        raise SpecError(f"repaired: expected after at = {failure.at}, got {failure.repaired}")
    if failure.switch is not None:
        node = topology.node_named(failure.switch)
        if topology.node_kind[node] == 0:
            raise SpecError(f'switch: expected a switch, got "{failure.switch}"; to cut off a host, fail its link')
        return topology.ports_of(node)
    assert failure.link is not None
    one, dash, other = failure.link.partition("-")
    if not dash:
        raise SpecError(f'link: expected two nodes such as "leaf0-spine1", got "{failure.link}"')
    ends = topology.links_between(topology.node_named(one), topology.node_named(other))
    cables = ends.reshape(2, -1)
    if not cables.size:
        raise SpecError(f'link: expected two nodes joined by a cable, got "{failure.link}", which are not')
    if failure.cable is None:
        return ends
    if not 0 <= failure.cable < cables.shape[1]:
        raise SpecError(f"cable: expected 0 to {cables.shape[1] - 1}, of {failure.link}, got {failure.cable}")
    return cables[:, failure.cable]


def refuse_unroutable(topology: Topology, flows: Flows, epochs: Epochs, failures: Sequence[Failure]) -> None:
    """Refuse flows between hosts that have no path, be it from the beginning or once failures have their last say.

    A pair that is cut off for a while is not refused: its packets are repeated until the repair.

    Raises:
        SpecError: naming the first few flows, their hosts and the failures.
    """
    real = np.flatnonzero(flows.source >= 0)
    source, target = flows.source[real], flows.destination[real]
    whole = routing_table(topology) if any(not row.all() for row in epochs.routed) else epochs.tables[0]
    apart = unroutable(topology, whole, source, target)
    why = ""
    if not apart.any() and len(failures):
        last = int(epochs.table[-1])
        apart = unroutable(topology, epochs.tables[last], source, target, up=epochs.up[-1])
        gone = [f"{failure.what} has failed at {failure.at}" for failure in failures if failure.repaired is None]
        why = f" once {', '.join(gone)} and is not repaired"
    cut = np.flatnonzero(apart)
    if not len(cut):
        return
    place = "failures" if why else "flows"
    faults = []
    for flow in cut[:_SHOWN]:
        ends = [_end(topology, int(port[flow])) for port in (source, target)]
        faults.append(f"{place}: {_flow_name(flows, int(real[flow]))}: no path from {ends[0]} to {ends[1]}{why}")
    if len(cut) > _SHOWN:
        faults.append(f"{place}: {len(cut) - _SHOWN} more flows without a path")
    raise SpecError(*faults)


def _end(topology: Topology, port: int) -> str:
    return f"{topology.node_name(int(topology.port_node[port]))} ({topology.networks[topology.port_network[port]]})"


def _flow_name(flows: Flows, flow: int) -> str:
    group = next(((name, first) for name, first in reversed(flows.groups) if first <= flow), ("flow ", 0))
    return f"{group[0]}[{flow - group[1]}]"
