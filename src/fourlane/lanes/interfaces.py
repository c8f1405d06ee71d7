"""Which network interface of this host has an address, and which one traffic between two takes.

Asks the kernel (Linux). Not for what an interface can do.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import closing
from pathlib import Path

__all__ = ["UNKNOWN", "addresses_here", "interface_between", "interface_of"]

UNKNOWN = "an unknown interface"
_LOOPBACK = "lo"
_SIOCGIFCONF = 0x8912
_NAME_BYTES = 16
_IFREQ = struct.calcsize(f"{_NAME_BYTES}sHH4s16x")
_MOST_BYTES = 1 << 16


def addresses_here() -> dict[str, str]:
    """Return the interface of every IP address of this host, as the network namespace of this process has them."""
    return {**_ipv4(), **_ipv6()}


def interface_of(address: str) -> str | None:
    """Return the interface that has an address; None if none of this host's has it."""
    if ipaddress.ip_address(address).is_loopback:
        return _LOOPBACK
    return addresses_here().get(address)


def interface_between(local: str, peer: str) -> str:
    """Return the interface by which a connection between two addresses leaves this host.

    What goes to an address of the same host goes over loopback, whichever interface has it.
    """
    if not local or not peer:
        return UNKNOWN
    if interface_of(peer) is not None:
        return _LOOPBACK
    return interface_of(local) or UNKNOWN


def _ipv4() -> dict[str, str]:
    import array
    import fcntl

    buffer = array.array("B", bytes(_MOST_BYTES))
    address, _ = buffer.buffer_info()
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        answer = fcntl.ioctl(sock.fileno(), _SIOCGIFCONF, struct.pack("iL", _MOST_BYTES, address))
    used = struct.unpack("iL", answer)[0]
    found = {}
    for start in range(0, used, _IFREQ):
        entry = buffer[start : start + _IFREQ].tobytes()
        name = entry[:_NAME_BYTES].split(b"\0", 1)[0].decode()
        found[socket.inet_ntoa(entry[_NAME_BYTES + 4 : _NAME_BYTES + 8])] = name.partition(":")[0]
    return found


def _ipv6() -> dict[str, str]:
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:  # a kernel without IPv6
        return {}
    fields = (line.split() for line in lines)
    return {str(ipaddress.IPv6Address(int(entry[0], 16))): entry[5] for entry in fields}
