"""KV through NIXL's UCX backend: RDMA and elastic RDMA NICs, and, within a host or without such NICs, what UCX has.

The agent has no progress thread: that thread spins. It is advanced by the thread that owns it,
and only while something is being read; at rest it costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.engine.kv_transfer.library import Exposure
from fourlane.errors import EnvironmentMissing, TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NixlLibrary", "find_nixl"]

_log = logging.getLogger(__name__)
_PACKAGES = ("nixl", "nixl_cu12", "nixl_cu13")
_MEMORY = "DRAM"


def find_nixl() -> str | None:
    """Return the name of the NIXL package that is installed; None if there is none. Imports nothing."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is not None:
            return package
    return None


class NixlLibrary:
    """NIXL in this process. See `library.Library`.

    Args:
        name: this rank, for the agent's name and for messages.

    Raises:
        EnvironmentMissing: NIXL is not installed, or cannot be loaded.
        TransferError: it cannot be started.
    """

    name = "nixl"
    needs_advancing = True

    def __init__(self, name: str) -> None:
        self._rank = name
        self._api = _load()
        self._memory: list[tuple[int, int]] = []
        self._peers: list[_NixlPeer] = []
        self._start()

    def _start(self) -> None:
        try:
            config = self._api.nixl_agent_config(enable_prog_thread=False, backends=[])
            self._agent = self._api.nixl_agent(f"{self._rank}-{secrets.token_hex(4)}", config)
            self._agent.create_backend("UCX", {"ucx_error_handling_mode": "peer"})
        except Exception as error:  # the bindings raise classes of their own, without a common base
            raise TransferError(f"{self._rank}: NIXL's UCX backend cannot be started: {error}") from error
        self._registered = [self._register(address, size) for address, size in self._memory]

    def expose(self, address: int, size: int) -> Exposure:
        """Register memory and return what a reader needs."""
        self.use(address, size)
        return Exposure(library=self.name, description=self._agent.get_agent_metadata(), address=address, size=size)

    def use(self, address: int, size: int) -> None:
        """Register memory."""
        self._registered.append(self._register(address, size))
        self._memory.append((address, size))

    def connect(self, exposure: Exposure) -> _NixlPeer:
        """Load a process's metadata; the connection is made with the first read."""
        peer = _NixlPeer(self, exposure)
        peer.load()
        self._peers.append(peer)
        return peer

    def advance(self) -> None:
        """Progress the UCX worker."""
        self._agent.get_new_notifs()

    def stop_reads(self) -> None:
        """Destroy the agent, which nothing outlives, and make another: UCX cannot take back a single read."""
        self._stop()
        self._start()
        for peer in self._peers:
            peer.load_again()

    def close(self) -> None:
        """Destroy the agent."""
        self._stop()
        self._peers.clear()

    def _stop(self) -> None:
        for peer in self._peers:
            peer.drop_reads()
        for registered in self._registered:
            _quietly(self._agent.deregister_memory, registered)
        self._registered.clear()
        del self._agent

    def _register(self, address: int, size: int) -> Any:
        try:
            return self._agent.register_memory([(address, size, 0, "")], _MEMORY)
        except Exception as error:
            raise TransferError(
                f"{self._rank}: NIXL cannot register {size} bytes for KV: {error}; RDMA pins them, "
                "so allow locked memory (ulimit -l unlimited), or lower kv_memory"
            ) from error

    def forget(self, peer: _NixlPeer) -> None:
        """Drop a peer and its endpoint."""
        if peer in self._peers:
            self._peers.remove(peer)
            _quietly(self._agent.remove_remote_agent, peer.agent_name)

    @property
    def agent(self) -> Any:
        """Return the agent; another one after `stop_reads`."""
        return self._agent


