"""What happens when: actions in the order of their times, those of one time in the order they were asked for."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock"]


class Clock:
    """Simulated time, in seconds. Nothing can be taken back: an action that is out of date must know it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.planned = 0
        """How many actions have been asked for."""
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something at a time, or at once if that has passed."""
        self.planned += 1
        heappush(self._agenda, (max(time, self.now), self.planned, action, arguments))

    def step(self) -> bool:
        """Do what comes next; False if nothing does."""
        if not self._agenda:
            return False
        self.now, _, action, arguments = heappop(self._agenda)
        action(*arguments)
        return True
