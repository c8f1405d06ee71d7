"""Ranks that write down how long each step took, and whether experts were on their way meanwhile.

Run by a service as its ranks' target, "timed_rank:run_rank"; `FOURLANE_STEP_TIMES` names the folder.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.engine import worker

if TYPE_CHECKING:
    from fourlane.engine.rank_config import RankConfig

__all__ = ["FOLDER_VARIABLE", "run_rank"]

FOLDER_VARIABLE = "FOURLANE_STEP_TIMES"


class TimedWorker(worker.RankWorker):
    """A rank's loop that notes of every step that only decoded: when, seconds, tokens, migrating, `_balancing_s`."""

    def __init__(self, config: RankConfig) -> None:
        super().__init__(config)
        self.steps: list[tuple[float, float, int, bool, float]] = []

    def _step(self) -> None:
        began, tokens, prompts = time.monotonic(), self.scheduler.output_tokens, self.scheduler.queued_tokens
        moving = self.balancer is not None and self.balancer.moving
        taken_s = self._balancing_s()
        super()._step()
        taken_s = self._balancing_s() - taken_s
        moving |= self.balancer is not None and self.balancer.moving
        if not prompts:
            seconds, tokens = time.monotonic() - began, self.scheduler.output_tokens - tokens
            self.steps.append((began, seconds, tokens, moving, taken_s))

    def _balancing_s(self) -> float:
        """Return the processor time that the balancing thread has taken so far."""
        beside = self.balancer._thread if self.balancer is not None else None
        ident = beside._thread.ident if beside is not None else None
        return 0.0 if ident is None else time.clock_gettime(time.pthread_getcpuclockid(ident))

    def close(self) -> None:
        """Write the notes, then close as ever."""
        path = Path(os.environ[FOLDER_VARIABLE]) / f"{self.config.name}.json"
        path.write_text(json.dumps(self.steps), encoding="ascii")
        super().close()


def run_rank(config: RankConfig) -> int:
    """Serve as a rank."""
    worker.RankWorker = TimedWorker
    return worker.run_rank(config)
