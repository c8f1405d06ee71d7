"""Mark sockets with the traffic class they carry.

Each end marks only what it sends, so both ends of a connection must mark their socket.
Not for libraries that own their sockets (gloo, NCCL): those are marked by packet filter or NIC.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.spec.traffic import TrafficClass, dscp_to_tos, tos_to_dscp

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Mark", "mark_socket"]


@dataclass(frozen=True, slots=True)
class Mark:
    """What a socket carries after marking, read back from the kernel.

    `dscp` and `priority` are None where the socket has no such thing or the kernel refused;
    `faults` says why. A mark of a UNIX socket is empty: its bytes never see a network.
    """

    traffic_class: TrafficClass
    dscp: int | None
    priority: int | None
    faults: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Tell whether the kernel holds exactly the class's DSCP and priority."""
        return self.dscp == self.traffic_class.dscp and self.priority == self.traffic_class.priority

    def __str__(self) -> str:
        """Describe the mark in a line for logs."""
        text = f"{self.traffic_class.value}: DSCP {self.dscp}, priority {self.priority}"
        return f"{text} ({'; '.join(self.faults)})" if self.faults else text


def mark_socket(sock: socket.socket, traffic_class: TrafficClass) -> Mark:
    """Set a socket's DSCP and queueing priority, and return what the kernel then holds.

    Never raises for what the kernel refuses: the mark says what is set and what is not, and the
    caller decides whether that will do. Mark before `connect` or `listen`, so that the handshake
    is marked too; sockets from `accept` are marked again.
    """
    if sock.family == socket.AF_UNIX:
        return Mark(traffic_class, None, None, ("a UNIX socket carries no mark",))
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return Mark(traffic_class, None, None, (f"address family {sock.family} carries no mark",))
    faults: list[str] = []
    dscp = _set_dscp(sock, traffic_class.dscp, faults)
    # After the DSCP: on Linux setting IP_TOS also derives a priority, which this one replaces.
    priority = _set_priority(sock, traffic_class.priority, faults)
    return Mark(traffic_class, dscp, priority, tuple(faults))


def _set_dscp(sock: socket.socket, dscp: int, faults: list[str]) -> int | None:
    tos = dscp_to_tos(dscp)
    if sock.family == socket.AF_INET6:
        with _noting(faults, "IP_TOS for IPv4-mapped peers"), contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        with _noting(faults, "IPV6_TCLASS"):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
            return tos_to_dscp(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS))
        return None
    with _noting(faults, "IP_TOS"):
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        return tos_to_dscp(sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS))
    return None


def _set_priority(sock: socket.socket, priority: int, faults: list[str]) -> int | None:
    option = getattr(socket, "SO_PRIORITY", None)
    if option is None:
        faults.append("SO_PRIORITY: this system has none")
        return None
    with _noting(faults, "SO_PRIORITY"):
        sock.setsockopt(socket.SOL_SOCKET, option, priority)
    with _noting(faults, "SO_PRIORITY"):
        return sock.getsockopt(socket.SOL_SOCKET, option)
    return None


@contextlib.contextmanager
def _noting(faults: list[str], what: str) -> Iterator[None]:
    """Turn a refusal of the kernel into a line of `faults`."""
    try:
        yield
    except OSError as error:
        faults.append(f"{what}: {error.strerror}")
