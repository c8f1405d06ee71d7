"""The progress bar of simulations: shown on a terminal once a run will take longer than two seconds."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.twin.fabric.parallel import ManyProgress
    from fourlane.twin.fabric.simulator import Progress

__all__ = ["many_bar", "run_bar"]

_WORTH_A_BAR_S = 2.0


class _Bar:
    """A bar that begins to be shown when it is worth it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        errors = Console(stderr=True)
        columns = (
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._rich = RichProgress(*columns, console=errors, disable=not errors.is_terminal, transient=True)
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
def run_bar() -> Iterator[Callable[[Progress], None]]:
    """Show the progress of one simulation."""
    bar = _Bar()

    def show(now: Progress) -> None:
        text = (
            f"{now.flows_done:,} of {now.flows:,} flows, {now.simulated_us:,.1f} us, "
            f"{now.events_per_s / 1e6:.2f} M events/s"
        )
        bar.show(now.share, text, elapsed_s=now.elapsed_s, eta_s=now.eta_s)

    try:
        yield show
    finally:
        bar.close()


@contextmanager
def many_bar() -> Iterator[Callable[[ManyProgress], None]]:
    """Show the progress of several simulations."""
    bar = _Bar()

    def show(now: ManyProgress) -> None:
        speed = sum(each.events_per_s for each in now.running.values()) / 1e6
        text = f"{now.done} of {now.total} runs, {speed:.2f} M events/s"
        bar.show(now.share, text, elapsed_s=now.elapsed_s, eta_s=now.eta_s)

    try:
        yield show
    finally:
        bar.close()
