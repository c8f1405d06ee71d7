"""The connections a process opens on its lanes: each marked, logged in one line, and counted.

Not for which mark a class has (`fourlane.lanes.live`), nor for bytes (those who send them count them).
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from fourlane.lanes.interfaces import interface_between
from fourlane.lanes.marking import default_marks, mark_socket
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.lanes.marking import LaneMark, Mark

__all__ = ["LaneBook", "LaneEnd", "LikeConnections"]

_log = logging.getLogger(__name__)


class LikeConnections(msgspec.Struct, frozen=True):
    """How many connections of a class a process opened on an interface with the same mark.

    `dscp` and `priority` are what the kernel held; `complete`: that is what the lane plan asks for.
    """

    traffic_class: TrafficClass
    interface: str
    dscp: int | None
    priority: int | None
    complete: bool
    connections: int


class LaneBook:
    """All lanes of one process: what their sockets are to carry, and what was opened. For any thread.

    Args:
        marks: by class; None: the defaults.
        owner: whose connections these are, for the log.
    """

    def __init__(self, marks: Mapping[TrafficClass, LaneMark] | None = None, *, owner: str = "") -> None:
        self.owner = owner
        self.marks = dict(marks if marks is not None else default_marks())
        self._opened: Counter[tuple[TrafficClass, str, int | None, int | None, bool]] = Counter()
        self._gate = threading.Lock()

    def end(self, traffic_class: TrafficClass) -> LaneEnd:
        """Return this process's end of a lane."""
        return LaneEnd(self, self.marks[traffic_class])

    def count(self, interface: str, mark: Mark) -> None:
        """Count a connection."""
        with self._gate:
            self._opened[mark.traffic_class, interface, mark.dscp, mark.priority, mark.complete] += 1

    def opened(self) -> list[LikeConnections]:
        """Return what was opened so far, closed or not, in a fixed order."""
        with self._gate:
            found = [LikeConnections(*key, count) for key, count in self._opened.items()]
        order = list(TrafficClass)
        return sorted(found, key=lambda like: (order.index(like.traffic_class), like.interface, -like.connections))


class LaneEnd:
    """A process's end of one lane: marks its sockets, and tells of its connections."""

    def __init__(self, book: LaneBook, wanted: LaneMark) -> None:
        self.wanted = wanted
        self._book = book

    @classmethod
    def default(cls, traffic_class: TrafficClass) -> LaneEnd:
        """Return an end with the default mark, in a book of its own."""
        return LaneBook().end(traffic_class)

    def mark(self, sock: socket.socket) -> Mark:
        """Mark a socket that is not connected yet, so that its handshake carries the mark too."""
        return mark_socket(sock, self.wanted)

    def opened(self, sock: socket.socket) -> Mark:
        """Mark a connected socket, log the connection in one line, count it."""
        mark = mark_socket(sock, self.wanted)
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return mark
        local, peer = _end(sock.getsockname), _end(sock.getpeername)
        interface = interface_between(local[0], peer[0])
        self._book.count(interface, mark)
        level = logging.INFO if mark.complete else logging.WARNING
        _log.log(
            level,
            "%slane %s: %s -> %s on %s, DSCP %s, priority %s%s",
            f"{self._book.owner}: " if self._book.owner else "",
            self.wanted.traffic_class.value,
            _text(local),
            _text(peer),
            interface,
            mark.dscp,
            mark.priority,
            "" if mark.complete else f"; marked incomplete: {_shortfall(mark)}",
        )
        return mark


def _shortfall(mark: Mark) -> str:
    wanted = f"DSCP {mark.wanted.dscp}, priority {mark.wanted.priority} wanted"
    return "; ".join([wanted, *mark.faults])


def _end(ask: object) -> tuple[str, int]:
    try:
        host, port = ask()[:2]  # type: ignore[operator]
    except OSError:
        return ("", 0)
    return (host.removeprefix("::ffff:").partition("%")[0], port)


def _text(end: tuple[str, int]) -> str:
    host, port = end
    if not host:
        return "somebody who is gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
