"""How the ranks of a group on one host come to each other's shared memory.

Every rank listens on a UNIX socket without a file and leaves its name in the group's store. A rank
connects to those before it and then lets in those after it, so nobody waits in a circle. Once both have
proven who they are, each passes the descriptor of its segment. The connections stay open and are never
written to again: that one hangs up is how its peers learn that a rank is gone.
"""

from __future__ import annotations

import array
import logging
import os
import resource
import secrets
import socket
import struct
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch.distributed as dist

from fourlane._native import SharedExchange, SharedSegment
from fourlane.engine.exchange.greeting import NONCE_BYTES, Party, admit, introduce
from fourlane.engine.exchange.meeting import first_sentence, names_of, open_store, tell_in_store
from fourlane.errors import MemoryShortage, PeerLost, ProtocolError, SpecError

if TYPE_CHECKING:
    from fourlane.engine.exchange.meeting import GroupAddress
    from fourlane.engine.seal import Secret

__all__ = ["BUFFER_BYTES", "GATHER_BYTES", "Meeting", "meet"]

_log = logging.getLogger(__name__)
VERSION = 1
GATHER_BYTES = 1 << 20
"""What a rank can give to all at once."""
BUFFER_BYTES = 4 << 30
"""Addresses of one buffer, not memory: that grows with what is written."""
_BUFFERS = 6
_GREETING_S = 5.0
"""How long one stranger at the door may keep the others waiting."""


