"""Doorbells between ranks, over real ZeroMQ sockets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import zmq

from fourlane.engine.doorbell import Doorbell
from fourlane.engine.seal import Kind, Secret, seal
from fourlane.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = Secret(bytes(range(32)))


@pytest.fixture
def bells() -> Iterator[Callable[..., Doorbell]]:
    made: list[Doorbell] = []

    def make(name: str, secret: Secret = SECRET) -> Doorbell:
        made.append(Doorbell(secret, name))
        return made[-1]

    yield make
    for bell in made:
        bell.close()


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/bell" if request.param == "ipc" else "tcp://127.0.0.1:*"


def heard(bell: Doorbell, wanted: int) -> int | None:
    """Drain until a step has come, at most five seconds."""
    deadline = time.monotonic() + 5
    highest: int | None = None
    while (highest is None or highest < wanted) and time.monotonic() < deadline:
        bell.socket.poll(100)
        step = bell.drain()
        highest = step if highest is None else max(highest, step or 0)
    return highest


def test_a_ring_wakes_every_peer_with_the_highest_step(address: str, bells: Callable[..., Doorbell]) -> None:
    ringer, *sleepers = bells("decode-0"), bells("decode-1"), bells("decode-2")
    ringer.connect([bell.bind(address + (str(n) if "ipc" in address else "")) for n, bell in enumerate(sleepers)])
    for step in (3, 7, 5):
        ringer.ring(step)
    assert [heard(bell, 7) for bell in sleepers] == [7, 7]
    ringer.ring(8)
    assert [heard(bell, 8) for bell in sleepers] == [8, 8]
    assert [bell.drain() for bell in sleepers] == [None, None]


def test_a_bell_nobody_rang_has_nothing_to_say(tmp_path: Path, bells: Callable[..., Doorbell]) -> None:
    bell = bells("decode-0")
    bell.bind(f"ipc://{tmp_path}/bell")
    assert bell.drain() is None


def test_ringing_peers_that_are_gone_never_blocks(address: str, bells: Callable[..., Doorbell]) -> None:
    gone = Doorbell(SECRET, "decode-1")
    endpoint = gone.bind(address)
    ringer = bells("decode-0")
    ringer.connect([endpoint])
    ringer.ring(0)
    gone.close()
    began = time.monotonic()
    for step in range(1000):
        ringer.ring(step)
    assert time.monotonic() - began < 1.0


def test_a_ring_sent_before_the_connection_stands_is_not_lost(tmp_path: Path, bells: Callable[..., Doorbell]) -> None:
    bell, ringer = bells("decode-1"), bells("decode-0")
    endpoint = bell.bind(f"ipc://{tmp_path}/bell")
    ringer.connect([endpoint])
    ringer.ring(9)
    assert heard(bell, 9) == 9


def test_peers_left_out_of_connect_are_rung_no_more(tmp_path: Path, bells: Callable[..., Doorbell]) -> None:
    first, second, ringer = bells("decode-1"), bells("decode-2"), bells("decode-0")
    endpoints = [first.bind(f"ipc://{tmp_path}/1"), second.bind(f"ipc://{tmp_path}/2")]
    ringer.connect(endpoints)
    ringer.ring(1)
    assert heard(first, 1) == heard(second, 1) == 1
    ringer.connect(endpoints[1:])
    ringer.ring(2)
    assert heard(second, 2) == 2
    assert first.drain() is None


def test_rings_with_another_secret_are_dropped(tmp_path: Path, bells: Callable[..., Doorbell]) -> None:
    bell, forger, ringer = bells("decode-1"), bells("decode-0", Secret(bytes(32))), bells("decode-0")
    endpoint = bell.bind(f"ipc://{tmp_path}/bell")
    forger.connect([endpoint])
    forger.ring(100)
    assert bell.socket.poll(5000)
    assert bell.drain() is None
    ringer.connect([endpoint])
    ringer.ring(1)
    assert heard(bell, 1) == 1
    assert bell.drops.total == 1


def test_replayed_truncated_and_foreign_rings_are_dropped(tmp_path: Path, bells: Callable[..., Doorbell]) -> None:
    bell = bells("decode-1")
    endpoint, nonce = bell.bind(f"ipc://{tmp_path}/bell").split("#")
    session = b"decode-0#" + b"0" * 32
    good = seal(SECRET, f"{nonce}<".encode() + session, Kind.RING, counter=4, payload=(8).to_bytes(8, "big"))
    foreign = seal(SECRET, f"{'f' * 32}<".encode() + session, Kind.RING, counter=5, payload=(9).to_bytes(8, "big"))
    short = seal(SECRET, f"{nonce}<".encode() + session, Kind.RING, counter=6, payload=b"")
    with zmq.Context() as context, context.socket(zmq.PUSH) as wire:
        wire.connect(endpoint)
        for frames in (good, good, foreign, short, [good[0][:-1], good[1]], [good[0][:2] + b"\x05" + good[0][3:], b""]):
            wire.send_multipart([session, *frames])
        wire.send_multipart([session])
        wire.send(b"")
        last = seal(SECRET, f"{nonce}<".encode() + session, Kind.RING, counter=7, payload=(10).to_bytes(8, "big"))
        wire.send_multipart([session, *last])
        assert heard(bell, 10) == 10
    assert bell.drops.total == 7


def test_an_address_that_cannot_be_used_is_named(bells: Callable[..., Doorbell]) -> None:
    with pytest.raises(EngineError, match=r"rank decode-0: cannot listen at 'tcp://.*:not-a-port'"):
        bells("decode-0").bind("tcp://127.0.0.1:not-a-port")
    with pytest.raises(EngineError, match="cannot connect to"):
        bells("decode-0").connect(["pigeon://loft#00"])


def test_closing_removes_the_socket_file(tmp_path: Path) -> None:
    bell = Doorbell(SECRET, "decode-0")
    bell.bind(f"ipc://{tmp_path}/bell")
    assert (tmp_path / "bell").exists()
    bell.close()
    assert not (tmp_path / "bell").exists()
