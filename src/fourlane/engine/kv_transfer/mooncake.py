"""KV through Mooncake's transfer engine: RDMA NICs, else its TCP. Peer to peer, without a metadata server.

The engine has threads of its own on both sides, which sleep while there is nothing to do. A chunk
is read in one piece into a buffer, and copied to its pages from there: the engine takes a request
for each run of bytes, which for scattered pages costs more than the copy, and it cannot take a
read back - what it still writes after that goes to a buffer and never to a page.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.engine.kv_transfer.library import Exposure
from fourlane.errors import EnvironmentMissing, TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MooncakeEngine", "MooncakeLibrary", "find_mooncake"]

_COMPLETED, _FAILED = 1, -1
_NO_BATCH = (0, -1, (1 << 64) - 1)
_LEAST_BUFFER = 1 << 20


def find_mooncake() -> str | None:
    """Return the name of the package with the engine; None if it is not installed. Imports nothing."""
    return "mooncake" if importlib.util.find_spec("mooncake") is not None else None


class MooncakeEngine:
    """An engine, and the buffers that it reads into. Ending one takes a second: one serves a rank all its life.

    Args:
        name: this rank, for messages.
        address: the IP address where peers find it.
        devices: RDMA devices to use; none: its TCP.

    Raises:
        EnvironmentMissing: Mooncake is not installed, or cannot be loaded.
        TransferError: it cannot be started.
    """

    def __init__(self, name: str, *, address: str, devices: Sequence[str] = ()) -> None:
        self.name = name
        self.uses_rdma = bool(devices)
        host = f"[{address}]" if ":" in address else address
        self.raw = _load().TransferEngine()
        # The third argument decides nothing: RDMA is taken where the devices are there, unless MC_FORCE_TCP is set.
        protocol = "rdma" if devices else "tcp"
        if self.raw.initialize(host, "P2PHANDSHAKE", protocol, ",".join(devices)):
            raise TransferError(f"{name}: Mooncake's engine cannot be started at {address}; its own log says why")
        self.segment = f"{host}:{self.raw.get_rpc_port()}"
        self._free: dict[int, list[np.ndarray]] = {}
        self._kept: list[np.ndarray] = []

    def register(self, address: int, size: int) -> None:
        """Make memory known to it.

        Raises:
            TransferError: it refuses.
        """
        if self.raw.register_memory(address, size):
            raise TransferError(
                f"{self.name}: Mooncake cannot register {size} bytes for KV; RDMA pins them, "
                "so allow locked memory (ulimit -l unlimited)"
            )

    def borrow(self, size: int) -> np.ndarray:
        """Return a buffer of at least so many bytes to read into."""
        rounded = max(_LEAST_BUFFER, 1 << (size - 1).bit_length())
        free = self._free.setdefault(rounded, [])
        if free:
            return free.pop()
        buffer = np.zeros(rounded, dtype=np.uint8)
        # Its TCP reads into any memory; what it does not know, nobody can write to from outside.
        if self.uses_rdma:
            self.register(buffer.ctypes.data, rounded)
        return buffer

    def give_back(self, buffer: np.ndarray) -> None:
        """Take back a buffer that nothing is read into any more."""
        self._free[buffer.nbytes].append(buffer)

    def keep(self, buffer: np.ndarray) -> None:
        """Keep a buffer that may still be read into as long as the engine lives."""
        self._kept.append(buffer)


class MooncakeLibrary:
    """Mooncake in this process. See `library.Library`."""

    name = "mooncake"
    needs_advancing = False

    def __init__(self, engine: MooncakeEngine) -> None:
        self._engine: MooncakeEngine | None = engine
        self._reads: set[_MooncakeRead] = set()
        self._exposed: list[int] = []

    @property
    def engine(self) -> MooncakeEngine:
        """Return the engine; not after `close`."""
        assert self._engine is not None, "the library is closed"
        return self._engine

    def expose(self, address: int, size: int) -> Exposure:
        """Register memory and return what a reader needs."""
        self.engine.register(address, size)
        self._exposed.append(address)
        return Exposure(library=self.name, description=self.engine.segment.encode(), address=address, size=size)

    def use(self, address: int, size: int) -> None:
        """Do nothing: reads go through buffers of its own."""

    def connect(self, exposure: Exposure) -> _MooncakePeer:
        """Note where a process is; the connection is made with the first read."""
        return _MooncakePeer(self, exposure)

    def advance(self) -> None:
        """Do nothing: the engine has threads."""

    def stop_reads(self) -> None:
        """Give all reads up; their buffers are not used again."""
        for read in list(self._reads):
            read.give_up()

    def close(self) -> None:
        """Give memory back, and let go of the engine, which ends with its last user."""
        self.stop_reads()
        if self._engine is not None:
            for address in self._exposed:
                self._engine.raw.unregister_memory(address)
        self._engine = None

    def begun(self, read: _MooncakeRead) -> None:
        """Note a read under way."""
        self._reads.add(read)

    def ended(self, read: _MooncakeRead) -> None:
        """Note that a read has ended."""
        self._reads.discard(read)


class _MooncakePeer:
    """A process with an engine. See `library.Peer`."""

    def __init__(self, library: MooncakeLibrary, exposure: Exposure) -> None:
        self._library = library
        self._exposure = exposure
        self._segment = exposure.description.decode(errors="replace")

    def read(self, offset: int, spans: Sequence[tuple[int, int]]) -> _MooncakeRead:
        """Begin to read, as one request."""
        engine = self._library.engine
        size = sum(size for _, size in spans)
        buffer = engine.borrow(size)
        source = self._exposure.address + offset
        batch = engine.raw.batch_transfer_async_read(self._segment, [buffer.ctypes.data], [source], [size])
        if batch in _NO_BATCH:
            engine.give_back(buffer)
            raise TransferError(f"Mooncake could not begin to read from {self._segment}")
        return _MooncakeRead(self._library, batch, buffer, spans)

    def close(self) -> None:
        """Do nothing: the engine keeps its connections."""


class _MooncakeRead:
    """A request under way. See `library.Read`."""

    def __init__(
        self, library: MooncakeLibrary, batch: int, buffer: np.ndarray, spans: Sequence[tuple[int, int]]
    ) -> None:
        self._library = library
        self._batch = batch
        self._buffer = buffer
        self._spans = spans
        self._over: str | None = None
        library.begun(self)

    def done(self) -> bool:
        """Ask how far it is; what has come is copied to where it belongs. After its end the engine is not asked."""
        if self._over is None:
            status = self._library.engine.raw.transfer_check_status(self._batch)
            if status not in (_COMPLETED, _FAILED):
                return False
            self._library.ended(self)
            self._over = "" if status == _COMPLETED else "Mooncake lost the read"
            if not self._over:
                self._scatter()
            self._library.engine.give_back(self._buffer)
        if self._over:
            raise TransferError(self._over)
        return True

    def give_up(self) -> None:
        """End it for us, whatever the engine still does."""
        self._over = "Mooncake did not end the read"
        self._library.ended(self)
        self._library.engine.keep(self._buffer)

    def _scatter(self) -> None:
        done = 0
        for address, size in self._spans:
            _bytes_at(address, size)[:] = self._buffer[done : done + size]
            done += size


class _Memory:
    """Memory by address, for NumPy."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _bytes_at(address: int, size: int) -> np.ndarray:
    return np.asarray(_Memory(address, size))


def _load() -> Any:
    if find_mooncake() is None:
        raise EnvironmentMissing('kv_transfer.transport: Mooncake is not installed; pip install "fourlane[mooncake]"')
    try:
        return importlib.import_module("mooncake.engine")
    except ImportError as error:
        raise EnvironmentMissing(
            f"kv_transfer.transport: Mooncake cannot be loaded: {error}; it needs libibverbs even for TCP "
            "(Debian and Ubuntu: apt-get install libibverbs1)"
        ) from error
