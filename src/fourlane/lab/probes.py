"""Plain traffic for experiments: functions that run inside hosts (`Lab.call`) and send or receive over TCP.

Each takes the `Channel` to whoever started it, and marks what it sends with a DSCP. Times are of CLOCK_MONOTONIC,
which all hosts share. Only the standard library and light modules: every probe is a fresh process.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from fourlane.spec.traffic import dscp_to_tos

if TYPE_CHECKING:
    from fourlane.lab.keeper import Channel

__all__ = ["answer", "ask_all", "echo", "ping", "receive", "send", "timers"]

CONNECT_S = 10.0
SILENCE_S = 20.0
"""How long a probe waits for its peer before it gives up."""
_CHUNK = 1 << 16
_BIN_S = 0.005
_GULP = 1 << 16
"""The most to wait for before reading: more would shrink the window that the receiver offers."""


def receive(channel: Channel, *, port: int, dscp: int) -> list[tuple[float, int]]:
    """Take in whatever comes on a port until told to end.

    Returns:
        How many bytes had come in all, every 5 ms in which some came: (time, bytes).
    """
    marks: list[tuple[float, int]] = []
    total, due = 0, 0.0
    buffer = bytearray(1 << 18)
    with _listening(port, dscp) as listener:
        channel.say(listener.getsockname()[1])
        ready = _Poller(channel, listener)
        while (sockets := ready.wait(SILENCE_S)) is not None:
            for sock in sockets:
                if sock is listener:
                    ready.add(peer := _accept(listener, dscp))
                    _wake_at(peer, _GULP)
                    continue
                count = _into(sock, buffer)
                if count == 0:
                    ready.drop(sock)
                elif count is not None:
                    total += count
                    now = time.monotonic()
                    if now >= due:
                        marks.append((now, total))
                        due = now + _BIN_S
        ready.close()
    return [*marks, (time.monotonic(), total)]


def send(channel: Channel, *, to: str, ports: list[int], dscp: int, source_ports: list[int] | None = None) -> int:
    """Send as much as the network takes, one flow a port, until told to end.

    Args:
        source_ports: the flows' own ports; any that are free if None.

    Returns:
        Bytes handed to the kernel.
    """
    total = 0
    data = memoryview(bytes(_CHUNK))
    sockets = [
        _connect(to, port, dscp, source=source)
        for port, source in zip(ports, source_ports or [0] * len(ports), strict=True)
    ]
    channel.say([sock.getsockname()[1] for sock in sockets])
    ready = _Poller(channel, *sockets, writing=True)
    while (writable := ready.wait(SILENCE_S)) is not None:
        for sock in writable:
            with contextlib.suppress(BlockingIOError):
                total += sock.send(data)
    for sock in sockets:  # what is still under way is dropped, not sent on in the background
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ready.close()
    return total


def echo(channel: Channel, *, port: int, dscp: int, size: int) -> int:
    """Answer every `size` bytes with one byte, on one connection after another, until told to end.

    Returns:
        How many messages were answered.
    """
    answered, back = 0, bytes(1)
    buffer = bytearray(size)
    with _listening(port, dscp) as listener:
        channel.say(listener.getsockname()[1])
        ready = _Poller(channel, listener)
        missing: dict[socket.socket, int] = {}
        while (sockets := ready.wait(None)) is not None:
            for sock in sockets:
                if sock is listener:
                    ready.add(peer := _accept(listener, dscp))
                    missing[peer] = size
                    _wake_at(peer, size)
                    continue
                count = _into(sock, memoryview(buffer)[: missing[sock]])
                if count == 0:
                    ready.drop(sock)
                    continue
                missing[sock] -= count or 0
                if missing[sock] == 0:
                    missing[sock] = size
                    answered += 1
                    _send_all(sock, back)
                _wake_at(sock, missing[sock])
        ready.close()
    return answered


def ping(
    channel: Channel, *, to: str, port: int, dscp: int, size: int, count: int, pause_s: float = 0.0
) -> list[float]:
    """Send messages of `size` bytes, each after the answer (one byte) to the one before.

    Args:
        count: how many; 0: until told to end.

    Returns:
        Seconds from the first byte sent to the last byte of the answer, for every message.
    """
    took: list[float] = []
    data, buffer = bytes(size), bytearray(1)
    with _connect(to, port, dscp) as sock:
        sock.settimeout(SILENCE_S)
        channel.say("connected")
        while (count == 0 or len(took) < count) and not channel.stopped(pause_s):
            began = time.monotonic()
            sock.sendall(data)
            _read_exactly(sock, buffer)
            took.append(time.monotonic() - began)
    return took


def answer(channel: Channel, *, port: int, dscp: int, size: int) -> None:
    """Answer every request of one byte with `size` bytes until told to end: a side of an incast."""
    data = bytes(size)
    with _listening(port, dscp) as listener:
        channel.say(listener.getsockname()[1])
        ready = _Poller(channel, listener)
        while (sockets := ready.wait(None)) is not None:
            for sock in sockets:
                if sock is listener:
                    ready.add(_accept(listener, dscp))
                elif _into(sock, bytearray(1)) == 0:
                    ready.drop(sock)
                else:
                    _send_all(sock, data)
        ready.close()


def ask_all(channel: Channel, *, peers: list[tuple[str, int]], dscp: int, size: int, count: int) -> list[float]:
    """Ask all peers at once and wait until every answer is there, `count` times: the middle of an incast.

    Returns:
        Seconds from the first request to the last byte of the last answer, for every round.
    """
    took: list[float] = []
    buffer = bytearray(1 << 18)
    sockets = [_connect(to, port, dscp) for to, port in peers]
    channel.say("connected")
    for sock in sockets:
        sock.settimeout(0)
    while len(took) < count and not channel.stopped():
        began = time.monotonic()
        for sock in sockets:
            sock.send(b"?")
        _collect(sockets, size, buffer)
        took.append(time.monotonic() - began)
    for sock in sockets:
        sock.close()
    return took


def _collect(sockets: list[socket.socket], size: int, buffer: bytearray) -> None:
    """Read `size` bytes from each of the sockets."""
    missing = dict.fromkeys(sockets, size)
    poller = select.poll()
    for sock in sockets:
        _wake_at(sock, size)
        poller.register(sock, select.POLLIN)
    by_descriptor = {sock.fileno(): sock for sock in sockets}
    while missing:
        ready = poller.poll(SILENCE_S * 1e3)
        if not ready:
            raise TimeoutError(f"{len(missing)} of {len(sockets)} answers are not there after {SILENCE_S:.0f} s")
        for sock in (by_descriptor[descriptor] for descriptor, _ in ready):
            got = _into(sock, buffer)
            if got == 0:
                raise ConnectionError("a peer closed its connection")
            missing[sock] -= got or 0
            if missing[sock] == 0:
                del missing[sock]
                poller.unregister(sock)
            else:
                _wake_at(sock, missing[sock])


def timers(channel: Channel, *, every_s: float = 0.002) -> list[float]:
    """Sleep again and again until told to end; return by how much each sleep was too long, in seconds.

    What is late here is late in the kernel's queues too: they send when a timer says so.
    """
    late: list[float] = []
    channel.say("watching")
    while not channel.stopped():
        began = time.monotonic()
        time.sleep(every_s)
        late.append(time.monotonic() - began - every_s)
    return late


class _Poller:
    """Sockets to wait for, together with the caller's wish to end."""

    def __init__(self, channel: Channel, *sockets: socket.socket, writing: bool = False) -> None:
        self._stop = channel.fileno()
        self._mask = select.EPOLLOUT if writing else select.EPOLLIN
        self._sockets: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        self._epoll.register(self._stop, select.EPOLLIN)
        for sock in sockets:
            self.add(sock)

    def add(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._sockets[sock.fileno()] = sock
        self._epoll.register(sock, self._mask)

    def drop(self, sock: socket.socket) -> None:
        del self._sockets[sock.fileno()]
        self._epoll.unregister(sock)
        sock.close()

    def wait(self, most_s: float | None) -> list[socket.socket] | None:
        """Return the sockets that are ready; None when it is time to end."""
        ready = [descriptor for descriptor, _ in self._epoll.poll(most_s)]
        if self._stop in ready:
            return None
        if not ready:
            raise TimeoutError(f"nothing moved for {most_s:.0f} s on {len(self._sockets)} sockets")
        return [self._sockets[descriptor] for descriptor in ready]

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._epoll.close()


def _listening(port: int, dscp: int) -> socket.socket:
    listener = socket.create_server(("", port), backlog=64)
    _mark(listener, dscp)
    return listener


def _accept(listener: socket.socket, dscp: int) -> socket.socket:
    sock, _ = listener.accept()
    _mark(sock, dscp)
    return sock


def _connect(to: str, port: int, dscp: int, *, source: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    _mark(sock, dscp)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if source:
        sock.bind(("", source))
    sock.settimeout(CONNECT_S)
    sock.connect((to, port))
    sock.settimeout(None)
    return sock


def _mark(sock: socket.socket, dscp: int) -> None:
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp_to_tos(dscp))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _wake_at(sock: socket.socket, size: int) -> None:
    """Be woken when `size` bytes are there, or 64 KiB of them, not for every packet: waking is what costs CPU."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(size, _GULP))


def _into(sock: socket.socket, buffer: bytearray | memoryview) -> int | None:
    """Read what there is; 0 at the end of the connection, None if there is nothing."""
    try:
        return sock.recv_into(buffer)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return 0


def _send_all(sock: socket.socket, data: bytes) -> None:
    sock.settimeout(SILENCE_S)
    with contextlib.suppress(ConnectionError):
        sock.sendall(data)
    sock.settimeout(0)


def _read_exactly(sock: socket.socket, buffer: bytearray) -> None:
    view, got = memoryview(buffer), 0
    while got < len(view):
        count = sock.recv_into(view[got:])
        if count == 0:
            raise ConnectionError("the peer closed its connection")
        got += count
