"""Hashes and draws in whole numbers, the same on every machine: header fields to paths, seeds to arrivals.

Source: MurmurHash3 and its finalisers (Austin Appleby, public domain); SplitMix64's increment (Steele, Lea,
Flood, OOPSLA 2014); the RoCEv2 source port of a pair of queue pairs as Linux derives it
(include/rdma/ib_verbs.h, rdma_calc_flow_label and rdma_flow_label_to_udp_sport).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Words = npt.NDArray[np.uint32]
    Doubles = npt.NDArray[np.float64]

__all__ = [
    "ROCE_PORT",
    "UDP",
    "exponential",
    "mix32",
    "mix64",
    "murmur3",
    "random_words",
    "tuple_hash",
    "udp_source_port",
]

ROCE_PORT, UDP = 4791, 17
FIXED_SOURCE_PORT = 0xC000
"""What senders without entropy write; every flow of a pair of hosts then hashes alike."""
_STEP = 0x9E3779B97F4A7C15
_LN2 = 0.6931471805599453
_TERMS = 18  # of a series whose ratio is at most 1/9


def mix32(words: Array | int) -> Words:
    """Spread words so that each input bit changes every output bit with even chance (MurmurHash3's finaliser)."""
    h = np.atleast_1d(np.asarray(words)).astype(np.uint32)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def mix64(words: Array | int) -> npt.NDArray[np.uint64]:
    """Spread 64-bit words likewise."""
    h = np.atleast_1d(np.asarray(words, dtype=np.uint64))
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


def murmur3(*columns: Array | int, seed: int = 0) -> Words:
    """Hash rows of 32-bit words, one column each, as MurmurHash3 (x86, 32 bit) hashes their bytes."""
    h: Words = np.full(1, seed, dtype=np.uint32)
    for column in columns:
        k = np.atleast_1d(np.asarray(column)).astype(np.uint32) * np.uint32(0xCC9E2D51)
        k = _rotated(k, 15) * np.uint32(0x1B873593)
        h = _rotated(h ^ k, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    return mix32(h ^ np.uint32(4 * len(columns)))


def _rotated(words: Words, bits: int) -> Words:
    return (words << np.uint32(bits)) | (words >> np.uint32(32 - bits))


def udp_source_port(one_qp: Array, other_qp: Array) -> Words:
    """Return the UDP source port of a connection between two queue pairs, 49152 to 65535; the same from either end."""
    product = np.asarray(one_qp).astype(np.uint64) * np.asarray(other_qp).astype(np.uint64)
    product ^= product >> np.uint64(20)
    product ^= product >> np.uint64(40)
    label = (product & np.uint64(0xFFFFF)).astype(np.uint32)
    return (label & np.uint32(0x3FFF)) ^ (label >> np.uint32(14)) | np.uint32(0xC000)


def tuple_hash(source: Array, target: Array, source_port: Array, *, qp: Array | None = None) -> Words:
    """Hash the five fields that name a RoCEv2 flow: addresses, UDP ports, protocol; and the destination QP if given.

    Args:
        source: IPv4 addresses.
        target: IPv4 addresses.
        source_port: UDP source ports; the destination port is RoCE's.
        qp: destination queue pairs, for switches that look that deep.
    """
    ports = np.asarray(source_port).astype(np.uint32) << np.uint32(16) | np.uint32(ROCE_PORT)
    columns = [source, target, ports, np.full(1, UDP, np.uint32)]
    return murmur3(*columns, *([] if qp is None else [qp]))


def random_words(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    """Draw 64-bit words: element i depends on seed, stream and i alone."""
    start = mix64(np.array([(seed & _MASK) ^ (stream + 1) * _STEP & _MASK], dtype=np.uint64))
    return mix64(start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP))


_MASK = (1 << 64) - 1


def exponential(words: npt.NDArray[np.uint64]) -> Doubles:
    """Turn random words into exponential draws of mean 1.

    Not by a library's logarithm, whose last bit differs from machine to machine, but by a series of plain
    additions, multiplications and divisions.
    """
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    mantissa, exponent = np.frexp(uniform)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    total = np.full_like(ratio, 1.0 / (2 * _TERMS + 1))
    for term in range(_TERMS - 1, -1, -1):
        total = total * square + 1.0 / (2 * term + 1)
    return -(2.0 * ratio * total + exponent * _LN2)
