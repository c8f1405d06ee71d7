"""Choose the transport: by what the deployment asks for, or by what both hosts have; and say why.

The receiver decides what it offers, and its endpoint's scheme says so: "nixl" means NIXL and
nothing else, "nixl+tcp" that a sender without NIXL may use TCP. What was chosen is used or fails.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fourlane.engine.kv_transfer import library_env
from fourlane.engine.kv_transfer.library import LibraryStart
from fourlane.engine.kv_transfer.library_env import KvNetwork, rdma_devices
from fourlane.engine.kv_transfer.mooncake import MooncakeEngine, MooncakeLibrary, find_mooncake
from fourlane.engine.kv_transfer.nixl import NixlLibrary, find_nixl
from fourlane.engine.kv_transfer.offers import OfferOutlet
from fourlane.engine.kv_transfer.reader import library_receiver
from fourlane.engine.kv_transfer.sender import Sender
from fourlane.engine.kv_transfer.shared_memory import SharedMemoryOutlet, shared_memory_receiver
from fourlane.engine.kv_transfer.tcp import TcpOutlet, listen_at, tcp_receiver
from fourlane.errors import EnvironmentMissing, TransferError
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.kv_transfer.contract import KvGeometry
    from fourlane.engine.kv_transfer.outlet import Outlet
    from fourlane.engine.kv_transfer.receiver import Receiver
    from fourlane.engine.kv_transfer.storage import KvStorage
    from fourlane.engine.messages import KvAddress
    from fourlane.engine.rank_config import RankConfig
    from fourlane.engine.seal import Secret
    from fourlane.lanes.connections import LaneEnd

__all__ = ["Choice", "choose_offer", "choose_way", "make_receiver", "make_sender"]

_log = logging.getLogger(__name__)
_FINDERS: dict[str, Callable[[], str | None]] = {"nixl": find_nixl, "mooncake": find_mooncake}


class Choice(NamedTuple):
    """A transport, and why it is that one. `also_tcp`: senders without it may use TCP."""

    transport: str
    reason: str
    also_tcp: bool = False


def choose_offer(wanted: str, *, all_here: bool, shareable: bool) -> Choice:
    """Choose what a decode rank offers.

    Args:
        wanted: `kv_transfer.transport`.
        all_here: all ranks are on this host.
        shareable: the cache can be mapped by other processes.
    """
    if wanted != "auto":
        return Choice(wanted, "kv_transfer.transport asks for it")
    if all_here and shareable:
        return Choice("shared_memory", "all ranks are on this host")
    devices = ", ".join(rdma_devices())
    if not devices:
        why = "ranks are on several hosts" if shareable else "the cache is on a device"
        return Choice("tcp", f"{why}, and this one has no RDMA device")
    for transport, find in _FINDERS.items():
        if find() is not None:
            return Choice(
                transport, f"this host has {devices} and {transport}; senders without them use tcp", also_tcp=True
            )
    return Choice("tcp", f'this host has {devices}, but neither NIXL nor Mooncake (pip install "fourlane[nixl]")')


def choose_way(endpoint: str, owner: str) -> Choice:
    """Choose how a prefill rank sends to an endpoint.

    Raises:
        TransferError: it names no transport we know.
    """
    scheme = endpoint.partition("://")[0]
    transport, _, alternative = scheme.partition("+")
    if scheme in ("tcp", "shm", *_FINDERS):
        return Choice({"shm": "shared_memory"}.get(scheme, scheme), f"{owner} offers it")
    if alternative != "tcp" or transport not in _FINDERS:
        raise TransferError(
            f"{owner}: endpoint {endpoint!r}: expected tcp://ip:port, shm:///path, nixl://ip:port or "
            "mooncake://ip:port; the ranks run unlike versions of fourlane"
        )
    missing = [
        what
        for what, there in (("its package", _FINDERS[transport]()), ("an RDMA device", rdma_devices()))
        if not there
    ]
    if missing:
        return Choice("tcp", f"{owner} offers {transport} or tcp, and this host lacks {' and '.join(missing)}")
    return Choice(transport, f"{owner} offers it, and this host has it too")


def make_receiver(
    config: RankConfig, storage: KvStorage, geometry: KvGeometry, *, secret: Secret, lane: LaneEnd | None = None
) -> Receiver:
    """Start the receiver of a decode rank.

    What was chosen is used or fails; nothing is tried after.

    Raises:
        SpecError, TransferError: it cannot listen as asked.
        EnvironmentMissing: the library asked for is not there.
    """
    assert geometry == storage.geometry
    all_here = config.control_endpoint.startswith("ipc://")
    choice = choose_offer(config.kv_transport, all_here=all_here, shareable=storage.memfd is not None)
    _log.info("%s: KV arrives over %s: %s", config.name, choice.transport, choice.reason)
    if choice.transport == "shared_memory":
        return shared_memory_receiver(
            storage, run_dir=Path(config.run_dir), name=config.name, secret=secret, timeout_s=config.kv_timeout_s
        )
    if choice.transport in _FINDERS:
        return library_receiver(
            storage,
            start_of(config, choice.transport).start(),
            listeners=listen_at(config.kv_addresses, config.kv_ports, lane),
            name=config.name,
            secret=secret,
            timeout_s=config.kv_timeout_s,
            also_tcp=choice.also_tcp,
            lane=lane,
        )
    return tcp_receiver(
        storage,
        addresses=config.kv_addresses,
        ports=config.kv_ports,
        name=config.name,
        secret=secret,
        timeout_s=config.kv_timeout_s,
        lane=lane,
    )


def make_sender(config: RankConfig, geometry: KvGeometry, *, secret: Secret, lane: LaneEnd | None = None) -> Sender:
    """Make the sender of a prefill rank; each target's endpoint says which transports it takes."""
    starts: dict[str, LibraryStart] = {}

    def make_outlet(target: KvAddress) -> Outlet:
        choice = choose_way(target.endpoint, target.owner)
        _log.info("%s: KV to %s over %s: %s", config.name, target.owner, choice.transport, choice.reason)
        if choice.transport == "shared_memory":
            return SharedMemoryOutlet(
                target, geometry=geometry, name=config.name, secret=secret, timeout_s=config.kv_timeout_s
            )
        if choice.transport == "tcp":
            return TcpOutlet(
                target,
                geometry=geometry,
                addresses=config.kv_addresses,
                streams=config.kv_streams,
                name=config.name,
                secret=secret,
                timeout_s=config.kv_timeout_s,
                lane=lane,
            )
        if choice.transport not in starts:
            starts[choice.transport] = start_of(config, choice.transport)
        return OfferOutlet(
            target,
            geometry=geometry,
            address=config.kv_addresses[0],
            name=config.name,
            secret=secret,
            timeout_s=config.kv_timeout_s,
            library=starts[choice.transport],
            lane=lane,
        )

    return Sender(geometry, make_outlet=make_outlet, timeout_s=config.kv_timeout_s)


