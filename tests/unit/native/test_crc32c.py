"""CRC-32C: known answers, and agreement with a plain-Python oracle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane import _native

POLYNOMIAL = 0x82F63B78

RFC_3720_VECTORS = {
    "32 bytes of zeros": (bytes(32), 0x8A9136AA),
    "32 bytes of ones": (b"\xff" * 32, 0x62A8AB43),
    "32 incrementing bytes": (bytes(range(32)), 0x46DD794E),
    "32 decrementing bytes": (bytes(range(31, -1, -1)), 0x113FDB5C),
    "an iSCSI read command": (
        bytes.fromhex("01c00000000000000000000000000000140000000000040000000014000000182800000000000000")
        + bytes.fromhex("0200000000000000"),
        0xD9963A56,
    ),
    "the usual check value": (b"123456789", 0xE3069283),
    "nothing": (b"", 0),
}


def oracle(data: bytes, seed: int = 0) -> int:
    """Compute the CRC bit by bit."""
    crc = seed ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("name", RFC_3720_VECTORS)
def test_the_vectors_of_rfc_3720_are_met(name: str) -> None:
    data, expected = RFC_3720_VECTORS[name]
    assert _native.crc32c(data) == expected
    assert _native.crc32c_table(data) == expected


@given(data=st.binary(max_size=1200), seed=st.integers(0, 2**32 - 1))
def test_both_ways_agree_with_the_oracle(data: bytes, seed: int) -> None:
    expected = oracle(data, seed)
    assert _native.crc32c(data, seed) == expected
    assert _native.crc32c_table(data, seed) == expected


@pytest.mark.parametrize("size", [3 * 256 - 1, 3 * 256, 3 * 8192 - 1, 3 * 8192, 3 * 8192 + 3 * 256 + 13, 200_003])
def test_interleaved_streams_join_as_the_table_says(size: int) -> None:
    data = bytes(i * 7 + (i >> 8) & 0xFF for i in range(size))
    assert _native.crc32c(data, 77) == _native.crc32c_table(data, 77)


@given(data=st.binary(max_size=3000), cut=st.integers(0, 3000))
def test_a_crc_can_be_continued_at_any_place(data: bytes, cut: int) -> None:
    assert _native.crc32c(data[cut:], _native.crc32c(data[:cut])) == _native.crc32c(data)


def test_any_contiguous_buffer_is_taken() -> None:
    data = b"four lanes"
    for buffer in (bytearray(data), memoryview(data), memoryview(b"--" + data)[2:]):
        assert _native.crc32c(buffer) == _native.crc32c(data)


def test_a_strided_buffer_is_refused() -> None:
    with pytest.raises(BufferError):
        _native.crc32c(memoryview(b"four lanes")[::2])
