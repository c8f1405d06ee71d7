"""How much of this machine's processors others use while something is measured. Linux's `/proc`, in its ticks."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ProcessorUse", "busy_share"]


class ProcessorUse:
    """Processor time from now on: of all, and of these processes and the one that asks.

    Args:
        pids: of those that belong to what is measured.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._pids = (*pids, os.getpid())
        self._began = self._now()

    def others(self) -> float:
        """Return the share of all processor time that others have used since then."""
        busy, total, own = (now - then for now, then in zip(self._now(), self._began, strict=True))
        return max(0.0, (busy - own) / total) if total else 0.0

    def _now(self) -> tuple[int, int, int]:
        """Return busy and all time of the machine, and that of the processes."""
        ticks = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks), sum(_ticks_of(pid) for pid in self._pids)


def _ticks_of(pid: int) -> int:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0


def busy_share(seconds: float = 0.5) -> float:
    """Return the share of this machine's processor time that is in use now."""
    use = ProcessorUse()
    time.sleep(seconds)
    return use.others()
