"""Marks on sockets, read back from the kernel."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from fourlane.lanes.marking import mark_socket
from fourlane.spec.traffic import TrafficClass


@pytest.mark.parametrize("traffic_class", TrafficClass)
def test_an_ipv4_socket_holds_the_dscp_and_priority_of_its_class(traffic_class: TrafficClass) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
        mark = mark_socket(sock, traffic_class)
        assert mark.complete, mark
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == traffic_class.dscp * 4
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == traffic_class.priority


def test_an_ipv6_socket_is_marked_for_both_families() -> None:
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_STREAM)) as sock:
        mark = mark_socket(sock, TrafficClass.KV)
        assert mark.complete, mark
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 72


def test_both_ends_of_a_connection_can_be_marked() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        mark_socket(server, TrafficClass.KV)
        with closing(socket.create_connection(server.getsockname(), timeout=5)) as client:
            accepted, _ = server.accept()
            with closing(accepted):
                for end in (client, accepted):
                    assert mark_socket(end, TrafficClass.KV).complete


def test_a_unix_socket_says_that_it_carries_no_mark() -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        mark = mark_socket(sock, TrafficClass.KV)
        assert not mark.complete
        assert "UNIX socket carries no mark" in str(mark)


def test_what_the_kernel_refuses_is_told_and_not_raised() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.close()
    mark = mark_socket(sock, TrafficClass.KV)
    assert (mark.dscp, mark.priority) == (None, None)
    assert not mark.complete
    assert "IP_TOS: Bad file descriptor" in str(mark)
