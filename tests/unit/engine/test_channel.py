"""The control lane between ranks and hub, over real ZeroMQ sockets."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import pytest
import zmq

from fourlane.engine.channel import Hub, RankChannel
from fourlane.engine.messages import Cancel, Failed, Hello, Shutdown, encode
from fourlane.engine.seal import Kind, Secret, seal
from fourlane.errors import EngineError, RankDied

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from fourlane.engine.messages import FromRank, ToRank

SECRET = Secret(bytes(range(32)))
PATIENCE_S = 5.0


def hello(rank: int = 0, pid: int = 1) -> Hello:
    return Hello(
        role="prefill", rank=rank, pid=pid, host="here", generation=0, kv_blocks=8, block_size=16, max_length=64,
        kv_endpoint=None, memory_bytes=1, weights_bytes=1, load_seconds=0.0, experts=4, layers=2,
    )  # fmt: skip


def failed(sequence_id: int) -> Failed:
    return Failed(sequence_id=sequence_id, reason="for a test", retryable=True)


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/control" if request.param == "ipc" else "tcp://127.0.0.1:*"


@pytest.fixture
def ranks() -> Iterator[Callable[..., RankChannel]]:
    made: list[RankChannel] = []

    def make(identity: str = "prefill-0", secret: Secret = SECRET) -> RankChannel:
        made.append(RankChannel(secret, identity))
        return made[-1]

    yield make
    for rank in made:
        rank.close(linger_s=0)


async def drained(rank: RankChannel, wanted: int) -> list[ToRank]:
    """Drain until so many messages have come."""
    messages: list[ToRank] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(messages) < wanted and time.monotonic() < deadline:
        messages += rank.drain()
        await asyncio.sleep(0.005)
    return messages


async def received(hub: Hub, rank: RankChannel) -> tuple[str, FromRank]:
    """Receive the hub's next message while the rank keeps draining."""
    task = asyncio.create_task(hub.recv())
    deadline = time.monotonic() + PATIENCE_S
    while not task.done():
        assert time.monotonic() < deadline, f"nothing came; hub dropped {hub.drops.counts}"
        assert rank.drain() == []
        await asyncio.sleep(0.005)
    return task.result()


async def dropped(hub: Hub, wanted: int, *ranks: RankChannel) -> None:
    """Let the hub listen until it has dropped so many frames; no message may come meanwhile."""
    task = asyncio.create_task(hub.recv())
    deadline = time.monotonic() + PATIENCE_S
    while hub.drops.total < wanted:
        assert time.monotonic() < deadline, f"only {hub.drops.counts} were dropped"
        assert not task.done(), f"unexpected {task.result()}"
        for rank in ranks:
            rank.drain()
        await asyncio.sleep(0.005)
    task.cancel()


def run(scene: Callable[[Hub], Coroutine[None, None, None]]) -> None:
    """Run a scene with a hub in an event loop of its own."""

    async def play() -> None:
        hub = Hub(SECRET)
        try:
            await asyncio.wait_for(scene(hub), 20)
        finally:
            hub.close(linger_s=0)

    asyncio.run(play())


def test_messages_go_both_ways_in_order(address: str, ranks: Callable[..., RankChannel]) -> None:
    async def scene(hub: Hub) -> None:
        rank = ranks()
        rank.connect(hub.bind(address))
        rank.send(hello())
        for number in range(50):
            rank.send(failed(number))
        assert await received(hub, rank) == ("prefill-0", hello())
        assert [await received(hub, rank) for _ in range(50)] == [("prefill-0", failed(n)) for n in range(50)]
        sent = [Cancel(sequence_ids=[number]) for number in range(50)]
        for message in sent:
            hub.send("prefill-0", message)
        assert await drained(rank, 50) == sent
        assert hub.drops.total == rank.drops.total == 0

    run(scene)


