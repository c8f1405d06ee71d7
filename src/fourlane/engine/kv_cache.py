"""Pages of the KV cache: who holds which, which may be reused, which prefixes they contain.

Bookkeeping only; the tensor belongs to `kv_transfer.storage` and the model writes into it.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["BlockPool"]


class BlockPool:
    """A fixed number of pages with reference counts and a cache of prefixes.

    A page is *held* (count > 0), *cached* (count 0, contents still named; reused oldest first)
    or *free*. `free_blocks` counts the latter two: all of them can be handed out.
    """

    def __init__(self, blocks: int, *, prefix_cache: bool) -> None:
        self.total_blocks = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._count = [0] * blocks
        self._name_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.prefix_cache = prefix_cache

    @property
    def free_blocks(self) -> int:
        """Return the pages that can be handed out."""
        return len(self._free) + len(self._cached)

    def take(self, count: int) -> list[int] | None:
        """Hand out `count` pages, or None (and nothing) if there are not as many."""
        if count > self.free_blocks:
            return None
        return [self._take_one() for _ in range(count)]

    def match(self, names: list[bytes]) -> list[int]:
        """Return, and hold, the pages of the longest cached prefix.

        Args:
            names: of the sequence's full pages, from `policy.prefix.prefix_hashes`.
        """
        blocks: list[int] = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            self._hold(block)
            blocks.append(block)
        return blocks

    def name(self, block: int, name: bytes) -> None:
        """Say that a held page now contains this prefix, so that others may share it."""
        if self.prefix_cache and name not in self._block_of and block not in self._name_of:
            self._block_of[name] = block
            self._name_of[block] = name

    def release(self, blocks: list[int]) -> None:
        """Give pages back; named ones stay cached, the end of a sequence being reused first.

        Raises:
            ValueError: a page is not held.
        """
        for block in reversed(blocks):
            if self._count[block] <= 0:
                raise ValueError(f"page {block} is released but not held")
            self._count[block] -= 1
            if self._count[block]:
                continue
            if block in self._name_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def _hold(self, block: int) -> None:
        self._count[block] += 1
        self._cached.pop(block, None)

    def _take_one(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._name_of.pop(block)]
        self._count[block] = 1
        return block
