"""A receiver and a sender of each transport, and what happened to their sequences."""

from __future__ import annotations

import functools
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from memory_library import MemoryLibrary

from fourlane.engine.kv_transfer.contract import KvGeometry
from fourlane.engine.kv_transfer.library import LibraryStart
from fourlane.engine.kv_transfer.library_env import KvNetwork, apply, mooncake_env, nixl_env
from fourlane.engine.kv_transfer.mooncake import MooncakeEngine, MooncakeLibrary, find_mooncake
from fourlane.engine.kv_transfer.nixl import NixlLibrary, find_nixl
from fourlane.engine.kv_transfer.offers import OfferOutlet
from fourlane.engine.kv_transfer.reader import library_receiver
from fourlane.engine.kv_transfer.sender import Sender
from fourlane.engine.kv_transfer.shared_memory import SharedMemoryOutlet, shared_memory_receiver
from fourlane.engine.kv_transfer.storage import KvStorage, allocate_kv
from fourlane.engine.kv_transfer.tcp import TcpOutlet, listen_at, tcp_receiver
from fourlane.engine.messages import KvAddress
from fourlane.engine.seal import Secret
from fourlane.errors import FourlaneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.kv_transfer.library import Library
    from fourlane.engine.kv_transfer.outlet import Outlet
    from fourlane.engine.kv_transfer.receiver import Receiver
    from fourlane.engine.kv_transfer.stream import Stream

SECRET = Secret(bytes(range(32)))
GEOMETRY = KvGeometry(layers=3, blocks=12, block_size=4, kv_heads=2, head_dim=8)
PATIENCE_S = 10.0
TRANSPORTS = ["tcp", "tcp striped", "shared_memory", "memory", "nixl", "mooncake"]
"""What the suite tries; "memory" is a library within this process, for what only a library's reads can do."""
ADDRESSES = ["127.0.0.1", "127.0.0.2"]


class Ending:
    """How one side of a sequence ended; notes a second ending as a fault."""

    def __init__(self) -> None:
        self.values: list[object] = []
        self._event = threading.Event()

    def __call__(self, value: object = None) -> None:
        self.values.append(value)
        self._event.set()

    @property
    def came(self) -> bool:
        return self._event.is_set()

    def wait(self) -> object:
        assert self._event.wait(PATIENCE_S), "no callback came"
        assert len(self.values) == 1, f"several callbacks came: {self.values}"
        return self.values[0]

    def failure(self) -> str:
        value = self.wait()
        assert isinstance(value, str), f"expected a failure, got {value}"
        return value


@dataclass
class Lane:
    """One receiver, its storage, and senders to it."""

    transport: str
    storage: KvStorage
    receiver: Receiver
    senders: list[Sender] = field(default_factory=list)
    timeout_s: float = PATIENCE_S

    def sender(
        self,
        name: str = "prefill-0",
        *,
        secret: Secret = SECRET,
        geometry: KvGeometry | None = None,
        wrap: Callable[[Outlet], Outlet] = lambda outlet: outlet,
    ) -> Sender:
        shape = geometry if geometry is not None else replace(self.storage.geometry, blocks=5)

        def make_outlet(target: KvAddress) -> Outlet:
            return wrap(outlet_for(self.transport, target, shape, name=name, secret=secret, timeout_s=self.timeout_s))

        self.senders.append(Sender(shape, make_outlet=make_outlet, timeout_s=self.timeout_s))
        return self.senders[-1]

    def expect(self, sequence_id: int, blocks: list[int], tokens: int) -> Ending:
        ending = Ending()
        self.receiver.expect(sequence_id, blocks, tokens=tokens, on_complete=ending, on_failed=ending)
        return ending

    def open(self, sender: Sender, sequence_id: int, *, endpoint: str | None = None) -> tuple[Stream, Ending]:
        ending = Ending()
        target = KvAddress(endpoint=endpoint or self.receiver.endpoint, blocks=[], owner="decode-0")
        return sender.open(sequence_id, target, on_delivered=ending, on_failed=ending), ending

    def landed(self, blocks: list[int], tokens: int) -> torch.Tensor:
        """Return what is in pages, [layers, 2, tokens, heads, dim]."""
        pages = self.storage.tensor[:, :, blocks]
        return pages.flatten(2, 3)[:, :, :tokens].clone()

    def close(self) -> None:
        for sender in self.senders:
            sender.close()
        self.receiver.close()
        self.storage.close()


