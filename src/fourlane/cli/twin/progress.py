"""What the progress bar says of long work on a twin."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from fourlane.cli.progress_bar import ProgressBar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["HowFar", "work_bar"]


class HowFar(Protocol):
    """How far some work is: packet runs (`ManyProgress`), requests (`ServingProgress`), rungs, and the like."""

    @property
    def done(self) -> int:
        """Return how many are done."""
        ...

    @property
    def total(self) -> int:
        """Return of how many."""
        ...

    @property
    def share(self) -> float:
        """Return how far all is, 0 to 1."""
        ...

    @property
    def elapsed_s(self) -> float:
        """Return seconds since it began."""
        ...

    @property
    def eta_s(self) -> float | None:
        """Return seconds still to go, if that can be told."""
        ...


@contextmanager
def work_bar(text: str) -> Iterator[Callable[[HowFar], None]]:
    """Show progress; `text` says of what: "{done:,} of {total:,} requests"."""
    bar = ProgressBar()

    def show(now: HowFar) -> None:
        said = text.format(done=now.done, total=now.total)
        bar.show(now.share, said, elapsed_s=now.elapsed_s, eta_s=now.eta_s)

    try:
        yield show
    finally:
        bar.close()