def test_a_rank_may_connect_before_the_hub_listens(tmp_path: Path, ranks: Callable[..., RankChannel]) -> None:
    async def scene(hub: Hub) -> None:
        rank = ranks()
        rank.connect(f"ipc://{tmp_path}/control")
        rank.send(hello())
        await asyncio.sleep(0.05)
        hub.bind(f"ipc://{tmp_path}/control")
        assert await received(hub, rank) == ("prefill-0", hello())

    run(scene)


def test_a_message_to_a_rank_that_is_not_connected_says_so(tmp_path: Path, ranks: Callable[..., RankChannel]) -> None:
    async def scene(hub: Hub) -> None:
        rank = ranks("decode-1")
        rank.connect(hub.bind(f"ipc://{tmp_path}/control"))
        rank.send(hello())
        await received(hub, rank)
        with pytest.raises(RankDied, match=r"rank prefill-7 is not connected \(connected: decode-1\)"):
            hub.send("prefill-7", Cancel(sequence_ids=[]))
        assert hub.identities() == ["decode-1"]

    run(scene)


def test_a_restarted_rank_gets_nothing_that_was_meant_for_the_dead_one(
    tmp_path: Path, ranks: Callable[..., RankChannel]
) -> None:
    async def scene(hub: Hub) -> None:
        endpoint = hub.bind(f"ipc://{tmp_path}/control")
        dead, living = ranks(), ranks()
        dead.connect(endpoint)
        dead.send(hello(pid=1))
        await received(hub, dead)
        for number in range(20):
            hub.send("prefill-0", Cancel(sequence_ids=[number]))
        living.connect(endpoint)
        living.send(hello(pid=2))
        assert await received(hub, living) == ("prefill-0", hello(pid=2))
        hub.send("prefill-0", Shutdown())
        assert await drained(living, 1) == [Shutdown()]
        await asyncio.sleep(0.05)
        assert living.drain() == []

    run(scene)


def test_what_a_replaced_or_retired_session_still_sends_is_dropped(
    tmp_path: Path, ranks: Callable[..., RankChannel]
) -> None:
    async def scene(hub: Hub) -> None:
        endpoint = hub.bind(f"ipc://{tmp_path}/control")
        old, new = ranks(), ranks()
        for rank, pid in ((old, 1), (new, 2)):
            rank.connect(endpoint)
            rank.send(hello(pid=pid))
            await received(hub, rank)
        old.send(failed(1))
        old.send(hello(pid=1))
        await dropped(hub, 2)
        new.send(failed(2))
        assert await received(hub, new) == ("prefill-0", failed(2))
        hub.retire("prefill-0")
        new.send(failed(3))
        await dropped(hub, 3)
        third = ranks()
        third.connect(endpoint)
        third.send(hello(pid=3))
        assert await received(hub, third) == ("prefill-0", hello(pid=3))
        assert hub.drops.total == 3
        with pytest.raises(RankDied):
            hub.send("prefill-9", Cancel(sequence_ids=[]))

    run(scene)


def test_a_rank_says_hello_again_to_a_new_hub(tmp_path: Path, ranks: Callable[..., RankChannel]) -> None:
    async def play() -> None:
        rank = ranks()
        first = Hub(SECRET)
        rank.connect(first.bind(f"ipc://{tmp_path}/control"))
        rank.send(hello())
        await received(first, rank)
        first.close(linger_s=0)
        second = Hub(SECRET)
        try:
            second.bind(f"ipc://{tmp_path}/control")
            rank.send(failed(1))
            assert await asyncio.wait_for(received(second, rank), 10) == ("prefill-0", hello())
            assert rank.hub_changes == 1
            second.send("prefill-0", Cancel(sequence_ids=[]))
            assert await drained(rank, 1) == [Cancel(sequence_ids=[])]
        finally:
            second.close(linger_s=0)

    asyncio.run(play())


