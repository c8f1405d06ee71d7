"""Put a communication library's sockets on the expert lane.

gloo has no option for a traffic class and chooses its ports itself. Its connections are made
while a group forms, so: note the sockets there are, form the group, mark the new ones.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.lanes.marking import mark_socket

if TYPE_CHECKING:
    from fourlane.lanes.marking import Mark
    from fourlane.spec.traffic import TrafficClass

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


def mark_new_sockets(before: dict[str, int], traffic_class: TrafficClass) -> list[Mark]:
    """Mark IP sockets opened since `before` was taken, but not those that carry a mark already.

    Args:
        before: what `open_sockets` returned earlier.
        traffic_class: the lane.

    Returns:
        What the kernel holds for each socket marked.
    """
    marks = []
    for name, descriptor in open_sockets().items():
        if name in before:
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6) and not _marked(sock):
                marks.append(mark_socket(sock, traffic_class))
    return marks


def _marked(sock: socket.socket) -> bool:
    if sock.family == socket.AF_INET6:
        return sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) > 0
    return sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) > 0
