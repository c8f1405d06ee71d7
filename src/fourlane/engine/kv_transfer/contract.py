"""The contract of KV transfer: layer by layer, straight into reserved pages, checked.

A decode rank owns a `KvReceiver`; it says which pages a sequence's KV may fill and is told, on a
thread of the receiver, when all of it is there. A prefill rank owns a `KvSender`; it opens a
`KvStream` a sequence and hands it each layer's K and V as soon as they are computed. Neither
blocks the computing thread. Implementations: `tcp`, `shared_memory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fourlane.engine.messages import KvAddress

__all__ = ["Delivery", "KvGeometry", "KvReceiver", "KvSender", "KvStream"]


@dataclass(frozen=True, slots=True)
class KvGeometry:
    """Shape of a paged KV cache: [layers, 2 (K, V), blocks, block_size, kv_heads, head_dim].

    Sender and receiver agree on everything but `blocks`; a stream between unlike caches is refused.
    """

    layers: int
    blocks: int
    block_size: int
    kv_heads: int
    head_dim: int
    dtype: str = "float32"

    @property
    def token_bytes(self) -> int:
        """Bytes of K (or V) of one token in one layer."""
        return self.kv_heads * self.head_dim * {"float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of K (or V) of one page in one layer."""
        return self.block_size * self.token_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.layers * 2 * self.blocks * self.block_bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a sequence's KV travelled, by the sender's clock.

    Units:
        bytes: payload; transfer_s: seconds in which KV of this stream was under way: from a chunk's
        first byte until the sender knows that it is in its pages and checked, overlaps counted
        once, plus the wait for the last acknowledgement; hidden_s: the part of it before
        `KvStream.finish` was called, that is, under computation. The rest is what a sequence waits.
    """

    bytes: int
    transfer_s: float
    hidden_s: float


class KvStream(Protocol):
    """One sequence's KV on its way. Every method returns at once; a thread does the sending."""

    def send(self, layer: int, first_token: int, k_THd: Tensor, v_THd: Tensor) -> None:
        """Queue K and V of consecutive tokens of one layer.

        Args:
            k_THd, v_THd: contiguous [tokens, kv heads, head dim]; must not change until the
                stream has ended.
        """
        ...

    def finish(self, *, tokens: int, first_token_id: int) -> None:
        """Say that computation is done: `tokens` tokens make the whole; pass on the token sampled.

        Afterwards exactly one of the callbacks given to `KvSender.open` is called, unless
        `on_failed` has been called already: then this does nothing.
        """
        ...

    def abort(self, reason: str) -> None:
        """Give up; the receiver is told. No callback follows but one already under way."""
        ...


class KvSender(Protocol):
    """The prefill side. Thread-safe; keeps one connection a receiver."""

    def open(
        self,
        sequence_id: int,
        target: KvAddress,
        *,
        on_delivered: Callable[[Delivery], None],
        on_failed: Callable[[str], None],
    ) -> KvStream:
        """Begin a stream. Never blocks: a connection that cannot be made ends in `on_failed`.

        on_failed is called as soon as the stream is lost, even before `KvStream.finish`; what is
        sent to a lost stream is dropped. The callbacks run on the sender's thread and must be quick and thread-safe.
        """
        ...

    def bytes_sent(self) -> int:
        """Return payload bytes sent since the beginning."""
        ...

    def close(self) -> None:
        """Stop threads and close sockets; open streams fail."""
        ...


class KvReceiver(Protocol):
    """The decode side. Thread-safe."""

    endpoint: str

    def expect(
        self,
        sequence_id: int,
        blocks: list[int],
        *,
        tokens: int,
        on_complete: Callable[[int], None],
        on_failed: Callable[[str], None],
    ) -> None:
        """Let a stream fill these pages (in logical order) with `tokens` tokens of KV.

        Exactly one callback follows, on a thread of the receiver, unless `forget` came before:
        on_complete(first_token_id) when every layer of every token is there, checksums agreed;
        on_failed(reason) when the connection broke, a checksum disagreed, something was missing
        or nothing came within the timeout. From then on no byte is written to the pages any more;
        where the sender writes to them itself (shared memory), on_failed waits until it has
        confirmed that it stopped, or its process is gone.
        """
        ...

    def forget(self, sequence_id: int, on_released: Callable[[], None]) -> None:
        """Stop expecting. Returns at once; the pages may be used again only after `on_released`.

        on_released is called exactly once: before this returns when nobody can be writing to the
        pages (always with TCP, and for ids that are not expected or have ended), else on a thread
        of the receiver when the sender has confirmed that it stopped, or its process is gone.
        `close` leaves those out that are still waited for.
        """
        ...

    def close(self) -> None:
        """Stop threads, close sockets, remove socket files."""
        ...