def test_a_rank_with_another_secret_is_not_heard_and_hears_nothing(
    tmp_path: Path, ranks: Callable[..., RankChannel], caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(hub: Hub) -> None:
        endpoint = hub.bind(f"ipc://{tmp_path}/control")
        forger, rank = ranks("decode-0", Secret(bytes(32))), ranks()
        forger.connect(endpoint)
        forger.send(hello())
        with caplog.at_level(logging.WARNING):
            await dropped(hub, 1)
            rank.connect(endpoint)
            rank.send(hello())
            assert await received(hub, rank) == ("prefill-0", hello())
        assert hub.identities() == ["prefill-0"]
        assert hub.drops.total == 1
        assert "forged, damaged, or sealed with another deployment's secret" in caplog.text
        assert forger.drain() == []

    run(scene)


class Wire:
    """A DEALER without manners: sends whatever frames it is given under an address it chooses."""

    def __init__(self, endpoint: str, address: bytes) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, address)
        self.socket.connect(endpoint)
        self.address = address

    async def welcome(self) -> bytes:
        """Knock, and return the hub's number."""
        self.socket.send_multipart(seal(SECRET, self.address, Kind.KNOCK, counter=0))
        while not self.socket.poll(0):
            await asyncio.sleep(0.005)
        return self.socket.recv_multipart()[0][12:28]

    def close(self) -> None:
        self.socket.close(linger=0)
        self.context.term()


BAD_FRAMES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "truncated seal": lambda frames: [frames[0][:-1], frames[1]],
    "truncated payload": lambda frames: [frames[0], frames[1][:-1]],
    "no payload": lambda frames: [frames[0]],
    "a part too many": lambda frames: [*frames, b""],
    "other version": lambda frames: [frames[0][:2] + b"\x02" + frames[0][3:], frames[1]],
    "forged payload": lambda frames: [frames[0], frames[1][:-1] + b"\x7f"],
    "nothing": lambda _: [b""],
    "garbage": lambda _: [b"\xff" * 44, b"\xff" * 9],
}


@pytest.mark.parametrize("fault", BAD_FRAMES)
def test_a_bad_frame_is_dropped_and_counted_and_the_next_good_one_is_heard(tmp_path: Path, fault: str) -> None:
    async def scene(hub: Hub) -> None:
        wire = Wire(hub.bind(f"ipc://{tmp_path}/control"), b"prefill-0#" + b"5" * 32)
        listening = asyncio.create_task(hub.recv())
        try:
            echo = await wire.welcome()
            good = seal(SECRET, wire.address, Kind.UP, counter=1, echo=echo, payload=encode(hello()))
            wire.socket.send_multipart(BAD_FRAMES[fault](good))
            wire.socket.send_multipart(good)
            assert await listening == ("prefill-0", hello())
            assert hub.drops.total == 1
        finally:
            wire.close()

    run(scene)


def test_replayed_frames_and_messages_of_another_message_version_are_dropped(tmp_path: Path) -> None:
    async def scene(hub: Hub) -> None:
        wire = Wire(hub.bind(f"ipc://{tmp_path}/control"), b"prefill-0#" + b"5" * 32)
        listening = asyncio.create_task(hub.recv())
        try:
            echo = await wire.welcome()

            def up(counter: int, payload: bytes) -> list[bytes]:
                return seal(SECRET, wire.address, Kind.UP, counter=counter, echo=echo, payload=payload)

            first = up(1, encode(hello()))
            wire.socket.send_multipart(first)
            await listening
            wire.socket.send_multipart(first)
            wire.socket.send_multipart(up(2, b"\x00\x63" + encode(failed(1))[2:]))
            wire.socket.send_multipart(up(3, b""))
            wire.socket.send_multipart(up(4, encode(Cancel(sequence_ids=[]))))
            wire.socket.send_multipart(up(5, encode(failed(2))))
            assert await hub.recv() == ("prefill-0", failed(2))
            reasons = " ".join(hub.drops.counts)
            assert hub.drops.total == 4
            assert "replayed" in reasons
            assert "message version" in reasons
            assert "malformed message" in reasons
        finally:
            wire.close()

    run(scene)