def start_lane(
    transport: str, run_dir: Path, geometry: KvGeometry = GEOMETRY, *, timeout_s: float = PATIENCE_S
) -> Lane:
    """Start a receiver over a transport."""
    storage = allocate_kv(geometry, "cpu", shared=transport == "shared_memory")
    settings = {"name": "decode-0", "secret": SECRET, "timeout_s": timeout_s}
    receiver: Receiver
    if transport == "shared_memory":
        receiver = shared_memory_receiver(storage, run_dir=run_dir, **settings)
    elif transport.startswith("tcp"):
        addresses = ADDRESSES if transport == "tcp striped" else ADDRESSES[:1]
        receiver = tcp_receiver(storage, addresses=addresses, ports=None, **settings)
    else:
        library = start_library(transport, "decode-0")
        receiver = library_receiver(storage, library, listeners=listen_at(ADDRESSES[:1], None), **settings)
    return Lane(transport, storage, receiver, timeout_s=timeout_s)


def outlet_for(
    transport: str, target: KvAddress, geometry: KvGeometry, *, name: str, secret: Secret, timeout_s: float
) -> Outlet:
    """Return a sender's outlet over a transport."""
    if transport == "shared_memory":
        return SharedMemoryOutlet(target, geometry=geometry, name=name, secret=secret, timeout_s=timeout_s)
    if transport.startswith("tcp"):
        striped = transport == "tcp striped"
        return TcpOutlet(
            target,
            geometry=geometry,
            addresses=ADDRESSES if striped else ADDRESSES[:1],
            streams=2 if striped else 1,
            name=name,
            secret=secret,
            timeout_s=timeout_s,
        )
    return OfferOutlet(
        target,
        geometry=geometry,
        address="127.0.0.1",
        name=name,
        secret=secret,
        timeout_s=timeout_s,
        library=LibraryStart(transport, lambda: start_library(transport, name)),
    )


def missing(transport: str) -> str:
    """Return why a transport cannot be tried here; "" if it can."""
    return {"nixl": _nixl_missing, "mooncake": _mooncake_missing}.get(transport, str)()


def start_library(transport: str, name: str) -> Library:
    """Start a library over loopback."""
    if transport == "memory":
        return MemoryLibrary()
    if transport == "nixl":
        return NixlLibrary(name)
    return MooncakeLibrary(_mooncake_engine(name.partition("-")[0]))


@functools.cache
def _nixl_missing() -> str:
    if find_nixl() is None:
        return 'NIXL is not installed (pip install "fourlane[nixl]")'
    apply(nixl_env(KvNetwork.of("127.0.0.1", timeout_s=PATIENCE_S)), name="tests", loaded=False)
    try:
        NixlLibrary("probe").close()
    except FourlaneError as error:
        return str(error)
    return ""


@functools.cache
def _mooncake_missing() -> str:
    if find_mooncake() is None:
        return 'Mooncake is not installed (pip install "fourlane[mooncake]")'
    apply(mooncake_env(KvNetwork.of("127.0.0.1", timeout_s=PATIENCE_S)), name="tests", loaded=False)
    try:
        _mooncake_engine("decode")
    except FourlaneError as error:
        return str(error)
    return ""


@functools.cache
def _mooncake_engine(side: str) -> MooncakeEngine:
    """Return one engine a side for all tests of this process: ending one takes a second."""
    return MooncakeEngine(side, address="127.0.0.1")


def make_kv(tokens: int, geometry: KvGeometry = GEOMETRY, *, seed: int = 0) -> torch.Tensor:
    """Return random KV, [layers, 2, tokens, heads, dim]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (geometry.layers, 2, tokens, geometry.kv_heads, geometry.head_dim)
    return torch.randn(shape, generator=generator).to(getattr(torch, geometry.dtype))


def send_all(stream: Stream, kv: torch.Tensor, *, token: int = 7, cuts: tuple[int, ...] = ()) -> None:
    """Send KV in chunks cut at `cuts`, all layers of a chunk in turn, and finish."""
    tokens = kv.shape[2]
    edges = [0, *cuts, tokens]
    for first, last in pairwise(edges):
        for layer in range(kv.shape[0]):
            stream.send(layer, first, kv[layer, 0, first:last], kv[layer, 1, first:last])
    stream.finish(tokens=tokens, first_token_id=token)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.002)


def open_files() -> set[str]:
    """Return what this process's descriptors are, sockets and event counters included."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(f"{link.name} {link.readlink()}")
    return found
