"""Draw a switch's ECMP hash anew, again and again, so that a measurement sees many draws and not one.

Run inside a leaf by `Lab.call`. A flow's path is a matter of luck; whoever measures one draw measures luck.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.lab.keeper import Channel

__all__ = ["redraw"]

_SETTINGS = Path("/proc/sys/net/ipv4")
_CUSTOM = "3"
_FIELDS = "55"
"""Addresses, protocol and ports: what a switch sees. Policy 1 would take a hash that the sending socket drew."""


def redraw(channel: Channel, *, interval_s: float, first: int) -> int:
    """Set the hash's seed to `first`, then to the next number every `interval_s`, until told to stop.

    Returns:
        How many seeds were set; 0 where the kernel has none to set (before Linux 6.11).
    """
    seed = _SETTINGS / "fib_multipath_hash_seed"
    if not seed.exists():
        channel.say("no seed")
        return 0
    (_SETTINGS / "fib_multipath_hash_fields").write_text(_FIELDS, encoding="ascii")
    (_SETTINGS / "fib_multipath_hash_policy").write_text(_CUSTOM, encoding="ascii")
    draws = 0
    while True:
        seed.write_text(str(first + draws), encoding="ascii")
        draws += 1
        if draws == 1:
            channel.say("drawn")
        if channel.stopped(interval_s):
            return draws
