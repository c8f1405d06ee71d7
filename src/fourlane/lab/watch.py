"""The processor while something is measured: put the lab first, see how much was idle and how late timers rang.

A lab whose processor is the bottleneck measures the processor.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.lab.keeper import Channel

__all__ = ["put_first", "watch"]

_INTERVAL_S = 0.005
_NICE = -10


def put_first(pid: int) -> None:
    """Let a process come before what else this machine does, where this user may say so.

    Where the kernel shares processors out by session first (autogroups), its session is put first too.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICE)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(_NICE), encoding="ascii")


def watch(channel: Channel) -> dict[str, float]:
    """Watch until told to stop, at the priority of the lab's other processes; run inside a host by `Lab.call`.

    Returns:
        `idle`, `stolen`: shares of all processors' time; `lateness_s`: p99 of how late a sleep of 5 ms ended.
    """
    put_first(os.getpid())
    late: list[float] = []
    idle, stolen, total = _times()
    channel.say("watching")
    due = time.monotonic() + _INTERVAL_S
    while not channel.stopped(due - time.monotonic()):
        now = time.monotonic()
        late.append(now - due)
        due = now + _INTERVAL_S
    after = _times()
    span = max(1, after[2] - total)
    late.sort()
    return {
        "idle": (after[0] - idle) / span,
        "stolen": (after[1] - stolen) / span,
        "lateness_s": late[int(0.99 * (len(late) - 1))] if late else 0.0,
    }


def _times() -> tuple[int, int, int]:
    """Return idle, stolen and all time of the processors, in ticks."""
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return fields[3] + fields[4], fields[7], sum(fields)
