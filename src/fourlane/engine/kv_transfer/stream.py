"""One sequence's KV on its way: what the computing thread hands over, and how far it has come.

The thread that sends is the link's (`sender`).
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from fourlane.engine.kv_transfer import frames
from fourlane.engine.kv_transfer.contract import Delivery
from fourlane.engine.kv_transfer.frames import Header, Kind
from fourlane.engine.kv_transfer.staging import ready_event

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from fourlane.engine.kv_transfer.contract import KvGeometry
    from fourlane.engine.kv_transfer.pages import SequencePages
    from fourlane.engine.kv_transfer.sender import Link
    from fourlane.engine.kv_transfer.wire import Wire

__all__ = ["PIECE_BYTES", "Chunk", "Item", "Stream"]

# K and V that fit into a core's cache: what was summed is still there when it is sent, on the other
# side what was received when it is summed; and streams take turns.
PIECE_BYTES = 1 << 20


class Chunk(NamedTuple):
    """K and V of consecutive tokens of one layer, [tokens, kv heads, head dim]."""

    layer: int
    first_token: int
    k_THd: torch.Tensor
    v_THd: torch.Tensor
    ready: torch.cuda.Event | None


class Item(NamedTuple):
    """Something to send: a chunk, or a header with a text.

    `again`: a chunk that was on its way over a connection that was lost; `counted`: its bytes have been counted.
    """

    stream: Stream | None
    header: Header | None
    text: bytes = b""
    chunk: Chunk | None = None
    again: bool = False
    counted: bool = False


class Stream:
    """A `KvStream`. See `contract`."""

    def __init__(
        self,
        sequence_id: int,
        link: Link,
        geometry: KvGeometry,
        *,
        on_delivered: Callable[[Delivery], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self.sequence_id = sequence_id
        self._link = link
        self._geometry = geometry
        self._piece = max(1, PIECE_BYTES // (2 * geometry.token_bytes))
        self._on_delivered = on_delivered
        self._on_failed = on_failed
        self._gate = threading.Lock()
        self.ended = False
        self.finished_at = float("inf")
        # The rest is the link's.
        self.pages: SequencePages | None = None
        self.parked: list[Item] = []
        self.waits_since = time.monotonic()
        self.waits_for: str | None = None
        self.held: Item | None = None
        """FINISH, while chunks on other connections could still arrive after it."""
        self.finished_over: tuple[Wire, Item] | None = None
        """Which connection FINISH has left through."""
        self.sent_bytes = 0
        self.transfer_s = 0.0
        self.hidden_s = 0.0
        self.chunks_under_way = 0
        self.under_way_since = 0.0
        self.checked_at = 0.0
        self.layers_begun: set[int] = set()

    def send(self, layer: int, first_token: int, k_THd: torch.Tensor, v_THd: torch.Tensor) -> None:
        """Queue K and V of consecutive tokens of one layer.

        Raises:
            ValueError: not contiguous, not of the cache's shape and dtype, or no such layer.
        """
        if not 0 <= layer < self._geometry.layers or first_token < 0:
            raise ValueError(
                f"KV: expected layers 0 to {self._geometry.layers - 1}, got {layer}, from token {first_token}"
            )
        wanted = (self._geometry.kv_heads, self._geometry.head_dim)
        for tensor in (k_THd, v_THd):
            if tensor.shape[1:] != wanted or not tensor.is_contiguous() or tensor.shape != k_THd.shape:
                raise ValueError(
                    f"KV: expected contiguous [tokens, {wanted[0]}, {wanted[1]}], got {list(tensor.shape)}"
                )
            if str(tensor.dtype) != f"torch.{self._geometry.dtype}":
                raise ValueError(f"KV: expected {self._geometry.dtype}, got {tensor.dtype}")
        if self.ended or not k_THd.shape[0]:
            return
        k_THd, v_THd, ready = k_THd.detach(), v_THd.detach(), ready_event(v_THd)
        for first in range(0, k_THd.shape[0], self._piece):
            piece = slice(first, first + self._piece)
            self._link.submit(
                Item(self, None, b"", Chunk(layer, first_token + first, k_THd[piece], v_THd[piece], ready))
            )

    def finish(self, *, tokens: int, first_token_id: int) -> None:
        """Say that computation is done."""
        self.finished_at = min(self.finished_at, time.monotonic())
        header = Header(Kind.FINISH, self.sequence_id, first_token=first_token_id, tokens=tokens)
        if not self.ended:
            self._link.submit(Item(self, header))

    def abort(self, reason: str) -> None:
        """Give up; the receiver is told."""
        if self.end():
            text = reason.encode()[: frames.MOST_TEXT]
            self._link.submit(Item(self, Header(Kind.ABORT, self.sequence_id, payload_bytes=len(text)), text))

    def end(self) -> bool:
        """Mark the stream ended; False if it was."""
        with self._gate:
            ended, self.ended = self.ended, True
        return not ended

    def fail(self, reason: str) -> None:
        """End the stream and say why, unless it has ended."""
        if self.end():
            self._on_failed(f"{reason} ({self})")

    def deliver(self) -> None:
        """End the stream well, unless it has ended."""
        if self.end():
            self._on_delivered(Delivery(self.sent_bytes, self.transfer_s, self.hidden_s))

    def chunk_begins(self, now: float) -> None:
        """Note that a chunk's first byte is on its way."""
        if not self.chunks_under_way:
            self.under_way_since = now
        self.chunks_under_way += 1

    def chunk_checked(self, now: float) -> None:
        """Note that the receiver has a chunk, and count the time in which chunks were under way."""
        self.chunks_under_way -= 1
        if not self.chunks_under_way:
            self._count(self.under_way_since, now)
            self.checked_at = now

    def acknowledged(self, now: float) -> None:
        """Count the wait for the acknowledgement, which nothing hides."""
        self._count(max(self.checked_at, self.finished_at), now)

    def _count(self, began: float, ended: float) -> None:
        self.transfer_s += ended - began
        self.hidden_s += max(0.0, min(ended, self.finished_at) - began)

    def __str__(self) -> str:
        """Describe the progress."""
        return f"{len(self.layers_begun)} of {self._geometry.layers} layers sent"