class _NixlPeer:
    """A process whose agent metadata is loaded. See `library.Peer`."""

    def __init__(self, library: NixlLibrary, exposure: Exposure) -> None:
        self._library = library
        self._exposure = exposure
        self._reads: set[_NixlRead] = set()
        self._lost = ""
        self.agent_name = ""

    def load(self) -> None:
        """Tell the agent of the process."""
        try:
            name = self._library.agent.add_remote_agent(self._exposure.description)
        except Exception as error:
            raise TransferError(f"NIXL cannot connect with the peer's metadata: {error}") from error
        self.agent_name = name.decode() if isinstance(name, bytes) else str(name)

    def load_again(self) -> None:
        """Tell a new agent; a process that is gone by now is found out by the next read."""
        try:
            self.load()
        except TransferError as error:
            self._lost = str(error)

    def read(self, offset: int, spans: Sequence[tuple[int, int]]) -> _NixlRead:
        """Begin to read; spans of our memory become one list of descriptors."""
        if self._lost:
            raise TransferError(self._lost)
        agent = self._library.agent
        ours = np.zeros((len(spans), 3), dtype=np.uint64)
        ours[:, :2] = spans
        theirs = ours.copy()
        theirs[:, 0] = self._exposure.address + offset + np.cumsum(ours[:, 1], dtype=np.uint64) - ours[:, 1]
        try:
            handle = agent.initialize_xfer(
                "READ", agent.get_xfer_descs(ours, _MEMORY), agent.get_xfer_descs(theirs, _MEMORY), self.agent_name
            )
            read = _NixlRead(agent, handle, self._reads)
            read.begin()
        except TransferError:
            raise
        except Exception as error:
            raise TransferError(f"NIXL could not begin to read: {error}") from error
        return read

    def close(self) -> None:
        """Forget the process."""
        self._library.forget(self)

    def drop_reads(self) -> None:
        """Let go of reads whose agent is about to be destroyed."""
        for read in list(self._reads):
            read.drop()


class _NixlRead:
    """A transfer under way. See `library.Read`."""

    def __init__(self, agent: Any, handle: Any, under_way: set[_NixlRead]) -> None:
        self._agent = agent
        self._handle = handle
        self._under_way = under_way
        self._state = "PROC"
        under_way.add(self)

    def begin(self) -> None:
        """Post it; what is small enough is done when this returns."""
        try:
            self._take(self._agent.transfer(self._handle))
        except TransferError:
            raise
        except Exception as error:
            self._end("ERR")
            raise TransferError(f"NIXL could not begin to read: {error}") from error

    def done(self) -> bool:
        """Ask how far it is."""
        if self._state == "PROC":
            try:
                self._take(self._agent.check_xfer_state(self._handle))
            except TransferError:
                raise
            except Exception as error:
                self._end("ERR")
                raise TransferError(f"NIXL lost the read: {error}") from error
        if self._state == "DONE":
            return True
        if self._state == "ERR":
            raise TransferError("NIXL ended the read with an error")
        return False

    def drop(self) -> None:
        """Release the handle; whatever is asked next, it has failed."""
        self._end("ERR")

    def _take(self, state: str) -> None:
        if state != "PROC":
            self._end(state)
        if state == "ERR":
            raise TransferError("NIXL ended the read with an error")

    def _end(self, state: str) -> None:
        self._state = state
        self._under_way.discard(self)
        _quietly(self._agent.release_xfer_handle, self._handle)
        self._agent = self._handle = None


def _load() -> Any:
    package = find_nixl()
    if package is None:
        raise EnvironmentMissing('kv_transfer.transport: NIXL is not installed; pip install "fourlane[nixl]"')
    try:
        return importlib.import_module(f"{package}._api")
    except ImportError as error:
        raise EnvironmentMissing(f"kv_transfer.transport: NIXL ({package}) cannot be loaded: {error}") from error


def _quietly(call: Any, *arguments: Any) -> None:
    """Free something of NIXL's; what it says against that is of no consequence for us."""
    try:
        call(*arguments)
    except Exception as error:  # noqa: BLE001 - the bindings raise classes of their own
        _log.debug("NIXL: %s", error)
