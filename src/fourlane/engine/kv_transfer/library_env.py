"""How transfer libraries are told which NIC and which mark: environment variables, each in the library's own unit.

They are read when a library is loaded or started, so they are set in the rank's process before
that. What is set already was set by somebody who meant it: it wins, and the log says so.

Source: UCX (UCX_IB_TRAFFIC_CLASS is called a DSCP in its help and is the ToS byte), Mooncake's
    transfer engine (MC_IB_TC is the ToS byte as well; without MC_GID_INDEX it takes 3).
"""

from __future__ import annotations

import logging
import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.lanes.interfaces import interface_of
from fourlane.lanes.marking import LaneMark
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

__all__ = ["KvNetwork", "apply", "check_devices", "mooncake_env", "nixl_env", "rdma_devices"]

_log = logging.getLogger(__name__)
_INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True, slots=True)
class KvNetwork:
    """Where KV travels, and how it is marked.

    `devices` are RDMA devices ("mlx5_0:1") or interfaces ("eth1"); `rdma` tells whether RDMA is to
    be used; `tos` is the ToS byte; `gid_index` None leaves the choice to the library.
    """

    address: str
    devices: tuple[str, ...]
    rdma: bool
    gid_index: int | None
    tos: int
    timeout_s: float

    @classmethod
    def of(
        cls,
        address: str,
        *,
        devices: Sequence[str] = (),
        gid_index: int | None = None,
        timeout_s: float,
        tos: int | None = None,
        sysfs: Path = _INFINIBAND,
    ) -> KvNetwork:
        """Work out what the deployment leaves open: the RDMA devices behind the KV address, else its interface."""
        interface = interface_of(address)
        here = rdma_devices(sysfs)
        if not devices and interface is not None:
            behind = [device for device, interfaces in here.items() if interface in interfaces]
            devices = [f"{device}:1" for device in behind] or [interface]
        rdma = any(device.partition(":")[0] in here for device in devices)
        if tos is None:
            tos = LaneMark.default(TrafficClass.KV).rdma_tos
        return cls(address, tuple(devices), rdma, gid_index, tos, timeout_s)


def rdma_devices(sysfs: Path = _INFINIBAND) -> dict[str, list[str]]:
    """Return the RDMA devices of this host, each with its network interfaces."""
    if not sysfs.is_dir():
        return {}
    found: dict[str, list[str]] = {}
    for device in sorted(sysfs.iterdir()):
        interfaces = device / "device" / "net"
        found[device.name] = sorted(path.name for path in interfaces.iterdir()) if interfaces.is_dir() else []
    return found


def nixl_env(network: KvNetwork) -> dict[str, str]:
    """Return what NIXL's UCX backend is to be told."""
    found = {"NIXL_LOG_LEVEL": "WARN", "UCX_LOG_FILE": "stderr"}
    if network.devices:
        found["UCX_NET_DEVICES"] = ",".join(network.devices)
    if len(network.devices) > 1:
        found["UCX_MAX_RMA_RAILS"] = str(len(network.devices))
    if network.rdma:
        found["UCX_IB_TRAFFIC_CLASS"] = str(network.tos)
        if network.gid_index is not None:
            found["UCX_IB_GID_INDEX"] = str(network.gid_index)
    else:
        # Without devices its InfiniBand module has no use, and the libraries it brings crash when the process ends.
        found["UCX_MODULES"] = "^ib"
    return found


def mooncake_env(network: KvNetwork) -> dict[str, str]:
    """Return what Mooncake's engine is to be told; its devices are an argument of its start."""
    seconds = str(max(1, math.ceil(network.timeout_s)))
    found = {
        "MC_LOG_LEVEL": "WARNING",
        "MC_TCP_BIND_ADDRESS": network.address,
        "MC_TCP_PROGRESS_TIMEOUT_SEC": seconds,
        "MC_SLICE_TIMEOUT": seconds,
    }
    if network.rdma:
        found["MC_IB_TC"] = str(network.tos)
        if network.gid_index is not None:
            found["MC_GID_INDEX"] = str(network.gid_index)
    else:
        found["MC_FORCE_TCP"] = "1"
    if ":" in network.address:
        found["MC_USE_IPV6"] = "1"
    return found


def apply(
    wanted: Mapping[str, str], *, name: str, loaded: bool, environ: MutableMapping[str, str] = os.environ
) -> dict[str, str]:
    """Set variables that are not set, and log what holds where the two differ.

    Args:
        wanted: variables and their values.
        name: this rank, for the log.
        loaded: the library has been loaded already, so what is set now may come too late.
        environ: where to set them.

    Returns:
        What holds now.
    """
    held: dict[str, str] = {}
    for variable, value in wanted.items():
        found = environ.setdefault(variable, value)
        held[variable] = found
        if found != value:
            _log.warning("%s: %s=%s was set before and wins; the deployment asks for %s", name, variable, found, value)
    if loaded:
        _log.warning("%s: the library was loaded before its environment was set; it may not heed it", name)
    _log.info("%s: %s", name, " ".join(f"{variable}={value}" for variable, value in held.items()))
    return held


def check_devices(devices: Sequence[str], *, sysfs: Path = _INFINIBAND) -> None:
    """Check that devices are here: a library told of others may take none, or any, without a word.

    Raises:
        SpecError: every one that is not.
    """
    rdma, interfaces = list(rdma_devices(sysfs)), [name for _, name in socket.if_nameindex()]
    faults = [
        f"kv_transfer.devices[{index}]: expected an RDMA device ({', '.join(rdma) or 'there is none'}) "
        f'or an interface ({", ".join(interfaces)}) of this host, got "{device}"'
        for index, device in enumerate(devices)
        if device.partition(":")[0] not in rdma and device not in interfaces
    ]
    if faults:
        raise SpecError(*faults)
