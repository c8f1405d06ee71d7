"""What the kernel says of a process on this host."""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_stopped"]


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped by a signal or a debugger, a zombie or gone; False if unknown."""
    if not Path("/proc/self/stat").exists():
        return False
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    state = text.rpartition(")")[2].split()[0]  # the name before it may hold any character
    return state in {"T", "t", "Z", "X"}
