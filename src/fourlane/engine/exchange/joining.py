"""Join a group that is measured over any implementation, its sockets paced where there are no links.

Ranks that serve join by `engine.group`, after the deployment.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fourlane.engine.exchange.lane import open_sockets
from fourlane.engine.exchange.meeting import GroupAddress
from fourlane.engine.exchange.payload import AS_IS
from fourlane.engine.exchange.shared_memory import SharedMemoryExchange
from fourlane.engine.exchange.tcp import TcpExchange
from fourlane.engine.exchange.torch_all_to_all import TorchAllToAll
from fourlane.engine.seal import Secret

if TYPE_CHECKING:
    from fourlane.engine.exchange.all_to_all import AllToAllExchange
    from fourlane.engine.exchange.payload import Payload
    from fourlane.engine.measured_ranks import Seats
    from fourlane.policy.placement import Placement

__all__ = ["JOIN_S", "STEP_S", "join", "pace_new_sockets"]

JOIN_S, STEP_S = 60.0, 60.0
_SECRET = Secret(bytes(32))
_CPU = torch.device("cpu")
_SO_MAX_PACING_RATE = 47


def join(
    implementation: str, seats: Seats, rank: int, placement: Placement, *, payload: Payload = AS_IS
) -> AllToAllExchange | SharedMemoryExchange:
    """Join the group of the ranks in these seats; blocks until all have.

    Raises:
        PeerLost: not all came in time.
    """
    address = GroupAddress(
        store=str(Path(seats.folder, implementation)),
        rank=rank,
        ranks=seats.ranks,
        address=seats.addresses[rank],
        join_s=JOIN_S,
        step_s=STEP_S,
    )
    before = open_sockets()
    exchange: AllToAllExchange | SharedMemoryExchange
    if implementation == "tcp":
        exchange = TcpExchange(address, placement, device=_CPU, secret=_SECRET, payload=payload)
    elif implementation == "shared_memory":
        exchange = SharedMemoryExchange(address, placement, device=_CPU, secret=_SECRET, payload=payload)
    else:
        exchange = TorchAllToAll(address, placement, device=_CPU, payload=payload)
    pace_new_sockets(before, seats)
    return exchange


def pace_new_sockets(before: dict[str, int], seats: Seats) -> None:
    """Let the sockets opened since `before` share the rate that a rank in these seats may send at, if there is one.

    Args:
        before: what `open_sockets` returned earlier.
        seats: of the group; a rank has a connection to every other.
    """
    if seats.pace is None:
        return
    for name, descriptor in open_sockets().items():
        if name in before:
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                each = seats.pace // max(1, seats.ranks - 1) // 8
                sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, each)
