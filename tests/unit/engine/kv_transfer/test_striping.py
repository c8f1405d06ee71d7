"""TCP over several addresses and streams: chunks over all of them, and on without those that fail."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
import torch
from kv_lanes import ADDRESSES, GEOMETRY, SECRET, Ending, Lane, eventually, make_kv, send_all
from test_wire import Wire, data

from fourlane.engine.kv_transfer.contract import Delivery, KvGeometry
from fourlane.engine.kv_transfer.frames import Header, Kind, Opening, pack
from fourlane.engine.kv_transfer.handshake import shake_hands
from fourlane.engine.kv_transfer.sender import Sender
from fourlane.engine.kv_transfer.tcp import TcpOutlet, places_of
from fourlane.engine.messages import KvAddress
from fourlane.errors import TransferError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.engine.kv_transfer.stream import Stream

PAGES = [5, 6]
LARGE = KvGeometry(layers=8, blocks=70, block_size=16, kv_heads=4, head_dim=64)


class Path:
    """A NIC between sender and receiver: counts what passes, can be cut, and can swallow everything."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.passed = 0
        self.swallows_after: int | None = None
        self.cut_after: int | None = None
        self._socks: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                self._socks += [near, far]
                for source, sink, onward in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._relay, args=(source, sink, onward), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, onward: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(1 << 14):
                self.passed += len(chunk) * onward
                if self.cut_after is not None and self.passed > self.cut_after:
                    break
                swallowed = 0 if self.swallows_after is None else max(0, self.passed - self.swallows_after)
                if kept := chunk[: max(0, len(chunk) - swallowed)] if onward or swallowed == 0 else b"":
                    sink.sendall(kept)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for sock in (self._server, *self._socks):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Paths:
    """A receiver behind two NICs, and a sender to it."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.paths = [Path(place) for place in places_of(lane.receiver.endpoint)]
        self.sender = Sender(LARGE, make_outlet=self._outlet, timeout_s=lane.timeout_s)
        lane.senders.append(self.sender)

    def _outlet(self, target: KvAddress) -> TcpOutlet:
        return TcpOutlet(
            target, geometry=LARGE, addresses=ADDRESSES, name="prefill-0", secret=SECRET, timeout_s=self.lane.timeout_s
        )

    def send(self, sequence_id: int, *, tokens: int = 1000) -> tuple[Stream, Ending, Ending, torch.Tensor]:
        kv = make_kv(tokens, LARGE, seed=sequence_id)
        arrived = self.lane.expect(sequence_id, list(range(-(-tokens // 16))), tokens)
        endpoint = "tcp://" + ",".join(path.place for path in self.paths)
        stream, sent = self.lane.open(self.sender, sequence_id, endpoint=endpoint)
        send_all(stream, kv, cuts=tuple(range(100, tokens, 100)))
        return stream, sent, arrived, kv

    def arrives(self, sequence_id: int) -> Delivery:
        _, sent, arrived, kv = self.send(sequence_id)
        assert arrived.wait() == 7
        delivery = sent.wait()
        assert torch.equal(self.lane.landed(list(range(63)), 1000), kv)
        assert isinstance(delivery, Delivery)
        return delivery


@pytest.fixture
def two_nics(make_lane: Callable[..., Lane]) -> Iterator[Callable[..., Paths]]:
    made: list[Paths] = []

    def make(timeout_s: float = 10.0) -> Paths:
        made.append(Paths(make_lane("tcp striped", LARGE, timeout_s=timeout_s)))
        return made[-1]

    yield make
    for nics in made:
        for path in nics.paths:
            path.close()


def test_kv_goes_over_every_nic(two_nics: Callable[..., Paths]) -> None:
    nics = two_nics()
    for number in range(4):
        nics.arrives(number)
    assert all(path.passed > 1 << 20 for path in nics.paths)


@pytest.mark.parametrize("after", [1000, 1 << 18, 1 << 20])
def test_a_nic_that_is_cut_in_the_middle_costs_nothing_but_speed(two_nics: Callable[..., Paths], after: int) -> None:
    nics = two_nics()
    nics.paths[1].cut_after = after
    for number in range(3):
        assert nics.arrives(number).bytes == 1000 * 8 * 2 * 1024
    assert nics.sender.bytes_sent() == 3 * 1000 * 8 * 2 * 1024
    assert len(nics.sender._links) == 1


def test_a_nic_that_swallows_everything_is_given_up_before_the_sequence_is(two_nics: Callable[..., Paths]) -> None:
    nics = two_nics(timeout_s=3.0)
    nics.arrives(0)
    nics.paths[0].swallows_after = nics.paths[0].passed + (1 << 18)
    began = time.monotonic()
    nics.arrives(1)
    assert time.monotonic() - began < 3
    assert nics.paths[0].passed > nics.paths[0].swallows_after, "nothing went over it, so nothing was tried"
    nics.arrives(2)


def test_a_nic_that_is_dead_from_the_beginning_is_done_without(two_nics: Callable[..., Paths]) -> None:
    nics = two_nics()
    nics.paths[0].close()
    nics.arrives(0)
    assert nics.paths[1].passed > 1000 * 8 * 2 * 1024


def test_a_nic_that_comes_back_is_used_again(two_nics: Callable[..., Paths], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourlane.engine.kv_transfer.sender._RECONNECT_S", 0.05)
    nics = two_nics()
    nics.paths[1].cut_after = 1 << 18
    nics.arrives(0)
    nics.paths[1].cut_after = None
    cut_at = nics.paths[1].passed
    deadline = time.monotonic() + 10
    for number in range(1, 1000):
        nics.arrives(number)
        if nics.paths[1].passed > cut_at + (1 << 20):
            return
        assert time.monotonic() < deadline, "it was never used again"


def test_when_every_nic_is_lost_both_sides_fail_and_say_which(two_nics: Callable[..., Paths]) -> None:
    nics = two_nics()
    for path in nics.paths:
        path.cut_after = 1 << 18
    _, sent, arrived, _ = nics.send(0)
    assert "KV to decode-0" in sent.failure()
    assert "prefill-0" in arrived.failure()
    assert "of 8 layers" in arrived.failure()


def test_when_every_nic_swallows_what_it_gets_both_sides_fail_within_the_timeout(
    two_nics: Callable[..., Paths],
) -> None:
    nics = two_nics(timeout_s=1.0)
    nics.arrives(0)
    for path in nics.paths:
        path.swallows_after = path.passed + 2000
    began = time.monotonic()
    _, sent, arrived, _ = nics.send(1, tokens=20)
    assert "no answer for 1 s while waiting for its chunks to be confirmed" in sent.failure()
    assert "nothing came from prefill-0" in arrived.failure()
    assert time.monotonic() - began < 4


def test_streams_multiply_the_connections_between_each_pair_of_addresses() -> None:
    target = KvAddress(endpoint="tcp://10.0.0.1:1,10.0.1.1:2", blocks=[], owner="decode-0")
    settings = {"geometry": GEOMETRY, "name": "prefill-0", "secret": SECRET, "timeout_s": 1}
    assert TcpOutlet(target, addresses=["127.0.0.1"], **settings).paths == 2
    assert TcpOutlet(target, addresses=["127.0.0.1"], streams=3, **settings).paths == 6


@pytest.mark.parametrize("endpoint", ["tcp://", "tcp://10.0.0.1", "tcp://10.0.0.1:1,"])
def test_an_endpoint_without_address_or_port_is_refused(endpoint: str) -> None:
    with pytest.raises(TransferError, match="expected scheme://ip:port"):
        places_of(endpoint)


@pytest.fixture
def wires(make_lane: Callable[..., Lane]) -> Iterator[tuple[Lane, Wire, Wire]]:
    """Two connections of one sender."""
    lane = make_lane("tcp")
    made = []
    for _ in range(2):
        wire = Wire(lane, greet=False)
        opening = Opening.of(GEOMETRY, name="prefill-9", transport="tcp", session="ab")
        shake_hands(wire.sock, SECRET, opening, timeout_s=10)
        wire.sock.settimeout(10)
        made.append(wire)
    with closing(made[0]), closing(made[1]):
        yield lane, made[0], made[1]


def test_a_chunk_sent_again_that_had_arrived_is_confirmed_and_not_written_twice(wires: tuple[Lane, Wire, Wire]) -> None:
    lane, first, second = wires
    arrived = lane.expect(1, PAGES, 8)
    header, payload = data()
    first.send(header, payload)
    assert first.answer()[0].kind == Kind.CHECKED
    first.close()
    second.send(header._replace(again=1), bytes(len(payload)))
    assert second.answer()[0].kind == Kind.CHECKED
    assert torch.equal(lane.landed(PAGES, 8)[0], make_kv(8)[0])
    for layer in (1, 2):
        second.send(*data(layer=layer))
    second.send(Header(Kind.FINISH, 1, first_token=3, tokens=8))
    assert arrived.wait() == 3


def test_a_first_copy_read_after_the_second_is_passed_over(wires: tuple[Lane, Wire, Wire]) -> None:
    lane, first, second = wires
    arrived = lane.expect(1, PAGES, 8)
    header, payload = data()
    second.send(header._replace(again=1), payload)
    assert second.answer()[0].kind == Kind.CHECKED
    first.send(header, bytes(len(payload)))  # as it was left in the buffers of a connection that is lost
    first.send(*data(layer=1))
    assert first.answer()[0].kind == Kind.CHECKED  # of layer 1: the copy is not answered
    assert torch.equal(lane.landed(PAGES, 8)[0], make_kv(8)[0])
    second.send(*data(layer=2))
    second.send(Header(Kind.FINISH, 1, first_token=3, tokens=8))
    assert arrived.wait() == 3


def test_a_sender_whose_only_connection_is_cut_may_come_over_its_second(make_lane: Callable[..., Lane]) -> None:
    lane = make_lane("tcp")
    arrived = lane.expect(1, PAGES, 8)
    opening = Opening.of(GEOMETRY, name="prefill-9", transport="tcp", session="ab")
    with closing(Wire(lane, greet=False)) as first:
        shake_hands(first.sock, SECRET, opening, timeout_s=10)
        first.send(*data())
    with closing(Wire(lane, greet=False)) as second:
        shake_hands(second.sock, SECRET, opening, timeout_s=10)
        for layer in (1, 2):
            second.send(*data(layer=layer))
        second.send(Header(Kind.FINISH, 1, first_token=3, tokens=8))
        assert arrived.wait() == 3


def test_a_sender_all_of_whose_connections_are_gone_is_given_up(wires: tuple[Lane, Wire, Wire]) -> None:
    lane, first, second = wires
    arrived = lane.expect(1, PAGES, 8)
    first.send(*data())
    first.close()
    second.close()
    assert "lost the connection to prefill-9" in arrived.failure()
    eventually(lambda: not lane.receiver._sessions)


def test_a_chunk_stuck_half_way_is_taken_from_the_connection_that_took_over(wires: tuple[Lane, Wire, Wire]) -> None:
    lane, first, second = wires
    arrived = lane.expect(1, PAGES, 8)
    header, payload = data()
    first.sock.sendall(pack(header) + payload[:100])
    eventually(lambda: bool((lane.storage.tensor != 0).any()))
    second.send(header._replace(again=1), payload)
    assert second.answer()[0].kind == Kind.CHECKED
    first.wait_for_end()
    for layer in (1, 2):
        second.send(*data(layer=layer))
    second.send(Header(Kind.FINISH, 1, first_token=3, tokens=8))
    assert arrived.wait() == 3
    assert torch.equal(lane.landed(PAGES, 8)[0], make_kv(8)[0])


def test_an_acknowledgement_lost_with_its_connection_is_given_again(wires: tuple[Lane, Wire, Wire]) -> None:
    lane, first, second = wires
    arrived = lane.expect(1, PAGES, 8)
    for layer in range(3):
        first.send(*data(layer=layer))
    finish = Header(Kind.FINISH, 1, first_token=3, tokens=8)
    first.send(finish)
    assert arrived.wait() == 3
    first.close()
    second.send(finish)
    assert second.answer()[0] == Header(Kind.ACK, 1)
    assert len(arrived.values) == 1


def test_a_chunk_that_comes_twice_without_being_declared_fails_the_sequence(wires: tuple[Lane, Wire, Wire]) -> None:
    lane, first, second = wires
    arrived = lane.expect(1, PAGES, 8)
    first.send(*data())
    assert first.answer()[0].kind == Kind.CHECKED
    second.send(*data())
    assert "came twice" in arrived.failure()
