"""Names of prompts' pages, in runs: pages that several prompts share always together have one name.

Like `policy.prefix.prefix_hashes` a name covers all that comes before, so equal names mean equal prefixes; but a
prompt of a hundred thousand tokens has a few hundred names, not thousands, and no tokens need be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ROOT", "PromptNames"]

ROOT = -1
"""What comes before the first run."""


class PromptNames:
    """All runs of all prompts, each known by a number."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.pages: list[int] = []
        """Pages of each run."""
        self.end_pages: list[int] = []
        """Pages from a prompt's begin to the run's end."""
        self._known: dict[tuple[int, object, int], int] = {}

    def __len__(self) -> int:
        """Return how many runs there are."""
        return len(self.pages)

    def name(self, pieces: Iterable[tuple[object, int]]) -> tuple[int, ...]:
        """Return the runs of a prompt; pieces that complete no page have none.

        Args:
            pieces: contents and end (in tokens from the prompt's begin) of each piece, in order; prompts whose first
                pieces have equal contents begin alike.
        """
        runs: list[int] = []
        parent, done = ROOT, 0
        for content, end in pieces:
            parent = self.follow(parent, content, end)
            if self.end_pages[parent] > done:
                runs.append(parent)
                done = self.end_pages[parent]
        return tuple(runs)

    def follow(self, parent: int, content: object, end: int) -> int:
        """Return the run that follows another and ends with the last full page before token `end`."""
        key = (parent, content, end)
        run = self._known.get(key)
        if run is None:
            before = self.end_pages[parent] if parent >= 0 else 0
            after = end // self.block_size
            run = self._known[key] = len(self.pages)
            self.pages.append(after - before)
            self.end_pages.append(after)
        return run
