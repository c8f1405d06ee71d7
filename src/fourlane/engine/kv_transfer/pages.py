"""Where KV lies in a paged cache: from layer, pages and tokens to ranges of bytes.

K (or V) of one page of one layer is contiguous. Consecutive tokens of a sequence are therefore a
few runs of bytes, cut at pages that do not follow each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.engine.kv_transfer.contract import KvGeometry

__all__ = ["Pages"]


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
        self._buffer = buffer.cast("B")
        self._block_bytes = geometry.block_bytes
        self._v_shift = geometry.blocks * geometry.block_bytes

    def runs(self, layer: int, blocks: Sequence[int], first_token: int, tokens: int) -> list[tuple[int, int]]:
        """Return (offset, bytes) of the K of consecutive tokens; neighbouring pages make one run.

        Args:
            layer: which layer.
            blocks: the sequence's pages, in logical order.
            first_token: position in the sequence.
            tokens: how many, at least 1; all of them within the pages.
        """
        token_bytes, block_size = self.geometry.token_bytes, self.geometry.block_size
        base = layer * 2 * self._v_shift
        runs: list[tuple[int, int]] = []
        end = -1
        position, left = first_token, tokens
        while left:
            page, offset = divmod(position, block_size)
            count = min(left, block_size - offset)
            start = base + blocks[page] * self._block_bytes + offset * token_bytes
            if start == end:
                runs[-1] = (runs[-1][0], runs[-1][1] + count * token_bytes)
            else:
                runs.append((start, count * token_bytes))
            end = start + count * token_bytes
            position, left = position + count, left - count
        return runs

    def views(self, layer: int, blocks: Sequence[int], first_token: int, tokens: int) -> list[memoryview]:
        """Return the memory of K, then of V, of consecutive tokens, in the order of the wire."""
        runs = self.runs(layer, blocks, first_token, tokens)
        buffer, shift = self._buffer, self._v_shift
        return [buffer[start : start + size] for start, size in runs] + [
            buffer[start + shift : start + shift + size] for start, size in runs
        ]
