"""Connections on lanes: marked, logged in one line, counted; and the interfaces they take."""

from __future__ import annotations

import logging
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import zmq

from fourlane.engine.control_lane import ConnectionWatch
from fourlane.lanes.connections import LaneBook, LikeConnections
from fourlane.lanes.interfaces import UNKNOWN, addresses_here, interface_between, interface_of
from fourlane.lanes.marking import LaneMark, default_marks
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        closing(socket.create_connection(server.getsockname(), timeout=5)) as client,
    ):
        accepted, _ = server.accept()
        with closing(accepted):
            yield client, accepted


def test_a_connection_is_logged_in_one_line_and_counted(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    marks = default_marks() | {TrafficClass.KV: LaneMark(TrafficClass.KV, 10, 3, 42)}
    book = LaneBook(marks, owner="prefill-0")
    with caplog.at_level(logging.INFO, "fourlane.lanes"):
        for sock in pair:
            assert book.end(TrafficClass.KV).opened(sock).complete
    (here, port), (there, peer_port) = pair[0].getsockname(), pair[0].getpeername()
    said = f"prefill-0: lane kv: {here}:{port} -> {there}:{peer_port} on lo, DSCP 10, priority 3"
    assert next(record.getMessage() for record in caplog.records) == said
    assert book.opened() == [LikeConnections(TrafficClass.KV, "lo", 10, 3, complete=True, connections=2)]
    assert pair[0].getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 40


def test_a_mark_that_the_kernel_refused_is_a_warning_that_says_what_was_wanted(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "SO_PRIORITY")
    book = LaneBook()
    assert not book.end(TrafficClass.EXPERT).opened(pair[0]).complete
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "marked incomplete: DSCP 46, priority 5 wanted; SO_PRIORITY: this system has none" in record.getMessage()
    assert [(like.priority, like.complete) for like in book.opened()] == [(None, False)]


def test_a_unix_socket_is_no_connection_of_a_lane() -> None:
    book = LaneBook()
    one, other = socket.socketpair()
    with closing(one), closing(other):
        book.end(TrafficClass.CONTROL).opened(one)
    assert book.opened() == []


def test_both_ends_of_a_zeromq_connection_are_marked_and_counted() -> None:
    book = LaneBook(owner="gateway")
    with zmq.Context() as context, context.socket(zmq.PULL) as bell, context.socket(zmq.PUSH) as rope:
        watches = [ConnectionWatch(sock, book.end(TrafficClass.CONTROL)) for sock in (bell, rope)]
        watches[0].begin("tcp://127.0.0.1:*")
        bell.bind("tcp://127.0.0.1:*")
        endpoint = bell.getsockopt_string(zmq.LAST_ENDPOINT)
        watches[1].begin(endpoint)
        rope.connect(endpoint)
        rope.send(b"ring")
        assert bell.poll(5000)
        for watch in watches:
            watch.drain()
            watch.close()
        rope.close(linger=0)
    assert book.opened() == [LikeConnections(TrafficClass.CONTROL, "lo", 48, 6, complete=True, connections=2)]


def test_loopback_and_what_stays_on_this_host_is_lo() -> None:
    assert interface_of("127.0.0.1") == interface_of("127.7.7.7") == interface_of("::1") == "lo"
    assert interface_between("127.0.0.1", "127.0.0.1") == "lo"
    for address in addresses_here():
        assert interface_between(address, address) == "lo", "what a host sends to itself never leaves it"


def test_addresses_of_this_host_have_the_interfaces_that_the_kernel_names() -> None:
    found = addresses_here()
    assert found["127.0.0.1"] == "lo"
    assert set(found.values()) <= {name for _, name in socket.if_nameindex()}


def test_an_address_of_another_host_has_no_interface_here() -> None:
    assert interface_of("192.0.2.1") is None
    assert interface_between("192.0.2.1", "198.51.100.1") == UNKNOWN
    assert interface_between("", "") == UNKNOWN
