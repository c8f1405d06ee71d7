"""What goes over a KV connection: the handshake, then frames with checked headers.

    receiver -> sender   challenge   nonce
    sender -> receiver   opening     who, which transport, shape of the cache; sealed over the nonce
    receiver -> sender   verdict     accepted, or the reason why not; sealed over the sender's nonce
    then frames, both ways: a header of fixed size with a CRC-32C of its own, then the payload.

The payload of DATA is K, then V, of consecutive tokens of one layer: raw bytes, whose CRC-32C is
in the header. Nothing is pickled. Every transport speaks this; LANDED stands for a DATA whose
bytes went through shared memory.
"""

from __future__ import annotations

import secrets
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fourlane._native import crc32c
from fourlane.errors import ProtocolError, TransferError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.engine.kv_transfer.contract import KvGeometry
    from fourlane.engine.seal import Secret

__all__ = [
    "CHALLENGE",
    "HEADER_BYTES",
    "MOST_MEMORY",
    "MOST_TEXT",
    "NONCE_BYTES",
    "OFFSET",
    "OPENING",
    "VERDICT",
    "VERSION",
    "Header",
    "Kind",
    "Opening",
    "Verdict",
    "checksum",
    "make_challenge",
    "make_opening",
    "make_verdict",
    "opening_body_bytes",
    "pack",
    "read_challenge",
    "read_opening",
    "read_verdict",
    "unpack",
    "verdict_body_bytes",
]

VERSION = 2
NONCE_BYTES = 16
MOST_TEXT = 1024
MOST_MEMORY = 1 << 18
"""Bytes of a MEMORY frame's payload: a library's description of many NICs is long."""
_MAGIC = b"FLKV"
_HEADER = struct.Struct("!4sBBHQIIIQI")
_CRC = struct.Struct("!I")
HEADER_BYTES = _HEADER.size + _CRC.size

CHALLENGE = struct.Struct(f"!4sH{NONCE_BYTES}s")
"""magic, version, nonce."""
OPENING = struct.Struct(f"!4sHH{NONCE_BYTES}s16s")
"""magic, version, bytes of the body that follows, nonce, MAC."""
VERDICT = struct.Struct("!4sHH16s")
"""magic, version, bytes of the body that follows, MAC."""
OFFSET = struct.Struct("!Q")
"""Payload of OFFERED."""


class Kind(IntEnum):
    """What a frame is; up to 15 they go to the receiver, from 16 on to the sender."""

    OPEN = 1
    """A stream begins."""
    DATA = 2
    """K and V of some tokens of a layer follow."""
    LANDED = 3
    """K and V of some tokens of a layer lie in the pages."""
    FINISH = 4
    """All was sent: `tokens` tokens; `first_token` is the id of the token sampled."""
    ABORT = 5
    """The sender gives up and writes no more; a text follows."""
    STOPPED = 6
    """Answer to NACK: nothing is written to the sequence's pages any more."""
    MEMORY = 7
    """How the sender's memory is read; a `library.Exposure` follows. Before any OFFERED."""
    OFFERED = 8
    """K and V of some tokens of a layer can be read; where they lie in that memory follows, 64 bits."""
    GRANT = 16
    """The pages, as a payload of 32-bit numbers, may be written to from now on."""
    ACK = 17
    """All of the sequence's KV is there."""
    NACK = 18
    """The sequence failed or is not wanted; a text follows. Answered by STOPPED."""
    CHECKED = 19
    """A chunk (in the order sent) is in its pages and its checksum agreed."""
    UNREAD = 20
    """An offered chunk is not read (any more) and has not landed. Every OFFERED is answered by this or CHECKED."""


class Header(NamedTuple):
    """A frame's header.

    Units:
        payload_bytes: bytes that follow on the connection; checksum: CRC-32C of K, then V; again: 1 for
        a DATA sent before over a connection that was lost.
    """

    kind: int
    sequence_id: int
    layer: int = 0
    first_token: int = 0
    tokens: int = 0
    payload_bytes: int = 0
    checksum: int = 0
    again: int = 0


def pack(header: Header) -> bytes:
    """Return a header as bytes on the wire."""
    kind, sequence_id, layer, first_token, tokens, payload_bytes, crc, again = header
    body = _HEADER.pack(_MAGIC, VERSION, kind, again, sequence_id, layer, first_token, tokens, payload_bytes, crc)
    return body + _CRC.pack(crc32c(body, 0))


def unpack(frame: bytes | bytearray) -> Header:
    """Read a header.

    Raises:
        ProtocolError: not a header, damaged, or of another version.
    """
    body = bytes(frame[: _HEADER.size])
    magic, version, kind, again, sequence_id, layer, first_token, tokens, payload_bytes, crc = _HEADER.unpack(body)
    _check_version("KV frame", magic, version)
    (found,) = _CRC.unpack(frame[_HEADER.size : HEADER_BYTES])
    if found != crc32c(body, 0):
        raise ProtocolError("KV frame: damaged header (its checksum disagrees)")
    return Header(kind, sequence_id, layer, first_token, tokens, payload_bytes, crc, again)


