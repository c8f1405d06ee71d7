"""A rank's pages, as the engine's `kv_cache.BlockPool` counts them, in runs of pages with one name.

Told from the engine's pool only when pages must be found: a run that is no longer in use gives all its pages back at
once, where the engine's gives them one by one, the last first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.twin.serving.prompt_names import PromptNames

__all__ = ["PagePool"]


class PagePool:
    """A fixed number of pages with reference counts and a cache of prefixes."""

    def __init__(self, pages: int, names: PromptNames, *, prefix_cache: bool) -> None:
        self.total = pages
        self.prefix_cache = prefix_cache
        self._pages_of = names.pages
        self._free = pages
        self._cached_pages = 0
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._held: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Return the pages that can be handed out."""
        return self._free + self._cached_pages

    def match(self, runs: Sequence[int]) -> list[int]:
        """Return, and hold, the longest cached prefix of a prompt's runs."""
        found: list[int] = []
        if not self.prefix_cache:
            return found
        for run in runs:
            if run in self._held:
                self._held[run] += 1
            elif run in self._cached:
                del self._cached[run]
                self._cached_pages -= self._pages_of[run]
                self._held[run] = 1
            else:
                break
            found.append(run)
        return found

    def take(self, pages: int) -> bool:
        """Hand out pages without a name; False (and none) if there are not as many."""
        if pages > self.free:
            return False
        while self._free < pages:
            run, _ = self._cached.popitem(last=False)
            self._cached_pages -= self._pages_of[run]
            self._free += self._pages_of[run]
        self._free -= pages
        return True

    def name(self, run: int) -> bool:
        """Say that held pages now contain this run; False if another sequence's do already, and these stay nameless."""
        if not self.prefix_cache or run in self._held or run in self._cached:
            return False
        self._held[run] = 1
        return True

    def release(self, runs: Sequence[int], nameless: int) -> None:
        """Give pages back; named ones stay cached, the end of a sequence being reused first."""
        self._free += nameless
        for run in reversed(runs):
            count = self._held[run] - 1
            if count:
                self._held[run] = count
                continue
            del self._held[run]
            self._cached[run] = None
            self._cached_pages += self._pages_of[run]

    def clear(self) -> None:
        """Forget everything: the rank's process is another one."""
        self._free, self._cached_pages = self.total, 0
        self._cached.clear()
        self._held.clear()
