"""What a receiver expects, sequence by sequence, and how far each has come.

No sockets here. A `Reservation` is bound to at most one sender; every layer of every token is
claimed exactly once, before its bytes are let into the pages. Whoever writes into pages does so
under `Reservation.writing`, so that taking it and ending the reservation is enough to be sure.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import TYPE_CHECKING

from fourlane.errors import ProtocolError, TransferError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from fourlane.engine.kv_transfer.contract import KvGeometry
    from fourlane.engine.kv_transfer.frames import Header
    from fourlane.engine.kv_transfer.storage import Landing

__all__ = ["Coverage", "Reservation", "State", "check_fit"]


class State(Enum):
    """Where a reservation stands."""

    WAITING = "waiting"
    """No sender has begun."""
    FLOWING = "flowing"
    """A sender has begun."""
    STOPPING = "stopping"
    """It failed or was forgotten, but somebody may still be writing to the pages: its sender, or our reads."""
    ENDED = "ended"
    """Nobody writes to the pages any more."""


class Coverage:
    """Which tokens of which layer have been claimed, and which have landed.

    Args:
        layers, tokens: what makes the whole.
    """

    def __init__(self, layers: int, tokens: int) -> None:
        self.layers = layers
        self.tokens = tokens
        self._claimed_L = [0] * layers
        self._landed_L = [0] * layers

    def claim(self, layer: int, first_token: int, tokens: int) -> None:
        """Take a range of a layer's tokens, which nobody may have taken before.

        Raises:
            ProtocolError: outside of what is expected.
            TransferError: taken before.
        """
        if not (0 <= layer < self.layers and tokens > 0 and first_token + tokens <= self.tokens):
            raise ProtocolError(
                f"tokens {first_token} to {first_token + tokens} of layer {layer}: "
                f"expected at most {self.tokens} tokens of {self.layers} layers"
            )
        mask = ((1 << tokens) - 1) << first_token
        if self._claimed_L[layer] & mask:
            raise TransferError(f"tokens {first_token} to {first_token + tokens} of layer {layer} came twice")
        self._claimed_L[layer] |= mask

    def unclaim(self, layer: int, first_token: int, tokens: int) -> None:
        """Give back a claim whose bytes will not come: their connection is gone."""
        self._claimed_L[layer] &= ~(((1 << tokens) - 1) << first_token)

    def land(self, layer: int, first_token: int, tokens: int) -> None:
        """Count claimed tokens whose bytes are in the pages and agree with their checksum."""
        self._landed_L[layer] |= ((1 << tokens) - 1) << first_token

    def has(self, layer: int, first_token: int, tokens: int) -> bool:
        """Tell whether tokens of a layer have all landed."""
        mask = ((1 << tokens) - 1) << first_token
        return 0 <= layer < self.layers and self._landed_L[layer] & mask == mask

    @property
    def complete_layers(self) -> int:
        """Return how many layers have landed whole."""
        return sum(landed.bit_count() == self.tokens for landed in self._landed_L)

    @property
    def complete(self) -> bool:
        """Tell whether everything has landed."""
        return self.complete_layers == self.layers

    def __str__(self) -> str:
        """Describe the progress, as in "12 of 16 layers"."""
        partly = sum(0 < landed.bit_count() < self.tokens for landed in self._landed_L)
        return f"{self.complete_layers} of {self.layers} layers" + (f" and parts of {partly}" if partly else "")


class Reservation:
    """One sequence's pages while its KV is expected.

    `state`, `owner`, `failure`, `reads` and `on_released` change only while `writing` is held.
    `active_at`: when something of it came last, or when it was made. `reads`: reads into the pages
    that a library of ours has under way. `resent`: layer, first token and tokens of the chunks whose
    second copy came before the first, which may still be in the kernel's buffers. `finish`: a FINISH
    that waits for reads.
    """

    def __init__(
        self,
        sequence_id: int,
        blocks: Sequence[int],
        *,
        coverage: Coverage,
        landing: Landing,
        on_complete: Callable[[int], None],
        on_failed: Callable[[str], None],
        now: float,
    ) -> None:
        self.sequence_id = sequence_id
        self.blocks = list(blocks)
        self.coverage = coverage
        self.landing = landing
        self.on_complete = on_complete
        self.on_failed = on_failed
        self.active_at = now
        self.writing = threading.Lock()
        self.state = State.WAITING
        self.owner: Hashable | None = None
        self.failure: str | None = None
        self.reads = 0
        self.resent: set[tuple[int, int, int]] = set()
        self.finish: Header | None = None
        self.on_released: list[Callable[[], None]] = []

    def bind(self, owner: Hashable) -> None:
        """Let one sender, and no other, fill the pages.

        Raises:
            TransferError: another one does already, or it is over.
        """
        if self.state is State.WAITING:
            self.state, self.owner = State.FLOWING, owner
        elif self.state is not State.FLOWING:
            raise TransferError("not expected any more")
        elif self.owner is not owner:
            raise TransferError("another sender is sending it already")

    def claim(self, header: Header) -> list[memoryview]:
        """Claim a frame's tokens and return the memory for its K, then its V.

        Raises:
            ProtocolError: outside of the pages.
            TransferError: claimed before.
        """
        self.coverage.claim(header.layer, header.first_token, header.tokens)
        return self.landing.pages.views(header.layer, header.first_token, header.tokens)


def check_fit(geometry: KvGeometry, blocks: Sequence[int], tokens: int) -> None:
    """Check that pages exist, are told apart, and hold so many tokens.

    Raises:
        ValueError: they do not.
    """
    if not blocks or len(set(blocks)) != len(blocks) or min(blocks) < 0 or max(blocks) >= geometry.blocks:
        raise ValueError(f"pages: expected different ones in 0 to {geometry.blocks - 1}, got {list(blocks)}")
    if not 0 < tokens <= len(blocks) * geometry.block_size:
        raise ValueError(f"tokens: expected 1 to {len(blocks) * geometry.block_size} for the pages, got {tokens}")
