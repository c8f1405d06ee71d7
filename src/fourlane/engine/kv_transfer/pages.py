"""Where KV lies in a paged cache: from layer, pages and tokens to ranges of bytes.

K (or V) of one page of one layer is contiguous. Consecutive tokens of a sequence are therefore a
few runs of bytes, cut at pages that do not follow each other.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.engine.kv_transfer.contract import KvGeometry

__all__ = ["Pages", "SequencePages"]

_MOST_CUTS = 64


class Pages:
    """A cache's memory, cut into pages.

    Args:
        buffer: writable bytes of the whole cache, [layers, 2, blocks, block_size, kv_heads, head_dim].
        geometry: its shape.
    """

    def __init__(self, buffer: memoryview, geometry: KvGeometry) -> None:
        if buffer.nbytes != geometry.total_bytes or buffer.readonly:
            raise ValueError(f"KV memory: expected {geometry.total_bytes} writable bytes, got {buffer.nbytes}")
        self.geometry = geometry
        self.buffer = buffer.cast("B")
        self.v_shift = geometry.blocks * geometry.block_bytes
        """Bytes from the K of a token to its V."""

    @cached_property
    def address(self) -> int:
        """Return where the memory begins, for libraries that take addresses."""
        return np.frombuffer(self.buffer, dtype=np.uint8).ctypes.data


class SequencePages:
    """The pages of one sequence, in logical order. For one thread at a time.

    Args:
        pages: the cache.
        blocks: which of its pages are the sequence's own.
    """

    def __init__(self, pages: Pages, blocks: Sequence[int]) -> None:
        self.blocks = blocks
        self._pages = pages
        # Chunks of all layers share their cuts: each is worked out once, for layer 0.
        self._runs_of: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def runs(self, layer: int, first_token: int, tokens: int) -> list[tuple[int, int]]:
        """Return (first byte, end) of the K of consecutive tokens; neighbouring pages make one run.

        Args:
            layer: which layer.
            first_token: position in the sequence.
            tokens: how many, at least 1; all of them within the pages.
        """
        runs = self._runs_of.get((first_token, tokens))
        if runs is None:
            if len(self._runs_of) >= _MOST_CUTS:
                self._runs_of.clear()
            runs = self._runs_of[first_token, tokens] = self._cut(first_token, tokens)
        base = layer * 2 * self._pages.v_shift
        return [(start + base, end + base) for start, end in runs]

    def views(self, layer: int, first_token: int, tokens: int) -> list[memoryview]:
        """Return the memory of K, then of V, of consecutive tokens, in the order of the wire."""
        runs = self.runs(layer, first_token, tokens)
        buffer, shift = self._pages.buffer, self._pages.v_shift
        return [buffer[start:end] for start, end in runs] + [buffer[start + shift : end + shift] for start, end in runs]

    def spans(self, layer: int, first_token: int, tokens: int) -> list[tuple[int, int]]:
        """Return (address, bytes) of K, then of V, of consecutive tokens, in the order of the wire."""
        runs = self.runs(layer, first_token, tokens)
        address, shift = self._pages.address, self._pages.v_shift
        return [(address + start + offset, end - start) for offset in (0, shift) for start, end in runs]

    def _cut(self, first_token: int, tokens: int) -> list[tuple[int, int]]:
        geometry = self._pages.geometry
        block_size, block_bytes, token_bytes = geometry.block_size, geometry.block_bytes, geometry.token_bytes
        runs: list[tuple[int, int]] = []
        begun, end = 0, -1
        position, left = first_token, tokens
        while left:
            page, offset = divmod(position, block_size)
            count = min(left, block_size - offset)
            start = self.blocks[page] * block_bytes + offset * token_bytes
            if start != end:
                if end >= 0:
                    runs.append((begun, end))
                begun = start
            end = start + count * token_bytes
            position, left = position + count, left - count
        return [*runs, (begun, end)]
