"""The implementations of the exchange contract that the conformance suite holds: one entry each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import deepep_double
import torch
from symmetric_double import SymmetricDouble

from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.deepep import DeepEpExchange, Kernels
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.exchange.payload import AS_IS
from fourlane.engine.exchange.shared_memory import SharedMemoryExchange
from fourlane.engine.exchange.symmetric_memory import SymmetricMemoryExchange
from fourlane.engine.exchange.tcp import TcpExchange
from fourlane.engine.exchange.torch_all_to_all import TorchAllToAll
from fourlane.engine.seal import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.exchange.group_exchange import SteppedExchange
    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.exchange.payload import Payload
    from fourlane.policy.placement import Placement

__all__ = ["IMPLEMENTATIONS", "AnyExchange", "Implementation", "Joining"]

AnyExchange: TypeAlias = "SteppedExchange | LocalExchange | CommunicationThread"

CPU = torch.device("cpu")
WIDE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What experts compute in, and combine can sum."""
NARROW = (torch.uint8, torch.int64, torch.float8_e4m3fn)
"""What is only carried."""


@dataclass(frozen=True)
class Joining:
    """With whom a rank forms a group, and what it wants of it."""

    address: GroupAddress
    placement: Placement
    split: bool = True
    payload: Payload = AS_IS
    secret: bytes = b"s" * 32


@dataclass(frozen=True)
class Implementation:
    """One way to exchange.

    Args:
        open: forms a group; blocks until all are there.
        most_ranks: a group can have.
        names_peers: its errors name the rank that is lost.
        dtypes: of activations that it carries.
        dim: a width of rows it takes.
        exact: it sums a token's experts in the order of K; else sums are only near.
        width: ranks of a node, if their number is a multiple of it; else each is one. None: all are on one.
        behind_thread: the communication thread runs it.
        marked: it has connections of its own, which carry the expert lane's mark.
        hears_of_deaths: a peer's death ends what is under way at once; else its timeout does.
    """

    open: Callable[[Joining], AnyExchange]
    most_ranks: int = 16
    names_peers: bool = False
    dtypes: tuple[torch.dtype, ...] = WIDE + NARROW
    dim: int = 8
    exact: bool = True
    width: int | None = None
    behind_thread: bool = False
    marked: bool = True
    hears_of_deaths: bool = True

    def nodes(self, ranks: int) -> int:
        """Return on how many nodes so many ranks are."""
        if self.width is None:
            return 1
        return ranks if ranks % self.width else ranks // self.width


def _local(joining: Joining) -> LocalExchange:
    return LocalExchange(joining.placement, payload=joining.payload)


def _torch_all_to_all(joining: Joining) -> SteppedExchange:
    return TorchAllToAll(joining.address, joining.placement, device=CPU, split=joining.split, payload=joining.payload)


def _tcp(joining: Joining) -> SteppedExchange:
    return _with_secret(TcpExchange, joining)


def _shared_memory(joining: Joining) -> SteppedExchange:
    return _with_secret(SharedMemoryExchange, joining)


def _with_secret(kind: type[TcpExchange | SharedMemoryExchange], joining: Joining) -> SteppedExchange:
    return kind(
        joining.address,
        joining.placement,
        device=CPU,
        secret=Secret(joining.secret),
        split=joining.split,
        payload=joining.payload,
    )


def _symmetric_memory(joining: Joining) -> SteppedExchange:
    return SymmetricMemoryExchange(
        joining.address,
        joining.placement,
        symmetric=SymmetricDouble(),
        device=CPU,
        split=joining.split,
        payload=joining.payload,
    )


def _deepep(joining: Joining) -> SteppedExchange:
    return DeepEpExchange(
        joining.address,
        joining.placement,
        kernels=Kernels(deepep_double.library("ElasticBuffer")),
        device=CPU,
        split=joining.split,
        payload=joining.payload,
    )


def _over_nodes(joining: Joining) -> SteppedExchange:
    """Return gloo, a token once per node: pairs of ranks play nodes, or where they are odd each is one."""
    exchange = _torch_all_to_all(joining)
    width = exchange.ranks // IMPLEMENTATIONS["hierarchical"].nodes(exchange.ranks)
    exchange.find_nodes(f"host {exchange.rank // width}", hierarchical="always")
    return exchange


def _behind_thread(kind: Implementation) -> Implementation:
    """Return an implementation's operations run by a communication thread."""

    def open_behind(joining: Joining) -> CommunicationThread:
        return CommunicationThread(kind.open(joining), device=CPU, patience_s=joining.address.step_s)

    return replace(kind, open=open_behind, behind_thread=True)


_ALONE = {
    "local": Implementation(_local, most_ranks=1, marked=False),
    "torch_all_to_all": Implementation(_torch_all_to_all),
    "tcp": Implementation(_tcp, names_peers=True),
    "shared_memory": Implementation(_shared_memory, names_peers=True, marked=False),
    "deepep": Implementation(_deepep, most_ranks=3, dtypes=(torch.bfloat16,), dim=256, exact=False),
    "symmetric_memory": Implementation(_symmetric_memory, most_ranks=4, marked=False, hears_of_deaths=False),
    "hierarchical": Implementation(_over_nodes, width=2),
}
IMPLEMENTATIONS = _ALONE | {f"{name}+thread": _behind_thread(kind) for name, kind in _ALONE.items()}
