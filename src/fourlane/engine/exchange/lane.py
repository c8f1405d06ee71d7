"""Put a communication library's sockets on a lane.

gloo has no option for a traffic class and chooses its ports itself. Its connections are made
while a group forms, so: note the sockets there are, form the group, mark the new ones.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.spec.traffic import dscp_to_tos

if TYPE_CHECKING:
    from fourlane.lanes.connections import LaneEnd
    from fourlane.lanes.marking import Mark

__all__ = ["mark_new_sockets", "open_sockets"]


def open_sockets() -> dict[str, int]:
    """Return this process's sockets: kernel name ("socket:[inode]") to file descriptor."""
    sockets: dict[str, int] = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            name = os.readlink(entry)  # noqa: PTH115 - Path.readlink would resolve it as a path
            if name.startswith("socket:"):
                sockets[name] = int(entry.name)
    return sockets


def mark_new_sockets(before: dict[str, int], lane: LaneEnd) -> list[Mark]:
    """Mark IP sockets opened since `before` was taken, but not those that carry another lane's mark.

    Args:
        before: what `open_sockets` returned earlier.
        lane: the lane; told of connections, while sockets that listen are only marked, so that those
            they accept begin with the mark.

    Returns:
        What the kernel holds for each connection.
    """
    marks = []
    for name, descriptor in open_sockets().items():
        if name in before:
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or not _free_for(sock, lane):
                continue
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                lane.mark(sock)
            else:
                marks.append(lane.opened(sock))
    return marks


def _free_for(sock: socket.socket, lane: LaneEnd) -> bool:
    """Tell whether a socket carries no mark, or this lane's already (from the socket that accepted it)."""
    if sock.family == socket.AF_INET6:
        tos = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
    else:
        tos = sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS)
    return tos <= 0 or tos == dscp_to_tos(lane.wanted.dscp)
