"""Packets, the order of events, and the small integer functions that both simulators share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["LATENCY_BUCKETS", "Charge", "Event", "Kind", "Packet", "latency_bucket", "mix32", "mix64"]


class Event(IntEnum):
    """Kinds of events. At one instant they happen in this order, and those of one kind in order of their ids."""

    EPOCH = 0  # id: the epoch. Links fail or come back, routing tables change
    PAUSE = 1  # id: port * 16 + queue * 2 + (1 = XOFF, 0 = XON). A PFC frame takes effect at an egress port
    ARRIVE = 2  # id: the egress port that sent the packet
    START = 3  # id: flow
    PACE = 4  # id: flow. A rate-limited flow may send its next packet
    CC_TIMER = 5  # id: flow. DCQCN's timer of rate increases
    RTO = 6  # id: flow. Retransmission timeout
    WATCHDOG = 7  # id: port * 8 + queue. Has this queue been paused all the time?
    TX = 8  # id: egress port. It may begin to send a packet
    SAMPLE = 9  # id: 0


class Kind(IntEnum):
    """Kinds of packets. All but data are "control": `ack_wire` bytes long, never marked, never trimmed."""

    DATA = 0
    ACK = 1
    NACK = 2
    CNP = 3  # congestion notification of DCQCN
    RTS = 4  # request to send
    CTS = 5  # clear to send


class Charge(IntEnum):
    """Which account of a switch's buffer holds a packet's bytes."""

    NONE = 0
    INGRESS = 1  # (ingress port, queue) of a lossless queue: reservation and shared pool, then headroom
    EGRESS = 2  # (egress port, queue) of a lossy queue


@dataclass(slots=True)
class Packet:
    """A packet on its way.

    `seq` is what an ACK, NACK acknowledges where the packet is one. Times: `sent` its serialisation at the host
    began; `arrival` it reaches the next node (its first bytes do, towards a cut-through switch); `tail` its last bit
    does; `ready` it may leave the switch.
    """

    flow: int
    seq: int
    kind: Kind
    wire: int
    traffic_class: int
    queue: int
    destination: int  # endpoint: a host's egress port
    hash32: int
    ready: int
    sent: int = 0
    arrival: int = 0
    tail: int = 0
    ingress: int = -1
    charge: Charge = Charge.NONE
    marked: bool = False
    trimmed: bool = False


def mix32(value: int) -> int:
    """Scramble 32 bits. Source: the finaliser of MurmurHash3 (A. Appleby, public domain)."""
    value ^= value >> 16
    value = value * 0x85EBCA6B & 0xFFFFFFFF
    value ^= value >> 13
    value = value * 0xC2B2AE35 & 0xFFFFFFFF
    return value ^ value >> 16


def mix64(value: int) -> int:
    """Scramble 64 bits. Source: the finaliser of SplitMix64 (Steele, Lea, Flood: OOPSLA 2014)."""
    value ^= value >> 30
    value = value * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value ^= value >> 27
    value = value * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31


LATENCY_BUCKETS = 64 * 58
"""Enough for any 63-bit time."""


def latency_bucket(ps: int) -> int:
    """Return the histogram bucket of a latency: one a picosecond below 128, then 64 a doubling (1.6 % wide)."""
    if ps < 128:
        return ps
    doublings = ps.bit_length() - 7
    return 64 * doublings + (ps >> doublings)
