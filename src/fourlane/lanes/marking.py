"""Mark sockets with the traffic class they carry.

Each end marks only what it sends, so both ends of a connection must mark their socket.
Not for finding the sockets of libraries that own theirs (`fourlane.engine.exchange.lane`).
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from fourlane.spec.traffic import TrafficClass, dscp_to_tos, tos_to_dscp

if TYPE_CHECKING:
    from collections.abc import Iterator

_ECT0 = 2
_MARKED_BY_QUEUE = frozenset({TrafficClass.COLLECTIVE, TrafficClass.KV, TrafficClass.BULK})
"""Classes whose queue marks ECN in the default plan (a test holds the two together)."""

__all__ = ["LaneMark", "Mark", "default_marks", "mark_socket"]


class LaneMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What sockets of a class are to carry: plain numbers, which travel in messages between hosts.

    `rdma_tos` is the ToS byte for RDMA libraries, which set its ECN bits as well; TCP sets them itself.
    """

    traffic_class: TrafficClass
    dscp: int
    priority: int
    rdma_tos: int

    @classmethod
    def default(cls, traffic_class: TrafficClass) -> LaneMark:
        """Return what a class carries where no lane plan says otherwise: ECN-capable where its queue would mark."""
        capable = traffic_class in _MARKED_BY_QUEUE
        tos = dscp_to_tos(traffic_class.dscp, ecn=_ECT0 if capable else 0)
        return cls(traffic_class, traffic_class.dscp, traffic_class.priority, tos)


def default_marks() -> dict[TrafficClass, LaneMark]:
    """Return what every class carries where no lane plan says otherwise."""
    return {kind: LaneMark.default(kind) for kind in TrafficClass}


@dataclass(frozen=True, slots=True)
class Mark:
    """What a socket carries after marking, read back from the kernel.

    `dscp` and `priority` are None where the socket has no such thing or the kernel refused;
    `faults` says why. A mark of a UNIX socket is empty: its bytes never see a network.
    """

    wanted: LaneMark
    dscp: int | None
    priority: int | None
    faults: tuple[str, ...] = ()

    @property
    def traffic_class(self) -> TrafficClass:
        """Return the class it stands for."""
        return self.wanted.traffic_class

    @property
    def complete(self) -> bool:
        """Tell whether the kernel holds exactly the class's DSCP and priority."""
        return self.dscp == self.wanted.dscp and self.priority == self.wanted.priority

    def __str__(self) -> str:
        """Describe the mark in a line for logs."""
        text = f"{self.traffic_class.value}: DSCP {self.dscp}, priority {self.priority}"
        return f"{text} ({'; '.join(self.faults)})" if self.faults else text


def mark_socket(sock: socket.socket, wanted: LaneMark | TrafficClass) -> Mark:
    """Set a socket's DSCP and queueing priority, and return what the kernel then holds.

    A bare class stands for its default mark.

    Never raises for what the kernel refuses: the mark says what is set and what is not, and the
    caller decides whether that will do. Mark before `connect` or `listen`, so that the handshake
    is marked too; sockets from `accept` are marked again.
    """
    if isinstance(wanted, TrafficClass):
        wanted = LaneMark.default(wanted)
    if sock.family == socket.AF_UNIX:
        return Mark(wanted, None, None, ("a UNIX socket carries no mark",))
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return Mark(wanted, None, None, (f"address family {sock.family} carries no mark",))
    faults: list[str] = []
    dscp = _set_dscp(sock, wanted.dscp, faults)
    # After the DSCP: on Linux setting IP_TOS also derives a priority, which this one replaces.
    priority = _set_priority(sock, wanted.priority, faults)
    return Mark(wanted, dscp, priority, tuple(faults))


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
