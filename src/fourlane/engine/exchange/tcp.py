"""Exchange over TCP connections of its own: full duplex, few wake-ups, marked as expert traffic.

Between hosts without RDMA. One connection a pair of ranks; a native loop moves bytes both ways on
all of them at once, without the GIL, and asks the kernel to wake it only when a message is whole.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import torch

from fourlane._native import SocketMesh
from fourlane.engine.exchange.all_to_all import CarrierError
from fourlane.engine.exchange.hierarchical import HierarchicalAllToAll
from fourlane.engine.exchange.payload import AS_IS
from fourlane.engine.exchange.tcp_meeting import meet

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.exchange.group_exchange import Meanwhile
    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.exchange.payload import Payload
    from fourlane.engine.seal import Secret
    from fourlane.policy.placement import Placement

__all__ = ["TcpExchange"]

_SO_MAX_PACING_RATE = 47  # of Linux; the socket module lacks it


class _Kind(IntEnum):
    """What a message is; in its header."""

    GATHER = 1
    EXCHANGE = 2


class _End(IntEnum):
    """How a wait ended: `fourlane::MeshEnd`."""

    DONE = 0
    TIMED_OUT = 1
    INTERRUPTED = 2
    CLOSED = 3
    FAILED = 4
    UNEXPECTED = 5
    WOKEN = 6
    LEFT = 7


class TcpExchange(HierarchicalAllToAll):
    """The exchange over own TCP connections."""

    def __init__(  # noqa: PLR0913 - who we are, what we connect with, and choices of their own
        self,
        address: GroupAddress,
        placement: Placement,
        *,
        device: torch.device,
        secret: Secret,
        counters: ExchangeCounters | None = None,
        split: bool = True,
        payload: Payload = AS_IS,
        pace: int | None = None,
    ) -> None:
        """Join the group; blocks until every rank is there.

        Args:
            address: where and with whom.
            placement: where experts live at first.
            device: of the activations; what travels goes through host memory.
            secret: the deployment's key, by which ranks know each other.
            counters: totals of an earlier generation to go on with.
            split: level ranks over replicas batch by batch, or else spread tokens evenly over them.
            payload: in which form rows are dispatched, the same on all ranks.
            pace: bit/s that the connections may send together, an equal share each, whatever the network would
                take; the kernel spaces packets out, which needs no privilege. None: no limit.

        Raises:
            PeerLost: not all ranks came within `address.join_s`.
            SpecError: this host does not have `address.address`.
        """
        super().__init__(
            _TcpCarrier(address, secret, pace),
            address,
            placement,
            device=device,
            counters=counters,
            split=split,
            payload=payload,
        )


class _TcpCarrier:
    """Connections to all peers as a `Carrier`."""

    def __init__(self, address: GroupAddress, secret: Secret, pace: int | None) -> None:
        self._ranks = address.ranks
        self._patience_ms = max(1, round(address.step_s * 1000))
        self._meeting = meet(address, secret)
        self.marks = self._meeting.marks
        self._sockets = self._meeting.sockets
        if pace is not None:
            _pace([sock for sock in self._sockets if sock is not None], pace)
        self._mesh = SocketMesh([-1 if sock is None else sock.fileno() for sock in self._sockets])
        self._held: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """Memory the native loop reads and writes, by operation, until it is through."""

    @property
    def device(self) -> torch.device:
        """Return the host."""
        return torch.device("cpu")

    def gather(self, mine: Tensor) -> tuple[Tensor, _Work]:
        """Begin to send a vector to all ranks."""
        gathered = torch.empty((self._ranks, *mine.shape), dtype=mine.dtype)
        out, into = _bytes_of(mine), _bytes_of(gathered)
        operation = self._mesh.gather(_Kind.GATHER, out, into)
        self._held[operation] = (out, into)
        return gathered, _Work(self, operation)

    def exchange(self, rows: Tensor, sent_G: list[int], received_G: list[int]) -> tuple[Tensor, _Work]:
        """Begin to send each rank its rows."""
        width = rows.shape[1]
        result = torch.empty((sum(received_G), width), dtype=torch.uint8)
        out, into = _bytes_of(rows), _bytes_of(result)
        out_sizes, in_sizes = ([count * width for count in counts] for counts in (sent_G, received_G))
        operation = self._mesh.exchange(_Kind.EXCHANGE, out, out_sizes, into, in_sizes)
        self._held[operation] = (out, into)
        return result, _Work(self, operation)

    def wait(self, operation: int, meanwhile: Meanwhile | None) -> Sequence[float]:
        """Block until an operation is through; see `Work`."""
        wake = -1 if meanwhile is None else meanwhile.fileno()
        in_all_G = [0.0] * self._ranks
        while True:
            if meanwhile is not None:
                meanwhile.begin_next()
            end, error, suspects, waited_G = self._mesh.wait(operation, self._patience_ms, wake)
            in_all_G = [before + now for before, now in zip(in_all_G, waited_G, strict=True)]
            if end == _End.DONE:
                self._held.pop(operation, None)
                return in_all_G
            if end not in (_End.INTERRUPTED, _End.WOKEN):  # after a signal Python's handlers have run by now
                raise CarrierError(_describe(_End(end), error, suspects))

    def interrupt(self) -> None:
        """Shut the connections down, which wakes whoever waits for them."""
        self._mesh.interrupt()

    def close(self) -> None:
        """Close the connections, once no thread uses them; a wait under way ends at once."""
        self._mesh.interrupt()
        self._mesh.settle()
        for sock in self._sockets:
            if sock is not None:
                sock.close()
        self._held.clear()


@dataclass(frozen=True, slots=True)
class _Work:
    """An operation of the carrier."""

    carrier: _TcpCarrier
    operation: int

    def wait(self, meanwhile: Meanwhile | None = None) -> Sequence[float]:
        """Block until it is through; begin what there is meanwhile."""
        return self.carrier.wait(self.operation, meanwhile)


def _pace(sockets: list[socket.socket], pace: int) -> None:
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("=Q", max(1, pace // 8 // len(sockets))))


def _bytes_of(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _describe(end: _End, error: int, suspects: list[tuple[int, int, int, int]]) -> str:
    about = "; ".join(_about_one(end, error, *suspect) for suspect in suspects) or os.strerror(error)
    return f"this rank leaves the group; {about}" if end == _End.LEFT else about


def _about_one(end: _End, error: int, peer: int, received: int, expected: int, unsent: int) -> str:
    progress = f"{received} of {expected} bytes had come" if expected else "all had come"
    if unsent:
        progress += f", {unsent} bytes were not taken"
    what = {
        _End.TIMED_OUT: "nothing moved",
        _End.CLOSED: "it closed the connection",
        _End.FAILED: os.strerror(error),
        _End.LEFT: "waited for",
        _End.UNEXPECTED: "it sent another message than expected: the ranks are out of step or of unlike versions",
    }[end]
    return f"rank {peer}: {what}; {progress}"