def start_of(config: RankConfig, transport: str) -> LibraryStart:
    """Set a library's environment; return how to start it.

    Raises:
        EnvironmentMissing: it is not installed.
        SpecError: a device of the deployment is not here.
    """
    library_env.check_devices(config.kv_devices)
    if _FINDERS[transport]() is None:
        raise EnvironmentMissing(
            f'{config.name}: kv_transfer.transport = "{transport}" is not installed here; '
            f'pip install "fourlane[{transport}]"'
        )
    network = KvNetwork.of(
        config.kv_addresses[0],
        devices=config.kv_devices,
        gid_index=config.kv_gid_index,
        timeout_s=config.kv_timeout_s,
        tos=config.marks[TrafficClass.KV].rdma_tos,
    )
    if transport == "nixl":
        loaded = any(name.endswith("._bindings") and "nixl" in name for name in sys.modules)
        library_env.apply(library_env.nixl_env(network), name=config.name, loaded=loaded)
        return LibraryStart(transport, lambda: NixlLibrary(config.name))
    library_env.apply(library_env.mooncake_env(network), name=config.name, loaded="mooncake.engine" in sys.modules)
    return LibraryStart(transport, _MooncakeStarter(config.name, network))


class _MooncakeStarter:
    """Starts Mooncake's engine once, for all connections of a rank: ending one takes a second."""

    def __init__(self, name: str, network: KvNetwork) -> None:
        self._name = name
        self._network = network
        self._engine: MooncakeEngine | None = None

    def __call__(self) -> MooncakeLibrary:
        if self._engine is None:
            devices = self._network.devices if self._network.rdma else ()
            names = [device.partition(":")[0] for device in devices]
            self._engine = MooncakeEngine(self._name, address=self._network.address, devices=names)
        return MooncakeLibrary(self._engine)
