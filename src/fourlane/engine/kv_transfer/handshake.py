"""The sender's half of the handshake, and exact reads with a deadline."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from fourlane.engine.kv_transfer import frames
from fourlane.errors import TransferError

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.frames import Opening, Verdict
    from fourlane.engine.seal import Secret

__all__ = ["shake_hands"]


def shake_hands(
    sock: socket.socket, secret: Secret, opening: Opening, *, timeout_s: float
) -> tuple[Verdict, int | None]:
    """Introduce ourselves to a receiver; return what it said, and a descriptor if it passed one.

    Afterwards the socket does not block.

    Raises:
        TransferError: it refused, or did not answer in time.
        ProtocolError: it is no receiver of this deployment.
        OSError: the connection broke.
    """
    deadline = time.monotonic() + timeout_s
    challenge = _read(sock, frames.CHALLENGE.size, deadline)[0]
    greeting, nonce = frames.make_opening(secret, opening, frames.read_challenge(challenge))
    sock.sendall(greeting)
    head, descriptor = _read(sock, frames.VERDICT.size, deadline)
    try:
        body, _ = _read(sock, frames.verdict_body_bytes(head), deadline)
        verdict = frames.read_verdict(secret, head + body, nonce)
    except BaseException:
        if descriptor is not None:
            socket.close(descriptor)
        raise
    sock.setblocking(False)  # noqa: FBT003 - the standard library's
    return verdict, descriptor


def _read(sock: socket.socket, size: int, deadline: float) -> tuple[bytes, int | None]:
    data, descriptor = b"", None
    flags = socket.MSG_CMSG_CLOEXEC
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TransferError("no answer to the handshake in time")
        sock.settimeout(left)
        if sock.family == socket.AF_UNIX:
            chunk, descriptors, _, _ = socket.recv_fds(sock, size - len(data), 1, flags)
            descriptor = descriptors[0] if descriptors else descriptor
        else:
            chunk = sock.recv(size - len(data))
        if not chunk:
            raise ConnectionError("it hung up during the handshake")
        data += chunk
    return data, descriptor
