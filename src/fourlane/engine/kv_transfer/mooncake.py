"""KV through Mooncake's transfer engine: RDMA NICs, else its TCP. Peer to peer, without a metadata server.

The engine has threads of its own on both sides, which sleep while there is nothing to do.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from fourlane.engine.kv_transfer.library import Exposure
from fourlane.errors import EnvironmentMissing, TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MooncakeLibrary", "find_mooncake", "start_engine"]

_COMPLETED, _UNDER_WAY, _FAILED = 1, 0, -1


def find_mooncake() -> str | None:
    """Return the name of the package with the engine; None if it is not installed. Imports nothing."""
    return "mooncake" if importlib.util.find_spec("mooncake") is not None else None


def start_engine(name: str, *, address: str, devices: Sequence[str] = ()) -> Any:
    """Load and start a transfer engine, listening at an address.

    Args:
        name: this rank, for messages.
        address: the IP address where peers find it.
        devices: RDMA devices to use; none: all it finds.

    Raises:
        EnvironmentMissing: Mooncake is not installed, or cannot be loaded.
        TransferError: it cannot be started.
    """
    if find_mooncake() is None:
        raise EnvironmentMissing('kv_transfer.transport: Mooncake is not installed; pip install "fourlane[mooncake]"')
    try:
        module = importlib.import_module("mooncake.engine")
    except ImportError as error:
        raise EnvironmentMissing(
            f"kv_transfer.transport: Mooncake cannot be loaded: {error}; it needs libibverbs even for TCP "
            "(Debian and Ubuntu: apt-get install libibverbs1)"
        ) from error
    engine = module.TransferEngine()
    host = f"[{address}]" if ":" in address else address
    if engine.initialize(host, "P2PHANDSHAKE", "tcp", ",".join(devices)):
        raise TransferError(f"{name}: Mooncake's engine cannot be started at {address}; its own log says why")
    return engine


class MooncakeLibrary:
    """Mooncake in this process. See `library.Library`.

    Args:
        name: this rank, for messages.
        engine: from `start_engine`. Destroying one takes a second, so one serves a rank as long as it lives.
        address: where it listens.
        rdma: it uses RDMA devices, which must know the memory that reads fill. Its TCP need not, and
            what it does not know nobody can write to from outside.
    """

    name = "mooncake"
    can_stop = False
    needs_advancing = False

    def __init__(self, name: str, engine: Any, *, address: str, rdma: bool) -> None:
        self._rank = name
        self._engine = engine
        self._rdma = rdma
        host = f"[{address}]" if ":" in address else address
        self._segment = f"{host}:{engine.get_rpc_port()}"
        self._registered: list[int] = []

    def expose(self, address: int, size: int) -> Exposure:
        """Register memory and return what a reader needs."""
        self._register(address, size)
        return Exposure(library=self.name, description=self._segment.encode(), address=address, size=size)

    def use(self, address: int, size: int) -> None:
        """Register memory where RDMA needs it."""
        if self._rdma:
            self._register(address, size)

    def _register(self, address: int, size: int) -> None:
        if self._engine.register_memory(address, size):
            raise TransferError(
                f"{self._rank}: Mooncake cannot register {size} bytes for KV; RDMA pins them, "
                "so allow locked memory (ulimit -l unlimited), or lower kv_memory"
            )
        self._registered.append(address)

    def connect(self, exposure: Exposure) -> _MooncakePeer:
        """Note where a process is; the connection is made with the first read."""
        return _MooncakePeer(self._engine, exposure)

    def advance(self) -> None:
        """Do nothing: the engine has threads."""

    def stop_reads(self) -> None:
        """Refuse: the engine ends reads by itself, after the time set in its environment."""
        raise TransferError("Mooncake cannot take back a read")

    def close(self) -> None:
        """Give memory back; the engine is the owner's."""
        for address in self._registered:
            self._engine.unregister_memory(address)
        self._registered.clear()


class _MooncakePeer:
    """A process with an engine. See `library.Peer`."""

    def __init__(self, engine: Any, exposure: Exposure) -> None:
        self._engine = engine
        self._exposure = exposure
        self._segment = exposure.description.decode(errors="replace")

    def read(self, offset: int, spans: Sequence[tuple[int, int]]) -> _MooncakeRead:
        """Begin to read, a batch a span: the engine tells how a batch's first task stands, and no more."""
        read = _MooncakeRead(self._engine, self._segment)
        source = self._exposure.address + offset
        for address, size in spans:
            read.begin(address, source, size)
            source += size
        return read

    def close(self) -> None:
        """Do nothing: the engine keeps its connections."""


class _MooncakeRead:
    """Batches under way. See `library.Read`."""

    def __init__(self, engine: Any, segment: str) -> None:
        self._engine = engine
        self._segment = segment
        self._batches: list[int] = []
        self._failure = ""

    def begin(self, address: int, source: int, size: int) -> None:
        """Submit one batch; a refusal is told by `done`, when what was submitted before has ended."""
        if self._failure:
            return
        batch = self._engine.batch_transfer_async_read(self._segment, [address], [source], [size])
        if batch in (0, -1, (1 << 64) - 1):
            self._failure = f"Mooncake could not begin to read from {self._segment}"
        else:
            self._batches.append(batch)

    def done(self) -> bool:
        """Ask for batches that have not ended; one that has must not be asked for again."""
        left: list[int] = []
        for batch in self._batches:
            status = self._engine.transfer_check_status(batch)
            if status == _FAILED:
                self._failure = f"Mooncake lost a read from {self._segment}"
            elif status != _COMPLETED:
                left.append(batch)
        self._batches = left
        if left:
            return False
        if self._failure:
            raise TransferError(self._failure)
        return True
