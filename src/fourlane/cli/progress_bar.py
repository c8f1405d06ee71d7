"""A progress bar on standard error, shown on a terminal once the work will take longer than two seconds."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ProgressBar", "steps_bar"]

_WORTH_A_BAR_S = 2.0


class ProgressBar:
    """A bar that begins to be shown when it is worth it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        errors = Console(stderr=True)
        columns = (
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._rich = Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True)
        self._task = self._rich.add_task("", total=1.0)
        self._shown = False

    def show(self, share: float, text: str, *, elapsed_s: float, eta_s: float | None) -> None:
        """Draw how far it is."""
        if not self._shown and elapsed_s + (eta_s or 0.0) < _WORTH_A_BAR_S:
            return
        if not self._shown:
            self._rich.start()
            self._shown = True
        self._rich.update(self._task, completed=share, description=text)

    def close(self) -> None:
        """Take the bar away."""
        self._rich.stop()


@contextmanager
def steps_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Show the progress of work in steps: how many are done, of how many, and what is being done."""
    bar, began = ProgressBar(), time.monotonic()

    def show(done: int, total: int, text: str) -> None:
        elapsed = time.monotonic() - began
        eta = elapsed / done * (total - done) if done else None
        bar.show(done / total, text, elapsed_s=elapsed, eta_s=eta)

    try:
        yield show
    finally:
        bar.close()
