"""Small functions run inside a namespace: write its kernel settings, wait there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.lab.keeper import Channel

__all__ = ["wait_for_the_end", "write_sysctls"]


def write_sysctls(channel: Channel, settings: dict[str, str]) -> None:
    """Write settings, by their path under /proc/sys; `net/` there is the namespace's own.

    `net/bridge` is there only while the kernel filters what bridges pass on; where it is not, nothing is to be set.
    """
    del channel
    for name, value in settings.items():
        path = Path("/proc/sys", name)
        if path.exists() or not name.startswith("net/bridge/"):
            path.write_text(value, encoding="ascii")


def wait_for_the_end(channel: Channel) -> None:
    """Do nothing until the caller wants an end."""
    while not channel.stopped(3600):
        pass
