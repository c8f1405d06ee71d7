"""Choose the transport: by what the deployment asks for, and by the endpoint's scheme."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.engine.kv_transfer.sender import Outlet, Sender
from fourlane.engine.kv_transfer.shared_memory import SharedMemoryOutlet, shared_memory_receiver
from fourlane.engine.kv_transfer.tcp import TcpOutlet, tcp_receiver
from fourlane.errors import TransferError

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.contract import KvGeometry
    from fourlane.engine.kv_transfer.receiver import Receiver
    from fourlane.engine.kv_transfer.storage import KvStorage
    from fourlane.engine.messages import KvAddress
    from fourlane.engine.rank_config import RankConfig
    from fourlane.engine.seal import Secret

__all__ = ["make_receiver", "make_sender"]


def make_receiver(config: RankConfig, storage: KvStorage, geometry: KvGeometry, *, secret: Secret) -> Receiver:
    """Start the receiver of a decode rank.

    "auto" takes shared memory when all ranks are on this host (the control lane is a UNIX socket)
    and the cache can be shared, else TCP. What was chosen is used or fails; nothing is tried after.

    Raises:
        SpecError, TransferError: it cannot listen as asked.
    """
    assert geometry == storage.geometry
    transport = config.kv_transport
    if transport == "auto":
        here = config.control_endpoint.startswith("ipc://") and storage.memfd is not None
        transport = "shared_memory" if here else "tcp"
    if transport == "shared_memory":
        return shared_memory_receiver(
            storage, run_dir=Path(config.run_dir), name=config.name, secret=secret, timeout_s=config.kv_timeout_s
        )
    return tcp_receiver(
        storage,
        address=config.kv_address,
        ports=config.kv_ports,
        name=config.name,
        secret=secret,
        timeout_s=config.kv_timeout_s,
    )


def make_sender(config: RankConfig, geometry: KvGeometry, *, secret: Secret) -> Sender:
    """Make the sender of a prefill rank; each target's endpoint says which transport it takes."""

    def make_outlet(target: KvAddress) -> Outlet:
        if target.endpoint.startswith("tcp://"):
            return TcpOutlet(
                target,
                geometry=geometry,
                address=config.kv_address,
                name=config.name,
                secret=secret,
                timeout_s=config.kv_timeout_s,
            )
        if target.endpoint.startswith("shm://"):
            return SharedMemoryOutlet(
                target, geometry=geometry, name=config.name, secret=secret, timeout_s=config.kv_timeout_s
            )
        raise TransferError(
            f"{target.owner}: endpoint {target.endpoint!r}: expected tcp://ip:port or shm:///path; "
            "the ranks run unlike versions of fourlane"
        )

    return Sender(geometry, make_outlet=make_outlet, timeout_s=config.kv_timeout_s)