def test_frames_recorded_with_a_former_hub_are_worth_nothing(tmp_path: Path) -> None:
    async def scene(hub: Hub) -> None:
        wire = Wire(hub.bind(f"ipc://{tmp_path}/control"), b"prefill-0#" + b"5" * 32)
        listening = asyncio.create_task(hub.recv())
        try:
            recorded = seal(SECRET, wire.address, Kind.UP, counter=1, echo=b"h" * 16, payload=encode(hello(pid=666)))
            wire.socket.send_multipart(recorded)
            echo = await wire.welcome()
            wire.socket.send_multipart(
                seal(SECRET, wire.address, Kind.UP, counter=2, echo=echo, payload=encode(hello(pid=1)))
            )
            assert await listening == ("prefill-0", hello(pid=1))
        finally:
            wire.close()

    run(scene)


def test_a_session_begins_with_hello_and_nothing_else(tmp_path: Path, ranks: Callable[..., RankChannel]) -> None:
    async def scene(hub: Hub) -> None:
        rank = ranks()
        rank.connect(hub.bind(f"ipc://{tmp_path}/control"))
        rank.send(failed(1))
        rank.send(hello())
        assert await received(hub, rank) == ("prefill-0", hello())
        assert hub.drops.total == 1

    run(scene)


def test_a_peer_without_a_rank_address_is_dropped(tmp_path: Path, ranks: Callable[..., RankChannel]) -> None:
    async def scene(hub: Hub) -> None:
        endpoint = hub.bind(f"ipc://{tmp_path}/control")
        wires = [Wire(endpoint, name) for name in (b"nobody", b"\xff\xfe#00", b"#1")]
        rank = ranks()
        try:
            for wire in wires:
                wire.socket.send_multipart([b"hi"])
            await dropped(hub, 3)
            rank.connect(endpoint)
            rank.send(hello())
            assert await received(hub, rank) == ("prefill-0", hello())
            assert hub.drops.counts == {"peer without a rank's address": 3}
        finally:
            for wire in wires:
                wire.close()

    run(scene)


def test_closing_takes_no_longer_than_the_linger_when_nobody_listens(tmp_path: Path) -> None:
    rank = RankChannel(SECRET, "prefill-0")
    rank.connect(f"ipc://{tmp_path}/nobody")
    rank.send(hello())
    began = time.monotonic()
    rank.close(linger_s=0.2)
    assert time.monotonic() - began < 1.0


def test_an_address_that_cannot_be_used_is_named(tmp_path: Path, ranks: Callable[..., RankChannel]) -> None:
    async def scene(hub: Hub) -> None:
        long = f"ipc://{tmp_path}/{'x' * 120}"
        with pytest.raises(EngineError, match="cannot listen at"):
            hub.bind(long)
        with pytest.raises(EngineError, match="rank prefill-0 cannot connect to"):
            ranks().connect("carrier-pigeon://loft")

    run(scene)


@pytest.mark.parametrize("identity", ["", "a#b", "x" * 250])
def test_an_identity_zmq_cannot_carry_is_refused(identity: str) -> None:
    with pytest.raises(ValueError, match="identity"):
        RankChannel(SECRET, identity)


def test_control_sockets_carry_the_control_mark(ranks: Callable[..., RankChannel]) -> None:
    assert ranks().socket.getsockopt(zmq.TOS) == 48 * 4


def test_closing_the_hub_removes_its_socket_file_but_not_that_of_its_successor(tmp_path: Path) -> None:
    async def play() -> None:
        first, second = Hub(SECRET), Hub(SECRET)
        first.bind(f"ipc://{tmp_path}/control")
        second.bind(f"ipc://{tmp_path}/control")
        first.close(linger_s=0)
        assert (tmp_path / "control").exists()
        second.close(linger_s=0)
        assert not (tmp_path / "control").exists()

    asyncio.run(play())
