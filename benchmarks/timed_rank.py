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
    """A rank's loop that notes (when, seconds, tokens, migrating) of every step that only decoded."""

    def __init__(self, config: RankConfig) -> None:
        super().__init__(config)
        self.steps: list[tuple[float, float, int, bool]] = []

    def _step(self) -> None:
        began, tokens, prompts = time.monotonic(), self.scheduler.output_tokens, self.scheduler.queued_tokens
        moving = self.balancer is not None and self.balancer.moving
        super()._step()
        moving |= self.balancer is not None and self.balancer.moving
        if not prompts:
            self.steps.append((began, time.monotonic() - began, self.scheduler.output_tokens - tokens, moving))

    def close(self) -> None:
        """Write the notes, then close as ever."""
        path = Path(os.environ[FOLDER_VARIABLE]) / f"{self.config.name}.json"
        path.write_text(json.dumps(self.steps), encoding="ascii")
        super().close()


def run_rank(config: RankConfig) -> int:
    """Serve as a rank."""
    worker.RankWorker = TimedWorker
    return worker.run_rank(config)
