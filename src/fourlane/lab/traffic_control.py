"""Attach a loaded eBPF program to a port's egress, over rtnetlink.

tc(8) can do the same only for object files and pinned programs; this takes the descriptor itself,
in any network namespace. Not for queues and classes: those are the lane plan's host rendering.

Source: Linux include/uapi/linux/{netlink,rtnetlink,pkt_sched,pkt_cls}.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from contextlib import closing
from typing import TYPE_CHECKING

from fourlane.errors import EnvironmentMissing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["add_classifier", "in_network_namespace", "remove_classifier"]

TIMEOUT_S = 5.0

_CLONE_NEWNET = 0x40000000
_ERROR = 2  # NLMSG_ERROR: also how success is told, with code 0
_NEW_QDISC, _NEW_FILTER, _DELETE_FILTER = 36, 44, 45
_REQUEST = 0x0001 | 0x0004  # request, acknowledge
_CREATE = _REQUEST | 0x0200 | 0x0400  # exclusive, create
_CLSACT_HANDLE, _CLSACT_PARENT, _EGRESS = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF3
_KIND, _OPTIONS = 1, 2
_BPF_DESCRIPTOR, _BPF_NAME, _BPF_FLAGS, _DIRECT_ACTION = 6, 7, 8, 1
_ALL_PROTOCOLS = 0x0300  # htons(ETH_P_ALL)


def add_classifier(namespace: Path | None, device: str, program: int, *, name: str, order: int) -> None:
    """Run a program for every packet that a device is about to queue, in direct-action mode.

    Args:
        namespace: file of the network namespace; None for this process's.
        device: in it.
        program: descriptor of a loaded classifier; may be closed afterwards.
        name: shown by `tc filter show`.
        order: preference among the device's egress filters, 1 to 65535; lower runs first.

    Raises:
        EnvironmentMissing: the namespace cannot be entered, or the kernel refuses.
    """

    def add() -> None:
        index = _index_of(device, namespace)
        with closing(_route_socket()) as route:
            _ask(route, _NEW_QDISC, _clsact(index), what=f"{device}: add clsact", allow=errno.EEXIST)
            _ask(route, _NEW_FILTER, _filter(index, program, name, order), what=f"{device}: add filter {name}")

    in_network_namespace(namespace, add)


def remove_classifier(namespace: Path | None, device: str, *, order: int) -> None:
    """Take away the filter that `add_classifier` put at `order`.

    Raises:
        EnvironmentMissing: the namespace or the device is gone, or there is no such filter.
    """

    def remove() -> None:
        target = _target(_index_of(device, namespace), 0, _EGRESS, order << 16 | _ALL_PROTOCOLS)
        with closing(_route_socket()) as route:
            what = f"{device}: remove filter {order}"
            _ask(route, _DELETE_FILTER, target + _text(_KIND, "bpf"), what=what, flags=_REQUEST)

    in_network_namespace(namespace, remove)


def in_network_namespace(namespace: Path | None, function: Callable[[], None]) -> None:
    """Call a function inside a network namespace: in a thread that enters it and ends afterwards.

    Args:
        namespace: such as /proc/PID/ns/net; None: call it here.
        function: sockets it opens belong to the namespace, for good.

    Raises:
        EnvironmentMissing: the namespace is gone or may not be entered.
        BaseException: what the function raised.
    """
    if namespace is None:
        function()
        return
    failures: list[BaseException] = []

    def run() -> None:
        try:
            _enter(namespace)
            function()
        except BaseException as failure:  # noqa: BLE001 - handed to the caller, who raises it
            failures.append(failure)

    thread = threading.Thread(target=run, name=f"in {namespace}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _enter(namespace: Path) -> None:
    try:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise EnvironmentMissing(f"{namespace}: cannot open the network namespace: {error.strerror}") from error
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise EnvironmentMissing(f"{namespace}: cannot enter the network namespace: {reason}")
    finally:
        os.close(descriptor)


def _index_of(device: str, namespace: Path | None) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError as error:
        raise EnvironmentMissing(f"{device}: no such device in {namespace or 'this namespace'}") from error


def _route_socket() -> socket.socket:
    route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    route.settimeout(TIMEOUT_S)
    return route


def _clsact(index: int) -> bytes:
    return _target(index, _CLSACT_HANDLE, _CLSACT_PARENT, 0) + _text(_KIND, "clsact")


def _filter(index: int, program: int, name: str, order: int) -> bytes:
    options = _number(_BPF_DESCRIPTOR, program) + _text(_BPF_NAME, name) + _number(_BPF_FLAGS, _DIRECT_ACTION)
    body = _target(index, 0, _EGRESS, order << 16 | _ALL_PROTOCOLS)
    return body + _text(_KIND, "bpf") + _attribute(_OPTIONS, options)


def _target(index: int, handle: int, parent: int, info: int) -> bytes:
    """Return a struct tcmsg."""
    return struct.pack("=BxxxiIII", socket.AF_UNSPEC, index, handle, parent, info)


def _attribute(kind: int, payload: bytes) -> bytes:
    padding = bytes(-len(payload) % 4)
    return struct.pack("=HH", 4 + len(payload), kind) + payload + padding


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _ask(route: socket.socket, message: int, body: bytes, *, what: str, allow: int = 0, flags: int = _CREATE) -> None:
    """Send a request and wait for the kernel's answer.

    Raises:
        EnvironmentMissing: it is neither success nor the error number `allow`.
    """
    route.send(struct.pack("=IHHII", 16 + len(body), message, flags, 1, 0) + body)
    answer = route.recv(65536)
    kind, code = struct.unpack_from("=H", answer, 4)[0], struct.unpack_from("=i", answer, 16)[0]
    if kind != _ERROR or code not in (0, -allow):
        raise EnvironmentMissing(f"cannot {what}: {os.strerror(-code) if kind == _ERROR else f'answer {kind}'}")
