"""Which transports this machine has. Imports neither torch nor a transfer library."""

from __future__ import annotations

import ctypes

from fourlane.engine.kv_transfer.mooncake import find_mooncake
from fourlane.engine.kv_transfer.nixl import find_nixl

__all__ = ["TRANSPORTS", "absent"]

TRANSPORTS = ("shared_memory", "tcp", "nixl", "mooncake")
"""All there are, in the order in which they are shown."""


def absent() -> dict[str, str]:
    """Return the transports that this machine lacks, with what to do about it."""
    missing: dict[str, str] = {}
    for transport, find in (("nixl", find_nixl), ("mooncake", find_mooncake)):
        if find() is None:
            missing[transport] = f'not installed; pip install "fourlane[{transport}]"'
    if "mooncake" not in missing and not _loads("libibverbs.so.1"):
        missing["mooncake"] = "it needs libibverbs even for TCP (Debian and Ubuntu: apt-get install libibverbs1)"
    return missing


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
