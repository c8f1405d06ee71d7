"""All-reduce of training jobs, as flows each of which waits for what its rank must have received."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric.flows import in_turn
from fourlane.twin.fabric.quantities import bytes_of
from fourlane.twin.fabric.workloads import between

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.topology import Topology
    from fourlane.units import Duration, Size

    Array = npt.NDArray[Any]

__all__ = ["halving_doubling_all_reduce", "repeated", "ring_all_reduce"]


def ring_all_reduce(
    topology: Topology, size: Size | str, *, hosts: Sequence[int] | Array | None = None, traffic: str = "collective"
) -> Flows:
    """Return an all-reduce of `size` bytes over a ring: 2 (n - 1) steps, each rank sending a share of 1/n a step.

    A rank sends in step s what it received in step s - 1; there is no barrier over all.

    Raises:
        SpecError: fewer than two hosts, an unknown one, or a size below a byte a rank.
    """
    chosen = _ranks(topology, hosts)
    n, steps = len(chosen), 2 * (len(chosen) - 1)
    share = -(-bytes_of("ring_all_reduce: size", size, least=n) // n)
    rank = np.tile(np.arange(n), steps)
    flows = between(
        topology, chosen[rank], chosen[(rank + 1) % n], np.full(1, share), traffic=traffic, name="ring_all_reduce"
    )
    number = np.arange(n * steps).reshape(steps, n)
    received = np.roll(number, 1, axis=1)  # what rank r gets in a step is what rank r - 1 sends
    connected = replace(flows, qp=rank.astype(np.uint32))
    return connected.waiting(received[:-1].reshape(-1), number[1:].reshape(-1))


def halving_doubling_all_reduce(
    topology: Topology, size: Size | str, *, hosts: Sequence[int] | Array | None = None, traffic: str = "collective"
) -> Flows:
    """Return an all-reduce by recursive halving and doubling: 2 log2(n) steps between ever other pairs.

    Step s of the first half exchanges size / 2^(s + 1) with the rank whose number differs in one bit, the highest
    first; the second half goes back.

    Source: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.

    Raises:
        SpecError: the number of hosts is no power of two, or a size below a byte a rank.
    """
    chosen = _ranks(topology, hosts)
    n = len(chosen)
    if n & (n - 1):
        raise SpecError(f"halving_doubling_all_reduce: hosts: expected a power of two of them, got {n}")
    total = bytes_of("halving_doubling_all_reduce: size", size, least=n)
    halves = [n >> (step + 1) for step in range(n.bit_length() - 1)]
    bits = np.array([*halves, *reversed(halves)])
    rank = np.arange(n)
    peer = rank ^ bits[:, None]
    shares = np.repeat(-(-total * bits // n), n)
    flows = between(
        topology, chosen[np.tile(rank, len(bits))], chosen[peer.reshape(-1)], shares, traffic=traffic, name="all_reduce"
    )
    number = np.arange(n * len(bits)).reshape(len(bits), n)
    received = np.take_along_axis(number, peer, axis=1)
    return flows.waiting(received[:-1].reshape(-1), number[1:].reshape(-1))


def repeated(flows: Flows, times: int, *, gap: Duration | str = "0ns") -> Flows:
    """Return a workload run `times` times, each begun `gap` after the one before was delivered.

    Raises:
        SpecError: not at least once.
    """
    if times < 1:
        raise SpecError(f"repeated: times: expected at least 1, got {times}")
    return in_turn([flows] * times, gap=gap)


def _ranks(topology: Topology, hosts: Sequence[int] | Array | None) -> Array:
    chosen = np.arange(topology.hosts) if hosts is None else np.asarray(hosts).reshape(-1)
    if len(chosen) < 2:
        raise SpecError(f"all-reduce: hosts: expected at least 2, got {len(chosen)}")
    return chosen