class _Seat(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rank listens. `host` tells hosts apart; `room` is the largest buffer its limits allow."""

    version: int
    host: str
    name: str
    room: int
    session: bytes


class Meeting(msgspec.Struct, frozen=True):
    """The group's shared memory. `segment` is this rank's own, `room` bytes fit in a buffer of every rank."""

    exchange: SharedExchange
    segment: SharedSegment
    room: int
    store: dist.Store
    """Kept, because one of TCP lives in rank 0 and others may still read from it."""


def meet(address: GroupAddress, secret: Secret) -> Meeting:
    """Share memory with every other rank of a group; blocks until all are there.

    Args:
        address: where and with whom.
        secret: by which the ranks know each other.

    Raises:
        PeerLost: not all ranks came within `address.join_s`; names those that did not.
        SpecError: the ranks are not on one host.
        MemoryShortage: this process may not have or map the segments.
    """
    deadline = time.monotonic() + address.join_s
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener, ExitStack() as opened:
        name = f"fourlane-exchange-{secrets.token_hex(8)}"
        listener.bind(f"\0{name}")
        listener.listen(address.ranks)
        try:
            store = open_store(address)
            told = tell_in_store(store, address, _seat(name, address.ranks), topic="shared memory", deadline=deadline)
        except (RuntimeError, dist.DistStoreError) as error:
            raise PeerLost(address.absent(first_sentence(error))) from error
        seats = [_read_seat(text, rank) for rank, text in enumerate(told)]
        _check_host(seats, address)
        room = min(seat.room for seat in seats)
        own = _make_segment(address, room)
        me = Party(address.rank, address.ranks, seats[0].session, secret)
        peers: dict[int, socket.socket] = {}
        for rank in range(address.rank):
            peers[rank] = opened.enter_context(_connect(address, seats[rank], me, rank, deadline))
        while missing := [rank for rank in range(address.rank + 1, address.ranks) if rank not in peers]:
            sock = opened.enter_context(_accept(listener, address, missing, deadline))
            rank = _admitted(sock, me, deadline)
            if rank is not None:
                peers[rank] = sock
        segments = [
            own if rank == address.rank else _swap(peers[rank], own, address, rank, deadline)
            for rank in range(address.ranks)
        ]
        own.close_descriptor()
        return Meeting(_exchange(address, segments, peers), own, room, store)


def _exchange(address: GroupAddress, segments: list[SharedSegment], peers: dict[int, socket.socket]) -> SharedExchange:
    """Return the exchange, which owns descriptors of its own: of the connections, and of the processes."""
    ranks = range(address.ranks)
    processes = [_process(peers[rank]) if rank in peers else -1 for rank in ranks]
    sockets = [os.dup(peers[rank].fileno()) if rank in peers else -1 for rank in ranks]
    return SharedExchange(address.rank, segments, sockets, processes)


def _process(sock: socket.socket) -> int:
    """Return a pidfd of the process at the other end, or -1 where it cannot be had.

    A child that a rank has forked may hold the rank's end of the connection open after its death.
    """
    pid, _, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    try:
        return os.pidfd_open(pid) if pid > 0 else -1
    except OSError:
        return -1


def _seat(name: str, ranks: int) -> str:
    mine = _Seat(version=VERSION, host=_host(), name=name, room=_room(ranks), session=secrets.token_bytes(NONCE_BYTES))
    return msgspec.json.encode(mine).decode()


def _read_seat(data: bytes, rank: int) -> _Seat:
    try:
        seat = msgspec.json.decode(data, type=_Seat)
    except msgspec.MsgspecError as error:
        raise PeerLost(f"rank {rank} told something else than where it listens: {error}") from error
    if seat.version != VERSION:
        raise PeerLost(
            f"rank {rank} speaks version {seat.version} of the shared-memory exchange, expected {VERSION}; "
            "run one version of fourlane everywhere"
        )
    return seat


def _host() -> str:
    """Return what tells this host, as it has been running, from all others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _room(ranks: int) -> int:
    """Return the largest buffer that this process's limits of address space and file size allow, in whole pages."""
    room = BUFFER_BYTES
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        # Half of it for the segments, of which every rank maps all.
        room = min(room, space // (2 * ranks * _BUFFERS))
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest != resource.RLIM_INFINITY:
        room = min(room, (largest - (GATHER_BYTES + (1 << 20)) * 4) // _BUFFERS)
    return max(0, room) // resource.getpagesize() * resource.getpagesize()


def _check_host(seats: list[_Seat], address: GroupAddress) -> None:
    elsewhere = [rank for rank, seat in enumerate(seats) if seat.host != seats[address.rank].host]
    if elsewhere:
        raise SpecError(
            f"exchange.implementation: shared_memory needs all ranks of a group on one host, and {names_of(elsewhere)} "
            f'{"are" if len(elsewhere) > 1 else "is"} on another than rank {address.rank}; use "tcp"'
        )


def _make_segment(address: GroupAddress, room: int) -> SharedSegment:
    try:
        return SharedSegment.make(address.ranks, GATHER_BYTES, room)
    except RuntimeError as error:
        raise _shortage(address, error) from error


def _shortage(address: GroupAddress, error: Exception) -> MemoryShortage:
    return MemoryShortage(
        f"rank {address.rank}: shared memory of the exchange cannot be had: {error}; raise the limits of address "
        'space and file size (ulimit -v, ulimit -f), or use exchange.implementation = "tcp"'
    )


def _connect(address: GroupAddress, seat: _Seat, me: Party, rank: int, deadline: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect(f"\0{seat.name}")
        introduce(sock, me, rank, deadline=deadline)
    except (OSError, ProtocolError) as error:
        sock.close()
        raise PeerLost(
            address.absent(
                f"no connection to rank {rank} on this host: {error}; ranks that share memory must be in one "
                'network namespace, others use "tcp"'
            )
        ) from error
    return sock


def _accept(listener: socket.socket, address: GroupAddress, missing: list[int], deadline: float) -> socket.socket:
    try:
        listener.settimeout(max(0.001, deadline - time.monotonic()))
        return listener.accept()[0]
    except OSError as error:
        raise PeerLost(address.absent(f"absent: {names_of(missing)}: {error}")) from error


def _admitted(sock: socket.socket, me: Party, deadline: float) -> int | None:
    """Return the rank of who connected; a stranger is sent away (None) and holds nobody up for long."""
    try:
        return admit(sock, me, deadline=min(deadline, time.monotonic() + _GREETING_S))
    except (OSError, ProtocolError) as error:
        _log.warning("exchange: sent away somebody on this host: %s", error)
        sock.close()
        return None


def _swap(sock: socket.socket, own: SharedSegment, address: GroupAddress, rank: int, deadline: float) -> SharedSegment:
    """Pass our segment to a peer and map its own."""
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.sendmsg([b"S"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [own.descriptor]))])
        said, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        sock.settimeout(None)
    except OSError as error:
        raise PeerLost(address.absent(f"rank {rank} passed no shared memory: {error}")) from error
    if said != b"S" or len(descriptors) != 1:
        raise PeerLost(address.absent(f"rank {rank} passed no shared memory"))
    try:
        return SharedSegment.map(descriptors[0], address.ranks)
    except RuntimeError as error:
        raise _shortage(address, error) from error
    finally:
        os.close(descriptors[0])
