"""Where the ranks of a group meet: a store they all reach, and how long they wait there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from fourlane.engine.exchange.lane import mark_new_sockets, open_sockets
from fourlane.errors import PeerLost
from fourlane.lanes.connections import LaneEnd
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GroupAddress", "first_sentence", "names_of", "nodes_of", "open_store", "tell_in_store"]


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """How the ranks of a group meet.

    `store` is a file path, or "host:port" of a store that rank 0 opens; `address` the local IP
    whose interface carries the exchange. `lane` marks the exchange's sockets, `control` those of a
    store. `backend` is "gloo" or "nccl", for torch.distributed.

    Units:
        join_s, step_s: seconds to wait for peers while joining, and inside a collective.
    """

    store: str
    rank: int
    ranks: int
    address: str
    join_s: float
    step_s: float
    backend: str = "gloo"
    lane: LaneEnd = field(default_factory=lambda: LaneEnd.default(TrafficClass.EXPERT))
    control: LaneEnd = field(default_factory=lambda: LaneEnd.default(TrafficClass.CONTROL))

    def absent(self, detail: str) -> str:
        """Say that the group did not form."""
        return (
            f"rank {self.rank}: the {self.ranks} ranks of the group did not all meet at "
            f"{self.store} within {self.join_s:g} s ({detail})"
        )


def nodes_of(host_G: Sequence[str]) -> int:
    """Return on how many nodes ranks are; 1 unless each has equally many of them, one after the other.

    Args:
        host_G: the host of each rank.
    """
    nodes = len(set(host_G))
    width = len(host_G) // nodes
    in_order = all(len(set(host_G[first : first + width])) == 1 for first in range(0, len(host_G), width))
    return nodes if width * nodes == len(host_G) and in_order else 1


def open_store(address: GroupAddress) -> dist.Store:
    """Open the store of a group; its waits end after `join_s`.

    Raises:
        RuntimeError, DistStoreError: rank 0 does not answer, or the path cannot be written.
    """
    timeout = timedelta(seconds=address.join_s)
    host, colon, port = address.store.rpartition(":")
    if colon and port.isdigit():
        before = open_sockets()
        tcp_store = dist.TCPStore(
            host, int(port), address.ranks, is_master=address.rank == 0, timeout=timeout, wait_for_workers=False
        )
        mark_new_sockets(before, address.control)
        return tcp_store
    store = dist.FileStore(address.store, address.ranks)
    store.set_timeout(timeout)
    return store


def tell_in_store(store: dist.Store, address: GroupAddress, mine: str, *, topic: str, deadline: float) -> list[bytes]:
    """Leave a text in the group's store and return everybody's, by rank.

    Args:
        store: of the group.
        address: who this rank is.
        mine: the text.
        topic: what it is about; nobody tells anything under it twice.
        deadline: on the monotonic clock.

    Raises:
        PeerLost: somebody did not come in time; names all that did not.
        RuntimeError, DistStoreError: the store cannot be reached.
    """
    store.set(f"{topic}/{address.rank}", mine)
    texts: list[bytes] = []
    absent: list[int] = []
    for rank in range(address.ranks):
        store.set_timeout(timedelta(seconds=max(0.01, deadline - time.monotonic())))
        try:
            texts.append(store.get(f"{topic}/{rank}"))
        except (RuntimeError, dist.DistStoreError):
            absent.append(rank)
    if absent:
        raise PeerLost(address.absent(f"absent: {names_of(absent)}"))
    return texts


def names_of(ranks: Sequence[int]) -> str:
    """Return "rank 1" or "ranks 1, 2"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def first_sentence(error: RuntimeError) -> str:
    """Return the first sentence of a torch.distributed error, without its source path and advice."""
    return str(error).splitlines()[0].split("] ", 1)[-1].split(". This is", 1)[0]
