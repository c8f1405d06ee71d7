"""The control lane: ranks and gateway talk over ZeroMQ, every frame sealed with the secret.

A rank holds a `RankChannel` (DEALER), the gateway a `Hub` (ROUTER). No torch here. How it goes:

1. The rank draws a session, connects as "identity#session" and knocks.
2. The hub answers with a welcome that carries a number it drew when it began; the rank echoes it
   in all it sends. So frames recorded from another session or another hub are worth nothing.
3. A session counts from its `Hello` on. The Hello of a new session of the same identity replaces
   the old one: what the old one still sends is dropped, and as ZeroMQ knows the two by different
   names, nothing queued for the dead process can reach the new one.
4. A rank that meets a new hub (the gateway was restarted) says its latest Hello again.

`Doorbell`, by which ranks wake each other, is in `doorbell`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio

from fourlane.engine.control_lane import ConnectionWatch
from fourlane.engine.messages import Hello, decode_from_rank, decode_to_rank, encode
from fourlane.engine.seal import NO_ECHO, Kind, Opened, Replays, Secret, open_seal, seal
from fourlane.errors import EngineError, ProtocolError, RankDied
from fourlane.lanes.connections import LaneEnd
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.engine.messages import FromRank, ToRank

__all__ = ["Drops", "Hub", "Listening", "RankChannel", "Secret"]

_log = logging.getLogger(__name__)
_SESSION_BYTES = 16
_MOST_WAITING = 100_000
_MOST_FRAME_BYTES = 64 << 20


class RankChannel:
    """A rank's end of the control lane. For one thread; nothing in it blocks but `poll` and `close`.

    Args:
        secret: the deployment's key.
        identity: the rank's name, such as "prefill-0".
        context: a ZeroMQ context to share; None: one of its own. Never one from before a fork.
        lane: marks its connections; None: by the default.
    """

    def __init__(
        self, secret: Secret, identity: str, *, context: zmq.SyncContext | None = None, lane: LaneEnd | None = None
    ) -> None:
        self.identity = identity
        self.drops = Drops(f"rank {identity}")
        self.hub_changes = 0
        """How often a new hub took the place of the one before; its sequences are not known there."""
        self._secret = secret
        self._address = _address(identity, secrets.token_bytes(_SESSION_BYTES))
        self._own_context = context is None
        self._context = context if context is not None else zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.ROUTING_ID, self._address)
        self._watch = ConnectionWatch(self._socket, lane or LaneEnd.default(TrafficClass.CONTROL))
        self._hub = NO_ECHO
        self._past_hubs: set[bytes] = set()
        self._counter = 0
        self._replays = Replays()
        self._waiting: deque[bytes] = deque()
        self._hello: bytes | None = None

    @property
    def socket(self) -> zmq.SyncSocket:
        """Return the socket, to be registered with a `zmq.Poller` for POLLIN. Do not read from it."""
        return self._socket

    def connect(self, endpoint: str) -> None:
        """Connect to the hub at "ipc:///path" or "tcp://host:port", and knock. Returns at once.

        Raises:
            EngineError: the endpoint is malformed.
        """
        self._watch.begin(endpoint)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise EngineError(f"control lane: rank {self.identity} cannot connect to {endpoint!r}: {error}") from error
        self._transmit(Kind.KNOCK, b"")

    def send(self, message: FromRank) -> None:
        """Send a message; before the hub has welcomed us it is kept, and goes in a later `drain`.

        Raises:
            EngineError: the gateway has not read for so long that the queue is full.
        """
        payload = encode(message)
        if isinstance(message, Hello):
            self._hello = payload
        if self._hub == NO_ECHO:
            self._keep(payload)
        else:
            self._transmit(Kind.UP, payload)

    def drain(self) -> list[ToRank]:
        """Return all messages there are, without blocking; bad frames are counted and left out."""
        messages: list[ToRank] = []
        self._watch.drain()
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return messages
            try:
                opened = open_seal(self._secret, self._address, frames)
                if opened.kind is Kind.WELCOME:
                    self._welcome(opened)
                else:
                    messages.append(self._message(opened))
            except ProtocolError as error:
                self.drops.note(str(error))

    def poll(self, timeout_s: float) -> bool:
        """Wait until there may be something to drain; False after the timeout."""
        return bool(self._socket.poll(round(timeout_s * 1000)))

    def close(self, *, linger_s: float = 1.0) -> None:
        """Close, waiting at most `linger_s` for what was sent to leave this process."""
        self._watch.close()
        self._socket.close(linger=round(linger_s * 1000))
        if self._own_context:
            self._context.term()

    def _welcome(self, opened: Opened) -> None:
        if opened.echo == self._hub:
            return
        if opened.echo in self._past_hubs:
            raise ProtocolError("welcome of a hub that was replaced before")
        first = self._hub == NO_ECHO
        self._past_hubs.add(self._hub)
        self._hub = opened.echo
        self._replays = Replays()
        if not first:
            self.hub_changes += 1
            if self._hello is not None:
                self._transmit(Kind.UP, self._hello)
        while self._waiting:
            self._transmit(Kind.UP, self._waiting.popleft())

    def _message(self, opened: Opened) -> ToRank:
        if opened.kind is not Kind.DOWN:
            raise ProtocolError(f"unexpected {opened.kind.name} from the hub")
        if opened.echo != self._hub:
            raise ProtocolError("message of another hub")
        self._replays.check(opened.counter)
        return decode_to_rank(opened.payload)

    def _keep(self, payload: bytes) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            raise EngineError(f"control lane: rank {self.identity} has {_MOST_WAITING} messages and no hub for them")
        self._waiting.append(payload)

    def _transmit(self, kind: Kind, payload: bytes) -> None:
        frames = seal(self._secret, self._address, kind, counter=self._counter, echo=self._hub, payload=payload)
        self._counter += 1
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            raise EngineError(
                f"control lane: the gateway does not read what rank {self.identity} sends (queue full)"
            ) from None


class _Session:
    """What the hub knows of one living session."""

    __slots__ = ("address", "counter", "replays")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.counter = 0
        self.replays = Replays()


class Hub:
    """The gateway's end of the control lane. For one asyncio loop.

    Args:
        secret: the deployment's key.
        context: a ZeroMQ context to share; None: one of its own.
        lane: marks its connections; None: by the default.
    """

    def __init__(
        self, secret: Secret, *, context: zmq.asyncio.Context | None = None, lane: LaneEnd | None = None
    ) -> None:
        self.drops = Drops("hub")
        self._secret = secret
        self._own_context = context is None
        self._context = context if context is not None else zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._watch = ConnectionWatch(self._socket, lane or LaneEnd.default(TrafficClass.CONTROL))
        self._me = secrets.token_bytes(16)
        self._sessions: dict[str, _Session] = {}
        self._retired: set[bytes] = set()
        self._listening: Listening | None = None

    def bind(self, endpoint: str) -> str:
        """Listen at "ipc:///path" or "tcp://host:port" (port "*": any); return where ranks connect.

        Raises:
            EngineError: the address is taken, malformed or (a socket path) too long.
        """
        self._watch.begin(endpoint)
        self._listening = Listening(self._socket, endpoint, "control lane")
        return self._listening.endpoint

    async def recv(self) -> tuple[str, FromRank]:
        """Return the next message and the identity of its rank.

        Never ends in an error for what somebody sent: what is forged, replayed, malformed or from
        a session that was replaced is counted in `drops`, logged, and left out.
        """
        while True:
            address, *frames = await self._socket.recv_multipart()
            self._watch.drain()
            try:
                received = self._accept(address, frames)
            except ProtocolError as error:
                self.drops.note(str(error))
            else:
                if received is not None:
                    return received

    def send(self, identity: str, message: ToRank) -> None:
        """Queue a message to the living session of a rank; never blocks.

        Raises:
            RankDied: the rank has no living session, or has not read for so long that its queue
                is full.
        """
        session = self._sessions.get(identity)
        if session is None:
            raise RankDied(f"rank {identity} is not connected (connected: {', '.join(self.identities()) or 'none'})")
        frames = seal(
            self._secret, session.address, Kind.DOWN, counter=session.counter, echo=self._me, payload=encode(message)
        )
        session.counter += 1
        try:
            self._transmit(session.address, frames)
        except zmq.ZMQError as error:
            raise RankDied(f"rank {identity} cannot be reached: {error}") from error

    def identities(self) -> list[str]:
        """Return the ranks that have a living session, sorted."""
        return sorted(self._sessions)

    def retire(self, identity: str) -> None:
        """Forget a rank known to be dead: what it sent but we have not read yet is dropped."""
        session = self._sessions.pop(identity, None)
        if session is not None:
            self._retired.add(session.address)

    def close(self, *, linger_s: float = 1.0) -> None:
        """Close, waiting at most `linger_s` for what was sent to leave this process."""
        if self._listening is not None:
            self._listening.remove()
        self._watch.close()
        self._socket.close(linger=round(linger_s * 1000))
        if self._own_context:
            self._context.term()

    def _accept(self, address: bytes, frames: list[bytes]) -> tuple[str, FromRank] | None:
        identity = _identity(address)
        opened = open_seal(self._secret, address, frames)
        if opened.kind is Kind.KNOCK or (opened.kind is Kind.UP and opened.echo != self._me):
            self._welcome(address)
            if opened.kind is Kind.UP:
                raise ProtocolError(f"message of rank {identity} for another hub (the gateway was restarted)")
            return None
        if opened.kind is not Kind.UP:
            raise ProtocolError(f"unexpected {opened.kind.name} from rank {identity}")
        session = self._sessions.get(identity)
        known = session is not None and session.address == address
        if not known and address in self._retired:
            raise ProtocolError(f"message of a session of rank {identity} that is over")
        message = decode_from_rank(opened.payload)
        if session is None or not known:
            session = self._begin(identity, address, message)
        session.replays.check(opened.counter)
        return identity, message

    def _begin(self, identity: str, address: bytes, message: FromRank) -> _Session:
        if not isinstance(message, Hello):
            raise ProtocolError(f"rank {identity} began a session with {type(message).__name__}, not with Hello")
        self.retire(identity)
        self._sessions[identity] = _Session(address)
        return self._sessions[identity]

    def _welcome(self, address: bytes) -> None:
        try:
            self._transmit(address, seal(self._secret, address, Kind.WELCOME, counter=0, echo=self._me))
        except zmq.ZMQError as error:
            _log.warning("control lane: cannot welcome rank %s: %s", _identity(address), error)

    def _transmit(self, address: bytes, frames: list[bytes]) -> None:
        # With DONTWAIT pyzmq sends at once and returns a future that is done, or failed.
        future = self._socket.send_multipart([address, *frames], flags=zmq.DONTWAIT)
        assert isinstance(future, asyncio.Future)
        assert future.done()
        future.result()


class Listening:
    """A ZeroMQ socket bound to an address, and the file that may stand for it.

    libzmq leaves the file of an "ipc://" address behind; `remove` takes it away, unless somebody
    else has bound the same path since.
    """

    def __init__(self, sock: zmq.Socket[Any], endpoint: str, who: str) -> None:
        try:
            sock.bind(endpoint)
        except zmq.ZMQError as error:
            raise EngineError(f"{who}: cannot listen at {endpoint!r}: {error}") from error
        self.endpoint = sock.getsockopt_string(zmq.LAST_ENDPOINT)
        self._file: Path | None = None
        if endpoint.startswith("ipc:///"):
            self._file = Path(endpoint.removeprefix("ipc://"))
            self._file.chmod(0o600)
            self._inode = self._file.stat().st_ino

    def remove(self) -> None:
        """Remove the socket's file, if it has one and it is still ours."""
        if self._file is not None:
            with suppress(FileNotFoundError):
                if self._file.stat().st_ino == self._inode:
                    self._file.unlink()


class Drops:
    """Count what was dropped, by reason, and warn at the 1st, 2nd, 4th, 8th ... of each."""

    def __init__(self, owner: str) -> None:
        self.counts: Counter[str] = Counter()
        self._owner = owner

    @property
    def total(self) -> int:
        """Return how many frames were dropped."""
        return self.counts.total()

    def note(self, detail: str) -> None:
        """Count a dropped frame; the reason is the detail up to its first colon or parenthesis."""
        reason = detail.partition(" (")[0]
        self.counts[reason] += 1
        count = self.counts[reason]
        if count & (count - 1) == 0:
            _log.warning("%s: dropped a frame (%d of this kind): %s", self._owner, count, detail)


def _address(identity: str, session: bytes) -> bytes:
    address = identity.encode() + b"#" + session.hex().encode()
    if not identity or "#" in identity or len(address) > 255:
        raise ValueError(f'identity: expected a short name without "#", got {identity!r}')
    return address


def _identity(address: bytes) -> str:
    identity, mark, _ = address.partition(b"#")
    try:
        text = identity.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or not mark:
        raise ProtocolError("peer without a rank's address")
    return text
