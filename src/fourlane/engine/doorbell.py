"""Doorbells: ranks of an expert-parallel group wake each other out of their sleep.

A ring says "work for step n"; it is a hint, the exchange's counts are the truth. A ring never
blocks and never fails: what a peer that is gone does not hear is dropped.
"""

from __future__ import annotations

import secrets
from contextlib import suppress

import zmq

from fourlane.engine.channel import Drops, Listening
from fourlane.engine.control_lane import ConnectionWatch
from fourlane.engine.seal import Kind, Replays, Secret, open_seal, seal
from fourlane.errors import EngineError, ProtocolError
from fourlane.lanes.connections import LaneEnd
from fourlane.spec.traffic import TrafficClass

__all__ = ["Doorbell"]

_MOST_WAITING = 64
_NONCE_BYTES = 16


class Doorbell:
    """A rank's bell, and the ropes to the bells of its peers. For one thread; nothing blocks.

    Args:
        secret: the deployment's key.
        identity: the rank's name, such as "decode-1".
        context: a ZeroMQ context to share; None: one of its own. Never one from before a fork.
        lane: marks its connections; None: by the default.
    """

    def __init__(
        self, secret: Secret, identity: str, *, context: zmq.SyncContext | None = None, lane: LaneEnd | None = None
    ) -> None:
        self.identity = identity
        self.drops = Drops(f"doorbell of rank {identity}")
        self._secret = secret
        self._own_context = context is None
        self._context = context if context is not None else zmq.Context()
        self._bell = self._context.socket(zmq.PULL)
        self._lane = lane or LaneEnd.default(TrafficClass.CONTROL)
        self._watch = ConnectionWatch(self._bell, self._lane)
        self._nonce = secrets.token_hex(_NONCE_BYTES)
        self._session = f"{identity}#{secrets.token_hex(_NONCE_BYTES)}".encode()
        self._counter = 0
        self._heard: dict[bytes, Replays] = {}
        self._ropes: dict[str, tuple[zmq.SyncSocket, ConnectionWatch]] = {}
        self._listening: Listening | None = None

    @property
    def socket(self) -> zmq.SyncSocket:
        """Return the socket, to be registered with a `zmq.Poller` for POLLIN. Do not read from it."""
        return self._bell

    def bind(self, address: str) -> str:
        """Hang up the bell; return the endpoint peers connect to (it ends in "#" and a nonce).

        Args:
            address: "ipc:///path", or "tcp://ip:*" for any port.

        Raises:
            EngineError: the address is taken, malformed or (a socket path) too long.
        """
        self._watch.begin(address)
        self._listening = Listening(self._bell, address, f"doorbell of rank {self.identity}")
        return f"{self._listening.endpoint}#{self._nonce}"

    def connect(self, endpoints: list[str]) -> None:
        """Ring these peers from now on, and only these. Endpoints kept keep their connection.

        Raises:
            EngineError: an endpoint is malformed.
        """
        for endpoint in self._ropes.keys() - set(endpoints):
            rope, watch = self._ropes.pop(endpoint)
            watch.close()
            rope.close(linger=0)
        for endpoint in endpoints:
            if endpoint not in self._ropes:
                self._ropes[endpoint] = self._rope(endpoint)

    def ring(self, step: int) -> None:
        """Wake every peer for a step; a peer that is gone hears nothing, and holds nobody up."""
        payload = step.to_bytes(8, "big")
        for endpoint, (rope, watch) in self._ropes.items():
            watch.drain()
            address = _address(endpoint.rpartition("#")[2], self._session)
            frames = seal(self._secret, address, Kind.RING, counter=self._counter, payload=payload)
            with suppress(zmq.Again):
                rope.send_multipart([self._session, *frames], zmq.DONTWAIT)
        self._counter += 1

    def drain(self) -> int | None:
        """Return the highest step rung for since the last call, None if nobody rang."""
        highest: int | None = None
        self._watch.drain()
        while True:
            try:
                session, *frames = self._bell.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return highest
            try:
                step = self._hear(session, frames)
            except ProtocolError as error:
                self.drops.note(str(error))
            else:
                highest = step if highest is None else max(highest, step)

    def close(self) -> None:
        """Take down the bell and the ropes; what was not heard is lost."""
        self.connect([])
        if self._listening is not None:
            self._listening.remove()
        self._watch.close()
        self._bell.close(linger=0)
        if self._own_context:
            self._context.term()

    def _rope(self, endpoint: str) -> tuple[zmq.SyncSocket, ConnectionWatch]:
        rope = self._context.socket(zmq.PUSH)
        watch = ConnectionWatch(rope, self._lane)
        watch.begin(endpoint)
        # A full queue (a peer that is gone) drops rings; what is queued is enough to wake it.
        rope.setsockopt(zmq.SNDHWM, _MOST_WAITING)
        rope.setsockopt(zmq.LINGER, 0)
        try:
            rope.connect(endpoint.rpartition("#")[0])
        except zmq.ZMQError as error:
            watch.close()
            rope.close(linger=0)
            raise EngineError(f"doorbell of rank {self.identity}: cannot connect to {endpoint!r}: {error}") from error
        return rope, watch

    def _hear(self, session: bytes, frames: list[bytes]) -> int:
        opened = open_seal(self._secret, _address(self._nonce, session), frames)
        if opened.kind is not Kind.RING or len(opened.payload) != 8:
            raise ProtocolError(f"doorbell: unexpected {opened.kind.name} of {len(opened.payload)} bytes")
        self._heard.setdefault(session, Replays()).check(opened.counter)
        return int.from_bytes(opened.payload, "big")


def _address(nonce: str, session: bytes) -> bytes:
    return nonce.encode() + b"<" + session
