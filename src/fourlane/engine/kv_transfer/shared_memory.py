"""KV between processes of one host: the sender writes into the receiver's cache.

The cache lies in anonymous memory (a memfd), which the receiver passes to senders that have shaken
hands; nothing is left behind whoever dies. Frames without payload go over a UNIX socket.

The sender writes to a sequence's pages between the receiver's GRANT and its own FINISH, ABORT or
STOPPED. In that time the receiver gives the pages to nobody else: a reservation that is forgotten
or has failed is released only when one of these has come, or the connection is gone - a sender
closes it, or dies, only after its last write.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import secrets
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.frames import Header, Kind, Opening
from fourlane.engine.kv_transfer.handshake import shake_hands
from fourlane.engine.kv_transfer.outlet import DirectOutlet
from fourlane.engine.kv_transfer.pages import Pages, SequencePages
from fourlane.engine.kv_transfer.receiver import Receiver
from fourlane.engine.kv_transfer.staging import Staging
from fourlane.errors import ProtocolError, SpecError, TransferError

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.contract import KvGeometry
    from fourlane.engine.kv_transfer.storage import KvStorage
    from fourlane.engine.kv_transfer.stream import Chunk
    from fourlane.engine.messages import KvAddress
    from fourlane.engine.seal import Secret

__all__ = ["SharedMemoryOutlet", "SharedMemoryReceiver", "shared_memory_receiver"]

_BACKLOG = 128
_MOST_PATH = 107
_CONNECT_TIMEOUT_S = 10.0


def shared_memory_receiver(
    storage: KvStorage, *, run_dir: Path, name: str, secret: Secret, timeout_s: float
) -> SharedMemoryReceiver:
    """Start a receiver that listens on a UNIX socket in the run folder.

    Args:
        storage: the cache whose pages are filled; allocated with `shared=True`.
        run_dir: a folder of ours.
        name, secret, timeout_s: see `Receiver`.

    Raises:
        SpecError: the run folder's path is too long for a socket.
        TransferError: the storage is not shared, or the socket cannot be made.
    """
    if storage.memfd is None:
        raise TransferError(f"{name}: shared_memory needs a KV cache in shared memory on CPU; use transport tcp")
    path = run_dir / f"kv-{name}-{secrets.token_hex(4)}"
    if len(os.fsencode(path)) > _MOST_PATH:
        raise SpecError(f"run folder {run_dir}: too long for a socket (at most {_MOST_PATH} bytes); take a shorter one")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise TransferError(f"{name}: cannot listen at {path}: {error}") from error
    receiver = SharedMemoryReceiver([listener], f"shm://{path}", storage, name=name, secret=secret, timeout_s=timeout_s)
    receiver.start()
    return receiver


class SharedMemoryReceiver(Receiver):
    """A receiver whose cache senders write to, and which removes its socket's file."""

    transport = "shared_memory"
    shares = True

    def close(self) -> None:
        """Stop the thread, close all sockets, remove the socket's file; what is still expected fails."""
        super().close()
        with suppress(FileNotFoundError):
            Path(self.endpoint.removeprefix("shm://")).unlink()


class SharedMemoryOutlet(DirectOutlet):
    """A sender's map of a receiver's cache. See `outlet.Outlet`."""

    needs_grant = True

    def __init__(self, target: KvAddress, *, geometry: KvGeometry, name: str, secret: Secret, timeout_s: float) -> None:
        self._target = target
        self._geometry = geometry
        self._opening = Opening.of(geometry, name=name, transport="shared_memory")
        self._secret = secret
        self._timeout_s = min(timeout_s, _CONNECT_TIMEOUT_S)
        self._staging = Staging()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._gate = threading.Lock()
        self._connected = False
        self._pages: Pages | None = None
        self._cache = np.empty(0, dtype=np.uint8)
        self._v_shift = 0

    def connect(self, path: int) -> socket.socket:  # noqa: ARG002 - there is one
        """Connect, shake hands, map the receiver's cache and return the socket."""
        try:
            self._sock.settimeout(self._timeout_s)
            self._sock.connect(self._target.endpoint.removeprefix("shm://"))
            verdict, memfd = shake_hands(self._sock, self._secret, self._opening, timeout_s=self._timeout_s)
            self._map(memfd, verdict.blocks)
            with self._gate:
                self._connected = True
        except OSError as error:
            raise TransferError(f"no connection to {self._target.endpoint}: {error or type(error).__name__}") from error
        return self._sock

    def grant(self, blocks: list[int]) -> SequencePages:
        """Return the receiver's pages with these numbers."""
        assert self._pages is not None
        if not blocks or max(blocks) >= self._pages.geometry.blocks:
            raise ProtocolError(f"{self._target.owner} granted pages it does not have")
        return SequencePages(self._pages, blocks)

    def put(self, sequence_id: int, chunk: Chunk, pages: SequencePages | None) -> list[memoryview]:
        """Write K and V into the receiver's pages; return the frame that says so."""
        assert pages is not None
        k, v = (self._staging.host_bytes(tensor, chunk.ready) for tensor in (chunk.k_THd, chunk.v_THd))
        tokens = chunk.k_THd.shape[0]
        room = len(pages.blocks) * self._geometry.block_size
        if chunk.first_token + tokens > room:
            raise ProtocolError(f"tokens {chunk.first_token} to {chunk.first_token + tokens}: only room for {room}")
        cache, shift, done = self._cache, self._v_shift, 0
        for start, end in pages.runs(chunk.layer, chunk.first_token, tokens):
            until = done + end - start
            cache[start:end] = k[done:until]
            cache[start + shift : end + shift] = v[done:until]
            done = until
        header = Header(
            Kind.LANDED,
            sequence_id,
            layer=chunk.layer,
            first_token=chunk.first_token,
            tokens=tokens,
            checksum=frames.checksum([k.data, v.data]),
        )
        return [memoryview(frames.pack(header))]

    def interrupt(self) -> None:
        """Make a `connect` under way in another thread fail.

        Later it does nothing: the receiver takes the end of the connection for the end of writing.
        """
        with self._gate, suppress(OSError):
            if not self._connected:
                self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Unmap the cache, then close the connection."""
        self._pages, self._cache = None, np.empty(0, dtype=np.uint8)
        self._sock.close()

    def _map(self, memfd: int | None, blocks: int) -> None:
        if memfd is None:
            raise ProtocolError(f"{self._target.owner} passed no memory")
        try:
            theirs = dataclasses.replace(self._geometry, blocks=blocks)
            if os.fstat(memfd).st_size != theirs.total_bytes:
                raise ProtocolError(
                    f"{self._target.owner}'s KV memory: expected {theirs.total_bytes} bytes, "
                    f"got {os.fstat(memfd).st_size}"
                )
            memory = mmap.mmap(memfd, theirs.total_bytes)
        finally:
            os.close(memfd)
        self._pages = Pages(memoryview(memory), theirs)
        self._cache = np.frombuffer(memory, dtype=np.uint8)
        self._v_shift = self._pages.v_shift
