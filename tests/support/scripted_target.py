"""What the nursery's tests have it run: the prompt end, the error, the sleeper."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.errors import MemoryShortage

if TYPE_CHECKING:
    from fourlane.engine.rank_config import RankConfig


def end_with_rank(config: RankConfig) -> int:
    """End with the rank's number as the exit code."""
    sys.stdout.write(f"hello from {config.name}\n")
    return config.rank


def refuse(config: RankConfig) -> int:
    """Refuse as a rank does that cannot serve."""
    raise MemoryShortage(f"{config.name}: needs 9 GiB, there are 2")


def crash(config: RankConfig) -> int:
    """Run into a defect."""
    return 1 // (config.rank - config.rank)


def sleep(config: RankConfig) -> int:
    """Sleep until killed."""
    del config
    time.sleep(600)
    return 0


def describe(config: RankConfig) -> int:
    """Write down what the process looks like from inside."""
    opened = Path("/proc/self/fd")
    facts = (
        Path("/proc/self/comm").read_text(encoding="ascii").strip(),
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        os.getsid(0) == os.getpid(),
        threading.active_count(),
        (opened / "0").readlink(),
        len(list(opened.iterdir())),
    )
    Path(config.run_dir, "described").write_text(" ".join(map(str, facts)), encoding="ascii")
    return 0
