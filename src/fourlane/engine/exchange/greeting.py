"""How two ranks of a group prove to each other who they are, on a connection just made.

    listening rank -> connecting rank   challenge   nonce
    connecting rank -> listening rank   opening     its rank, and a nonce; sealed over the challenge
    listening rank -> connecting rank   answer      sealed over the opening's nonce

Both seals also cover the session that rank 0 drew for this forming of the group, so that nobody
of an earlier generation, or with another deployment's secret, gets in. Nothing is pickled.
"""

from __future__ import annotations

import secrets
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourlane.errors import ProtocolError

if TYPE_CHECKING:
    import socket

    from fourlane.engine.seal import Secret

__all__ = ["NONCE_BYTES", "Party", "admit", "introduce"]

VERSION = 1
NONCE_BYTES = 16
_MAGIC = b"FLXG"
_CHALLENGE = struct.Struct(f"!4sH{NONCE_BYTES}s")
_OPENING = struct.Struct(f"!4sHH{NONCE_BYTES}s16s")
_ANSWER = struct.Struct("!4sH16s")


@dataclass(frozen=True, slots=True)
class Party:
    """A rank in one forming of its group."""

    rank: int
    ranks: int
    session: bytes
    secret: Secret

    def seal(self, what: bytes, connecting: int, listening: int, *nonces: bytes) -> bytes:
        """Return the MAC of a message between two ranks of the group."""
        return self.secret.mac(what, self.session, struct.pack("!HHH", self.ranks, connecting, listening), *nonces)

    def proves(self, mac: bytes, what: bytes, connecting: int, listening: int, *nonces: bytes) -> bool:
        """Tell whether a MAC is that of a message between two ranks of the group."""
        members = struct.pack("!HHH", self.ranks, connecting, listening)
        return self.secret.agrees(mac, what, self.session, members, *nonces)


def introduce(sock: socket.socket, me: Party, listening: int, *, deadline: float) -> None:
    """Introduce ourselves to a listening rank, and make sure that it is who we think.

    Args:
        sock: connected to it.
        me: who we are.
        listening: its rank.
        deadline: on the monotonic clock.

    Raises:
        ProtocolError: it is not, or it hung up on us.
        OSError: the connection broke, or nothing came in time.
    """
    _, _, challenge = _checked(_CHALLENGE, _read(sock, _CHALLENGE.size, deadline))
    nonce = secrets.token_bytes(NONCE_BYTES)
    mac = me.seal(b"exchange opening", me.rank, listening, challenge, nonce)
    sock.sendall(_OPENING.pack(_MAGIC, VERSION, me.rank, nonce, mac))
    _, _, answer = _checked(_ANSWER, _read(sock, _ANSWER.size, deadline))
    if not me.proves(answer, b"exchange answer", me.rank, listening, nonce):
        raise ProtocolError(f"whoever listens for rank {listening} does not have this deployment's secret")


def admit(sock: socket.socket, me: Party, *, deadline: float) -> int:
    """Let a connecting rank prove who it is; return its rank.

    Raises:
        ProtocolError: it is no rank of this group and session.
        OSError: the connection broke, or nothing came in time.
    """
    challenge = secrets.token_bytes(NONCE_BYTES)
    sock.sendall(_CHALLENGE.pack(_MAGIC, VERSION, challenge))
    _, _, rank, nonce, mac = _checked(_OPENING, _read(sock, _OPENING.size, deadline))
    if not me.proves(mac, b"exchange opening", rank, me.rank, challenge, nonce):
        raise ProtocolError("not sealed with this deployment's secret for this forming of the group")
    if not me.rank < rank < me.ranks:
        raise ProtocolError(f"expected a rank from {me.rank + 1} to {me.ranks - 1}, got {rank}")
    sock.sendall(_ANSWER.pack(_MAGIC, VERSION, me.seal(b"exchange answer", rank, me.rank, nonce)))
    return rank


def _checked(form: struct.Struct, data: bytes) -> tuple[Any, ...]:
    fields = form.unpack(data)
    magic, version = fields[:2]
    if magic != _MAGIC:
        raise ProtocolError(f"exchange greeting: expected {_MAGIC!r}, got {magic!r}; something else speaks here")
    if version != VERSION:
        raise ProtocolError(
            f"exchange greeting: expected version {VERSION}, got {version}; run one version of fourlane everywhere"
        )
    return fields


def _read(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise ProtocolError("it hung up during the greeting")
        data += chunk
    return data
