"""Capture what a host sends, interface by interface: who to, with which DSCP, how much. Runs inside the host.

A packet socket sees what really leaves; no program needs to be installed. Only counts are kept, no contents.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from fourlane.lab.keeper import Channel

__all__ = ["Sent", "capture"]

_ALL = 0x0003  # ETH_P_ALL
_OUTGOING = 4  # PACKET_OUTGOING
_IPV4, _TCP = 0x0800, 6
_BUFFER = 4 << 20
_HEADERS = 128


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """TCP packets with payload that one host sent out of one interface with one mark, between two ends."""

    interface: str
    source: tuple[str, int]
    target: tuple[str, int]
    dscp: int
    packets: int
    payload: int


def capture(channel: Channel) -> dict[str, object]:
    """Count outgoing TCP packets with payload until told to end.

    Returns:
        `sent`: the counts; `missed`: packets that came faster than they were counted.
    """
    counts: dict[tuple[str, bytes, bytes, int], list[int]] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        channel.say("capturing")
        sock.settimeout(0.05)
        while True:
            try:
                data, (interface, protocol, kind, *_) = sock.recvfrom(_HEADERS)
            except TimeoutError:
                if channel.stopped():
                    break
                continue
            if kind == _OUTGOING and protocol == _IPV4:
                _count(counts, interface, data)
        _, missed = struct.unpack("II", sock.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
    return {"sent": [_told(key, value) for key, value in counts.items()], "missed": missed}


def _count(counts: dict[tuple[str, bytes, bytes, int], list[int]], interface: str, data: bytes) -> None:
    if len(data) < 40 or data[9] != _TCP:
        return
    header = (data[0] & 0xF) * 4
    payload = int.from_bytes(data[2:4], "big") - header - (data[header + 12] >> 4) * 4
    if payload <= 0:
        return
    key = (
        interface,
        data[12:16] + data[header : header + 2],
        data[16:20] + data[header + 2 : header + 4],
        data[1] >> 2,
    )
    entry = counts.setdefault(key, [0, 0])
    entry[0] += 1
    entry[1] += payload


def _told(key: tuple[str, bytes, bytes, int], value: list[int]) -> dict[str, object]:
    interface, source, target, dscp = key
    return {
        "interface": interface,
        "source": _end(source),
        "target": _end(target),
        "dscp": dscp,
        "packets": value[0],
        "payload": value[1],
    }


def _end(packed: bytes) -> tuple[str, int]:
    return socket.inet_ntoa(packed[:4]), int.from_bytes(packed[4:6], "big")
