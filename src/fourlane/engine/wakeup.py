"""Let other threads hand the computing thread something to do, and wake it from poll()."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Inbox"]


class Inbox:
    """Calls queued by any thread and run by one, with a file descriptor to poll."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor that is readable while something is queued."""
        return self._event

    def put(self, call: Callable[[], None]) -> None:
        """Queue a call; from any thread."""
        self._calls.append(call)
        os.eventfd_write(self._event, 1)

    def run(self) -> None:
        """Run what is queued by now; from the owning thread. For what comes meanwhile the descriptor is readable."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def close(self) -> None:
        """Close the descriptor; nothing may be put afterwards."""
        os.close(self._event)
