"""Put ZeroMQ sockets on the control lane: mark what they send over TCP, and tell of their connections.

ZeroMQ sets the DSCP of its connections itself but no queueing priority, and opens them in a thread
of its own. Its monitor names each one's descriptor; the priority is set through that.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from fourlane.spec.traffic import dscp_to_tos

if TYPE_CHECKING:
    from fourlane.lanes.connections import LaneEnd

__all__ = ["ConnectionWatch"]

_HEARTBEAT_MS = 2_000
_HEARTBEAT_TIMEOUT_MS = 10_000


class ConnectionWatch:
    """Watches the TCP connections of one ZeroMQ socket. For the socket's thread; nothing blocks.

    Construct before the socket binds or connects: this also sets its DSCP and its heartbeats, by
    which peers that are gone are noticed.
    """

    def __init__(self, sock: zmq.Socket[Any], lane: LaneEnd) -> None:
        self._lane = lane
        self._socket = sock
        self._events: zmq.SyncSocket | None = None
        sock.setsockopt(zmq.TOS, dscp_to_tos(lane.wanted.dscp))
        sock.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)

    def begin(self, endpoint: str) -> None:
        """Watch from now on, if the endpoint about to be bound or connected is one of TCP."""
        if self._events is not None or not endpoint.startswith("tcp://"):
            return
        address = f"inproc://connections-{secrets.token_hex(8)}"
        self._socket.monitor(address, zmq.EVENT_CONNECTED | zmq.EVENT_ACCEPTED)
        context: zmq.SyncContext = zmq.Context.shadow(self._socket.context.underlying)
        self._events = context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.LINGER, 0)
        self._events.connect(address)

    def drain(self) -> None:
        """Mark, log and count the connections that came up since the last call."""
        if self._events is None:
            return
        while True:
            try:
                event = parse_monitor_message(self._events.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                return
            self._take(event["event"], event["value"], event["endpoint"].decode())

    def close(self) -> None:
        """Stop watching; before the socket itself is closed."""
        if self._events is not None:
            self.drain()
            self._socket.disable_monitor()
            self._events.close(linger=0)
            self._events = None

    def _take(self, event: int, descriptor: int, endpoint: str) -> None:
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
            # The connection may be gone by now and its number another socket's: look before marking.
            ours = sock.getpeername() if event == zmq.EVENT_CONNECTED else sock.getsockname()
            if sock.family in (socket.AF_INET, socket.AF_INET6) and str(ours[1]) == endpoint.rpartition(":")[2]:
                self._lane.opened(sock)
