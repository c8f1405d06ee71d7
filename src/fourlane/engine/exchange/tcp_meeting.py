"""How the ranks of a group get TCP connections to each other: one a pair, both ends proven.

Every rank listens on its address and leaves the endpoint in the group's store. A rank connects to
those before it and then lets in those after it, so nobody waits in a circle.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch.distributed as dist

from fourlane.engine.exchange.greeting import NONCE_BYTES, Party, admit, introduce
from fourlane.engine.exchange.meeting import first_sentence, names_of, open_store, tell_in_store
from fourlane.errors import PeerLost, ProtocolError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.seal import Secret
    from fourlane.lanes.marking import Mark

__all__ = ["Meeting", "meet"]

_log = logging.getLogger(__name__)
VERSION = 1
_GREETING_S = 5.0
"""How long one stranger at the door may keep the others waiting."""


class _Seat(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rank listens. `session`: drawn anew each time; that of rank 0 names the meeting."""

    version: int
    address: str
    port: int
    session: bytes


@dataclass(frozen=True, slots=True)
class Meeting:
    """Connections to all ranks of a group, by rank; None in the place of this one."""

    sockets: list[socket.socket | None]
    marks: list[Mark]
    store: dist.Store | None
    """Kept, because one of TCP lives in rank 0 and others may still read from it."""


def meet(address: GroupAddress, secret: Secret, *, tell_all: Callable[[str], list[str]] | None = None) -> Meeting:
    """Connect to every other rank of a group; blocks until all are there.

    Args:
        address: where and with whom.
        secret: by which the ranks know each other.
        tell_all: gives all ranks a text, and this one everybody's, where the ranks have met already; None:
            they meet at the store.

    Raises:
        PeerLost: not all ranks came within `address.join_s`; names those that did not.
        SpecError: this host does not have `address.address`.
    """
    deadline = time.monotonic() + address.join_s
    listener = _listen(address)
    with closing(listener), ExitStack() as opened:
        store = None
        if tell_all is not None:
            seats = [_read_seat(text, rank) for rank, text in enumerate(tell_all(_seat(listener)))]
        else:
            try:
                store = open_store(address)
                told = tell_in_store(store, address, _seat(listener), topic="tcp exchange", deadline=deadline)
                seats = [_read_seat(text, rank) for rank, text in enumerate(told)]
            except (RuntimeError, dist.DistStoreError) as error:
                raise PeerLost(address.absent(first_sentence(error))) from error
        me = Party(address.rank, address.ranks, seats[0].session, secret)
        sockets: list[socket.socket | None] = [None] * address.ranks
        marks: list[Mark] = []
        for rank in range(address.rank):
            sock = opened.enter_context(_socket(address.address))
            _connect(sock, address, seats[rank], me, rank, deadline)
            marks.append(address.lane.opened(sock))
            sockets[rank] = sock
        while missing := [rank for rank in range(address.rank + 1, address.ranks) if sockets[rank] is None]:
            sock = opened.enter_context(_accept(listener, address, missing, deadline))
            address.lane.mark(sock)
            rank = _admitted(sock, me, deadline)
            if rank is not None:
                marks.append(address.lane.opened(sock))
                sockets[rank] = sock
        opened.pop_all()
    return Meeting(sockets, marks, store)


def _seat(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    mine = _Seat(version=VERSION, address=host, port=port, session=secrets.token_bytes(NONCE_BYTES))
    return msgspec.json.encode(mine).decode()


def _read_seat(data: bytes | str, rank: int) -> _Seat:
    try:
        seat = msgspec.json.decode(data, type=_Seat)
    except msgspec.MsgspecError as error:
        raise PeerLost(f"rank {rank} told something else than where it listens: {error}") from error
    if seat.version != VERSION:
        raise PeerLost(
            f"rank {rank} speaks version {seat.version} of the exchange, expected {VERSION}; "
            "run one version of fourlane everywhere"
        )
    return seat


def _connect(sock: socket.socket, address: GroupAddress, seat: _Seat, me: Party, rank: int, deadline: float) -> None:
    try:
        address.lane.mark(sock)
        sock.bind((address.address, 0))
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect((seat.address, seat.port))
        introduce(sock, me, rank, deadline=deadline)
    except (OSError, ProtocolError) as error:
        where = f"rank {rank} at {seat.address}, port {seat.port}"
        raise PeerLost(address.absent(f"no connection from {address.address} to {where}: {error}")) from error


def _accept(listener: socket.socket, address: GroupAddress, missing: list[int], deadline: float) -> socket.socket:
    try:
        listener.settimeout(max(0.001, deadline - time.monotonic()))
        sock = listener.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise PeerLost(address.absent(f"absent: {names_of(missing)}: {error}")) from error
    return sock


def _admitted(sock: socket.socket, me: Party, deadline: float) -> int | None:
    """Return the rank of who connected; a stranger is sent away (None) and holds nobody up for long."""
    try:
        return admit(sock, me, deadline=min(deadline, time.monotonic() + _GREETING_S))
    except (OSError, ProtocolError) as error:
        _log.warning("exchange: sent away %s: %s", _peer(sock), error)
        sock.close()
        return None


def _listen(address: GroupAddress) -> socket.socket:
    listener = _socket(address.address)
    try:
        address.lane.mark(listener)
        listener.bind((address.address, 0))
        listener.listen()
    except OSError as error:
        listener.close()
        raise SpecError(
            f"exchange.address: cannot listen at {address.address}: {error.strerror}; give the IP address of the "
            "interface of this host that expert traffic shall use"
        ) from error
    return listener


def _socket(address: str) -> socket.socket:
    """Return a socket of an address's family, from which small messages leave at once."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _peer(sock: socket.socket) -> str:
    try:
        return "{}, port {}".format(*sock.getpeername()[:2])
    except OSError:
        return "somebody who is gone"