def checksum(parts: Iterable[memoryview]) -> int:
    """Return the CRC-32C of parts in their order, as if they were one."""
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return crc


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """Who wants to send, over what, from what kind of cache.

    Connections of one `session` (random; "" for a connection on its own) carry the same sequences.
    """

    name: str
    transport: str
    layers: int
    block_size: int
    kv_heads: int
    head_dim: int
    dtype: str
    session: str = ""

    @classmethod
    def of(cls, geometry: KvGeometry, *, name: str, transport: str, session: str = "") -> Opening:
        """Return the opening of a sender with such a cache."""
        return cls(
            name=name,
            transport=transport,
            layers=geometry.layers,
            block_size=geometry.block_size,
            kv_heads=geometry.kv_heads,
            head_dim=geometry.head_dim,
            dtype=geometry.dtype,
            session=session,
        )

    def unlike(self, other: Opening) -> str:
        """Describe how another cache or transport differs from this one; "" if it does not."""
        fields = ("transport", "layers", "block_size", "kv_heads", "head_dim", "dtype")
        return ", ".join(
            f"{field}: expected {getattr(self, field)}, got {getattr(other, field)}"
            for field in fields
            if getattr(self, field) != getattr(other, field)
        )


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a sender is let in. `blocks`: pages of the receiver's cache."""

    accepted: bool
    reason: str = ""
    blocks: int = 0


def make_challenge() -> tuple[bytes, bytes]:
    """Return a new challenge as bytes on the wire, and its nonce."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return CHALLENGE.pack(_MAGIC, VERSION, nonce), nonce


def read_challenge(data: bytes) -> bytes:
    """Return the nonce of a challenge.

    Raises:
        ProtocolError: something else answers there, or another version.
    """
    magic, version, nonce = CHALLENGE.unpack(data)
    _check_version("KV challenge", magic, version)
    return nonce


def make_opening(secret: Secret, opening: Opening, challenge_nonce: bytes) -> tuple[bytes, bytes]:
    """Return an opening as bytes on the wire, and its nonce."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    body = msgspec.msgpack.encode(opening)
    mac = secret.mac(b"kv opening", challenge_nonce, nonce, body)
    return OPENING.pack(_MAGIC, VERSION, len(body), nonce, mac) + body, nonce


def opening_body_bytes(head: bytes) -> int:
    """Return how many bytes follow the fixed part of an opening.

    Raises:
        ProtocolError: not an opening, of another version, or too long.
    """
    magic, version, length, _, _ = OPENING.unpack(head)
    _check_version("KV opening", magic, version)
    if length > MOST_TEXT:
        raise ProtocolError(f"KV opening: expected at most {MOST_TEXT} bytes, got {length}")
    return length


def read_opening(secret: Secret, data: bytes, challenge_nonce: bytes) -> tuple[Opening, bytes]:
    """Check an opening; return it and its nonce.

    Raises:
        ProtocolError: malformed, of another version, or sealed with another secret.
    """
    _, _, length, nonce, mac = OPENING.unpack(data[: OPENING.size])
    body = data[OPENING.size : OPENING.size + length]
    if not secret.agrees(mac, b"kv opening", challenge_nonce, nonce, body):
        raise ProtocolError("not sealed with this deployment's secret")
    try:
        return msgspec.msgpack.decode(body, type=Opening), nonce
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"malformed opening: {error}") from error


def make_verdict(secret: Secret, verdict: Verdict, opening_nonce: bytes) -> bytes:
    """Return a verdict as bytes on the wire."""
    body = msgspec.msgpack.encode(verdict)
    return VERDICT.pack(_MAGIC, VERSION, len(body), secret.mac(b"kv verdict", opening_nonce, body)) + body


def verdict_body_bytes(head: bytes) -> int:
    """Return how many bytes follow the fixed part of a verdict.

    Raises:
        ProtocolError: not a verdict, or of another version.
    """
    magic, version, length, _ = VERDICT.unpack(head)
    _check_version("KV verdict", magic, version)
    return length


def read_verdict(secret: Secret, data: bytes, opening_nonce: bytes) -> Verdict:
    """Check a verdict and return it.

    Raises:
        TransferError: we were refused.
        ProtocolError: malformed, or whoever answered does not have the secret.
    """
    _, _, length, mac = VERDICT.unpack(data[: VERDICT.size])
    body = data[VERDICT.size : VERDICT.size + length]
    try:
        verdict = msgspec.msgpack.decode(body, type=Verdict)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"malformed verdict: {error}") from error
    if not verdict.accepted:
        raise TransferError(f"refused: {verdict.reason}")
    if not secret.agrees(mac, b"kv verdict", opening_nonce, body):
        raise ProtocolError("the receiver does not have this deployment's secret")
    return verdict


def _check_version(what: str, magic: bytes, version: int) -> None:
    if magic != _MAGIC:
        raise ProtocolError(f"{what}: expected {_MAGIC!r}, got {magic!r}; something else speaks here")
    if version != VERSION:
        raise ProtocolError(
            f"{what}: expected version {VERSION}, got {version}; run one version of fourlane everywhere"
        )
