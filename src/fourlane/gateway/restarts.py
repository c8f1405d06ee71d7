"""How soon a dead rank is started again, and when a pool is given up."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

__all__ = ["Restarts"]


class Restarts:
    """Count the deaths in one pool.

    Units:
        WINDOW_S, FIRST_S, LONGEST_S: seconds.
    """

    MOST: ClassVar[int] = 5
    WINDOW_S: ClassVar[float] = 60.0
    FIRST_S: ClassVar[float] = 0.1
    LONGEST_S: ClassVar[float] = 5.0

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    def died(self, now: float) -> float | None:
        """Note a death; return the seconds to wait before the next start, None if the pool is given up.

        The delay doubles with every death of the last minute. `MOST` deaths in that time are a crash loop.
        """
        self._deaths.append(now)
        while self._deaths[0] < now - self.WINDOW_S:
            self._deaths.popleft()
        if len(self._deaths) >= self.MOST:
            return None
        return min(self.LONGEST_S, self.FIRST_S * 2 ** (len(self._deaths) - 1))
