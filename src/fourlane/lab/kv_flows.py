"""KV of other prefill nodes: objects sent from host to host, each as fast as the network lets it.

Objects come at random times (Poisson) at a given mean rate, whatever the network does, as prefill nodes
finish prompts; one that finds its sender busy waits. Every object travels on a connection of its own, so
that a run draws the switches' hash anew hundreds of times. Run inside hosts by `Namespaces.call`.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import LabError
from fourlane.lanes.marking import mark_socket
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fourlane.lab.keeper import Channel
    from fourlane.units import Rate

__all__ = ["KvTally", "receive_objects", "send_objects"]

OBJECT_TIMEOUT_S = 20.0
_HEAD = struct.Struct("!Q")
_DONE = b"k"
_BLOCK = 1 << 16


class KvTally(msgspec.Struct, frozen=True, kw_only=True):
    """What a sender did.

    Units:
        seconds: of each object, from opening its connection to the receiver's word that all is there;
        offered_bytes: of all objects that came up, sent or not.
    """

    object_bytes: int
    seconds: list[float]
    offered_bytes: int

    @property
    def sent_bytes(self) -> int:
        """Return the bytes of the objects that arrived."""
        return self.object_bytes * len(self.seconds)

    def shares(self, line: Rate) -> list[float]:
        """Return each object's bandwidth over a line's rate."""
        return [self.object_bytes * 8 / seconds / line for seconds in self.seconds]


def receive_objects(channel: Channel, *, address: str) -> int:
    """Take objects at an address until told to stop; say the port first, return how many came.

    Args:
        channel: to who started this.
        address: to listen at.
    """
    with ExitStack() as stack:
        listener = socket.socket()
        stack.callback(listener.close)
        mark_socket(listener, TrafficClass.KV)
        listener.bind((address, 0))
        listener.listen(64)
        inlets: dict[socket.socket, _Inlet] = {}
        stack.callback(lambda: [sock.close() for sock in inlets])
        channel.say(listener.getsockname()[1])
        objects = 0
        while True:
            readable = _readable(channel, listener, *inlets)
            if channel in readable:
                return objects
            for sock in [sock for sock in inlets if sock in readable and inlets[sock].read()]:
                objects += inlets.pop(sock).whole
                sock.close()
            if listener in readable:
                accepted, _ = listener.accept()
                mark_socket(accepted, TrafficClass.KV)
                inlets[accepted] = _Inlet(accepted)


def _readable(*sources: Channel | socket.socket) -> set[Channel | socket.socket]:
    """Wait until something can be read, and return from where."""
    nothing: list[socket.socket] = []
    return set(select.select(sources, nothing, nothing)[0])


class _Inlet:
    """One object on its way in."""

    def __init__(self, sock: socket.socket) -> None:
        self.whole = False
        self._sock = sock
        self._head = b""
        self._missing = -1
        self._block = bytearray(4 * _BLOCK)

    def read(self) -> bool:
        """Take what is there; tell whether the object is whole or its sender gone."""
        try:
            if self._missing < 0:
                self._head += self._sock.recv(_HEAD.size - len(self._head))
                if len(self._head) < _HEAD.size:
                    return not self._head
                self._missing = _HEAD.unpack(self._head)[0]
                return False
            got = self._sock.recv_into(self._block)
            self._missing -= got
            # Wake for few large pieces: waking for every packet would take the processor from what is measured.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, max(1, min(self._missing, _BLOCK)))
            if self._missing == 0:
                self._sock.send(_DONE)
                self.whole = True
        except OSError:
            return True
        return self.whole or got == 0


def send_objects(
    channel: Channel, *, source: str, targets: Sequence[tuple[str, int]], size: int, per_s: float, seed: int
) -> dict[str, object]:
    """Send objects until told to stop; return a `KvTally` as plain data.

    Args:
        channel: to who started this; hears "going" once the first object is due.
        source: local address to send from.
        targets: addresses and ports; each object draws one.
        size: bytes of an object.
        per_s: objects a second, on average.
        seed: of times and targets.

    Raises:
        LabError: an object made no progress for `OBJECT_TIMEOUT_S`; names its target.
    """
    draw = random.Random(seed)  # noqa: S311 - a load, not a secret
    seconds: list[float] = []
    offered = 0
    due = time.monotonic() + draw.expovariate(per_s)
    channel.say("going")
    while not channel.stopped(due - time.monotonic()):
        target = targets[draw.randrange(len(targets))]
        taken = _send_one(source, tuple(target), size, channel.stopped)
        offered += size
        due += draw.expovariate(per_s)
        if taken is None:
            break
        seconds.append(taken)
    while due < time.monotonic():  # those that came up while the last one was under way
        offered += size
        due += draw.expovariate(per_s)
    return msgspec.to_builtins(KvTally(object_bytes=size, seconds=seconds, offered_bytes=offered))


def _send_one(source: str, target: tuple[str, int], size: int, stopped: Callable[[], bool]) -> float | None:
    """Send one object; return the seconds it took, None if told to stop meanwhile."""
    block = memoryview(bytes(_BLOCK))
    began = time.monotonic()
    with socket.socket() as sock:
        sock.settimeout(OBJECT_TIMEOUT_S)
        mark_socket(sock, TrafficClass.KV)
        sock.bind((source, 0))
        try:
            sock.connect(target)
            sock.sendall(_HEAD.pack(size))
            left = size
            while left:
                left -= sock.send(block[: min(left, _BLOCK)])
                if stopped():
                    return None
            return time.monotonic() - began if sock.recv(1) == _DONE else _lost(source, target, size, "it hung up")
        except OSError as error:
            return _lost(source, target, size, str(error))


def _lost(source: str, target: tuple[str, int], size: int, why: str) -> float:
    host, port = target
    raise LabError(f"KV of {size} bytes from {source} to {host}:{port}: {why}; is its receiver running?")
