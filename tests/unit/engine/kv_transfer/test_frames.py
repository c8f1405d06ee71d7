"""Headers, checksums and the handshake's messages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.contract import KvGeometry
from fourlane.engine.kv_transfer.frames import HEADER_BYTES, Header, Opening, Verdict, checksum, pack, unpack
from fourlane.engine.seal import Secret
from fourlane.errors import ProtocolError, TransferError

SECRET = Secret(bytes(range(32)))
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
HEADERS = st.builds(
    Header,
    kind=st.integers(0, 255),
    sequence_id=U64,
    layer=U32,
    first_token=U32,
    tokens=U32,
    payload_bytes=U64,
    checksum=U32,
    again=st.integers(0, 1),
)
OPENING = Opening.of(
    KvGeometry(layers=2, blocks=3, block_size=4, kv_heads=1, head_dim=8), name="prefill-0", transport="tcp"
)


@given(header=HEADERS)
def test_a_header_survives_the_wire(header: Header) -> None:
    data = pack(header)
    assert len(data) == HEADER_BYTES
    assert unpack(data) == header


@given(header=HEADERS, bit=st.integers(0, HEADER_BYTES * 8 - 1))
def test_any_flipped_bit_of_a_header_is_noticed(header: Header, bit: int) -> None:
    data = bytearray(pack(header))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError, match="KV frame"):
        unpack(data)


def test_the_checksum_is_crc_32c() -> None:
    # Source: RFC 3720, appendix B.4, and the check value of CRC-32C/iSCSI.
    assert checksum([memoryview(b"123456789")]) == 0xE3069283
    assert checksum([memoryview(bytes(32))]) == 0x8A9136AA


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=4))
def test_a_checksum_does_not_depend_on_how_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [memoryview(data)[a:b] for a, b in pairwise(edges)]
    assert checksum(parts) == checksum([memoryview(data)])


def test_an_opening_is_read_back_and_its_differences_are_named() -> None:
    challenge, nonce = frames.make_challenge()
    assert frames.read_challenge(challenge) == nonce
    data, _ = frames.make_opening(SECRET, OPENING, nonce)
    found, _ = frames.read_opening(SECRET, data, nonce)
    assert found == OPENING
    assert found.unlike(OPENING) == ""
    other = Opening.of(KvGeometry(layers=2, blocks=9, block_size=8, kv_heads=1, head_dim=8), name="x", transport="tcp")
    assert OPENING.unlike(other) == "block_size: expected 4, got 8"


def test_an_opening_made_for_another_challenge_is_refused() -> None:
    data, _ = frames.make_opening(SECRET, OPENING, bytes(16))
    with pytest.raises(ProtocolError, match="not sealed with this deployment's secret"):
        frames.read_opening(SECRET, data, bytes(15) + b"\x01")


def test_a_verdict_counts_only_from_who_has_the_secret() -> None:
    accepted = Verdict(accepted=True, blocks=7)
    nonce = bytes(range(16))
    assert frames.read_verdict(SECRET, frames.make_verdict(SECRET, accepted, nonce), nonce) == accepted
    with pytest.raises(ProtocolError, match="does not have this deployment's secret"):
        frames.read_verdict(SECRET, frames.make_verdict(Secret(bytes(32)), accepted, nonce), nonce)
    refused = frames.make_verdict(Secret(bytes(32)), Verdict(accepted=False, reason="because"), nonce)
    with pytest.raises(TransferError, match="refused: because"):
        frames.read_verdict(SECRET, refused, nonce)


def test_something_else_that_answers_is_told_apart_from_another_version() -> None:
    with pytest.raises(ProtocolError, match="something else speaks here"):
        frames.read_challenge(b"HTTP/1.1 400 Bad Reque")
    with pytest.raises(ProtocolError, match="expected version 2, got 3"):
        frames.read_challenge(frames.CHALLENGE.pack(b"FLKV", 3, bytes(16)))


def test_a_long_opening_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="expected at most 1024 bytes, got 65535"):
        frames.opening_body_bytes(frames.OPENING.pack(b"FLKV", frames.VERSION, 65535, bytes(16), bytes(16)))
