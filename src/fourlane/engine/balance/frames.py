"""What ranks tell each other on the bulk lane: which layer moves, and pieces of experts' weights.

    prefix    magic, version, bytes of the head, bytes of the payload, CRC-32C of the payload
    head      a tagged msgspec struct, `Order` or `Piece`
    CRC-32C   of prefix and head
    payload   raw bytes of weights; nothing after an `Order`

Nothing is pickled. The ranks have proven who they are when they met (`exchange.tcp_meeting`).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from fourlane._native import crc32c
from fourlane.errors import ProtocolError

__all__ = [
    "CRC",
    "MOST_PAYLOAD",
    "PREFIX",
    "VERSION",
    "Frame",
    "Head",
    "Order",
    "Piece",
    "Prefix",
    "pack",
    "read_head",
    "read_prefix",
]

VERSION = 1
MOST_PAYLOAD = 256 << 10
"""Bytes of weights in a frame: what a core's cache holds, so that what was summed is still there when it is sent."""
_MAGIC = b"FLBW"
PREFIX = struct.Struct("!4sHHII")
CRC = struct.Struct("!I")


class Order(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The group's leader has all ranks bring a layer into another order.

    `number` counts migrations in this forming of the group, from 1. `version` is that of the placement
    it begins from; `slots` [slots]: the expert in each slot then, -1 where empty.
    """

    number: int
    version: int
    layer: int
    slots: list[int]


class Piece(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Bytes of an expert's weights: of which of its arrays, and from where on. They follow as payload."""

    number: int
    expert: int
    part: int
    offset: int


Head = Order | Piece
Frame = tuple[Head, memoryview]
"""A head and its payload."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Head)


class Prefix(NamedTuple):
    """What is known of a frame before its head has come."""

    raw: bytes
    head_bytes: int
    payload_bytes: int
    payload_crc: int


def pack(head: Head, payload: memoryview | bytes = b"") -> bytes:
    """Return all of a frame but its payload."""
    body = _encoder.encode(head)
    begin = PREFIX.pack(_MAGIC, VERSION, len(body), len(payload), crc32c(payload, 0)) + body
    return begin + CRC.pack(crc32c(begin, 0))


def read_prefix(data: bytes) -> Prefix:
    """Read a prefix; it is not proven before its head is.

    Raises:
        ProtocolError: no prefix, of another version, or longer than any.
    """
    magic, version, head_bytes, payload_bytes, payload_crc = PREFIX.unpack(data)
    if magic != _MAGIC:
        raise ProtocolError(f"expected a frame that begins with {_MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise ProtocolError(f"expected version {VERSION}, got {version}; run one version of fourlane everywhere")
    if payload_bytes > MOST_PAYLOAD:
        raise ProtocolError(f"expected at most {MOST_PAYLOAD} bytes of payload, got {payload_bytes}")
    return Prefix(data, head_bytes, payload_bytes, payload_crc)


def read_head(prefix: Prefix, data: bytes) -> Head:
    """Read a head and the checksum behind it.

    Raises:
        ProtocolError: damaged, or not a head.
    """
    body, crc = data[: prefix.head_bytes], data[prefix.head_bytes :]
    if CRC.unpack(crc)[0] != crc32c(prefix.raw + body, 0):
        raise ProtocolError("damaged header (its checksum disagrees)")
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"malformed header: {error}") from error
