"""What the progress bar says of simulations."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from fourlane.cli.progress_bar import ProgressBar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.twin.fabric.parallel import ManyProgress
    from fourlane.twin.fabric.simulator import Progress

__all__ = ["many_bar", "run_bar"]


@contextmanager
def run_bar() -> Iterator[Callable[[Progress], None]]:
    """Show the progress of one simulation."""
    bar = ProgressBar()

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
    bar = ProgressBar()

    def show(now: ManyProgress) -> None:
        speed = sum(each.events_per_s for each in now.running.values()) / 1e6
        text = f"{now.done} of {now.total} runs, {speed:.2f} M events/s"
        bar.show(now.share, text, elapsed_s=now.elapsed_s, eta_s=now.eta_s)

    try:
        yield show
    finally:
        bar.close()
