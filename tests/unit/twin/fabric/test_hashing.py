"""Hashes against published values and their properties; draws against the distribution they are drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fourlane.twin.fabric.hashing import (
    exponential,
    mix32,
    mix64,
    murmur3,
    random_words,
    tuple_hash,
    udp_source_port,
)


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [  # test vectors that circulate with MurmurHash3_x86_32
        (b"test", 0, 0xBA6BD213),
        (b"test", 0x9747B28C, 0x704B81DC),
        (b"\x21\x43\x65\x87", 0, 0xF55B516B),
        (b"\x21\x43\x65\x87", 0x5082EDEE, 0x2362F9DE),
        (b"\xff\xff\xff\xff", 0, 0x76293B50),
        (b"\x00\x00\x00\x00", 0, 0x2362F9DE),
        (b"aaaa", 0x9747B28C, 0x5A97808A),
    ],
)
def test_murmur3_gives_the_published_values(data: bytes, seed: int, expected: int) -> None:
    assert murmur3(*np.frombuffer(data, "<u4"), seed=seed).tolist() == [expected]


def test_the_finalisers_are_murmur3s() -> None:
    assert mix32(1).tolist() == [0x514E28B7]
    assert mix64(1).tolist() == [0xB456BCFC34C2CB2C]
    assert mix32(0).tolist() == [0]


def test_a_connection_has_the_same_source_port_from_either_end() -> None:
    one, other = np.arange(1, 1000), np.arange(5000, 5999)
    ports = udp_source_port(one, other)
    assert (ports == udp_source_port(other, one)).all()
    assert ports.min() >= 0xC000
    assert ports.max() <= 0xFFFF
    assert len(np.unique(ports)) > 900


def test_hashes_of_one_pair_differ_by_source_port_or_else_by_queue_pair() -> None:
    here, there, ports = np.full(64, 10), np.full(64, 11), np.arange(64) + 0xC000
    assert len(np.unique(tuple_hash(here, there, ports))) == 64
    same = np.full(64, 0xC000)
    assert len(np.unique(tuple_hash(here, there, same))) == 1
    assert len(np.unique(tuple_hash(here, there, same, qp=np.arange(64)))) == 64


def test_hashed_flows_spread_evenly_over_paths() -> None:
    hosts = np.arange(256)
    source, target = np.repeat(hosts, 256), np.tile(hosts, 256)
    hashes = tuple_hash(source, target, np.full(1, 0xC000)).astype(np.uint64)
    counts = np.bincount((hashes * 8 >> np.uint64(32)).astype(int))
    expected = len(hashes) / 8
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 24.3  # 7 degrees of freedom, 0.1 %


def test_exponential_draws_are_minus_the_logarithm() -> None:
    words = random_words(7, 0, 100_000)
    draws = exponential(words)
    uniform = ((words >> np.uint64(11)).astype(float) + 0.5) * 2.0**-53
    assert np.allclose(draws, -np.log(uniform), rtol=1e-14, atol=1e-15)
    assert draws.mean() == pytest.approx(1, abs=0.02)
    assert np.median(draws) == pytest.approx(math.log(2), abs=0.02)


def test_a_draw_depends_on_seed_stream_and_place_alone() -> None:
    assert random_words(1, 2, 5).tolist() == random_words(1, 2, 9)[:5].tolist()
    assert random_words(1, 2, 5).tolist() != random_words(1, 3, 5).tolist()
    assert random_words(2, 2, 5).tolist() != random_words(1, 2, 5).tolist()
