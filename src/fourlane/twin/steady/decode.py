"""How answers are decoded in steady state: how many sequences are under way, and how long each step takes.

By Little's law a rank has as many sequences as begin a second times how long they stay, and they stay as long as steps
with so many sequences take: a fixed point. Sequences hold KV blocks from their reservation, before prefill, to their
end (`docs/architecture.md`, life of a request).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fourlane.twin.steady.request_mix import RequestMix
    from fourlane.twin.steady.step_tables import DecodeTable

__all__ = ["DecodeRoom", "DecodeState", "decode_capacity", "decode_state"]

_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class DecodeRoom:
    """What limits the sequences of a rank.

    Args:
        units, ranks: units, and ranks of each.
        max_running: sequences a rank.
        blocks: KV blocks of a rank.
        block_size: tokens of a block.
        tokens_per_step: tokens a sequence gets in a step.
    """

    units: int
    ranks: int
    max_running: int
    blocks: int
    block_size: int
    tokens_per_step: float

    @property
    def all_ranks(self) -> int:
        """Return the ranks of all units."""
        return self.units * self.ranks


@dataclass(frozen=True, slots=True)
class DecodeState:
    """Decode units in steady state.

    Args:
        sequences: decoding on a rank of a unit that works.
        step_s: of a unit.
        busy: share of time a unit that gets work steps.
        working: units that get work.
        blocks_used: share of all KV blocks that are held.
        slots_used: share of the sequences that ranks may have.
    """

    sequences: float
    step_s: float
    busy: float
    working: float
    blocks_used: float
    slots_used: float

    @property
    def fits(self) -> bool:
        """Tell whether there is room for all sequences."""
        return self.blocks_used <= 1 and self.slots_used <= 1


def decode_state(
    table: DecodeTable, mix: RequestMix, rate: float, room: DecodeRoom, *, held_s: float, slower: float = 1.0
) -> DecodeState:
    """Return the steady state at a rate.

    Args:
        table: what steps take.
        mix: of requests.
        rate: requests a second, all units.
        room: of ranks.
        held_s: from a sequence's reservation to its first step.
        slower: how many times as long steps take as in the table.
    """
    steps = float(mix.further_N.mean()) / room.tokens_per_step
    begun = rate * steps * slower
    working, sequences = float(room.units), 0.0
    for _ in range(_ROUNDS):
        sequences = table.sequences(begun / (working * room.ranks))
        wanted = min(float(room.units), max(1.0, sequences * working))
        if abs(wanted - working) < 1e-3:
            break
        working = wanted
    step_s = table.seconds(sequences) * slower
    waiting = rate * held_s / room.all_ranks
    mean = rate * steps * step_s / room.all_ranks
    prompt, decoding = mix.pages(room.block_size)
    blocks = mean * decoding + waiting * prompt + min(mean + waiting, room.blocks / 4)
    under_way = sequences * room.ranks
    return DecodeState(
        sequences=sequences,
        step_s=step_s,
        busy=1.0 - float(np.exp(-under_way)),
        working=working,
        blocks_used=blocks / room.blocks,
        slots_used=(mean + waiting) / room.max_running,
    )


def decode_capacity(
    table: DecodeTable, mix: RequestMix, room: DecodeRoom, *, held_s: float, slower: float = 1.0
) -> float:
    """Return the requests a second that decode ranks have room and time for; arguments as of `decode_state`."""
    steps = float(mix.further_N.mean()) / room.tokens_per_step
    if not steps:
        return float("inf")
    prompt, decoding = mix.pages(room.block_size)
    sequences_X = np.linspace(0.0, float(room.max_running), 257)[1:]
    seconds_X = np.interp(sequences_X, table.sequences_X, table.seconds_X) * slower
    rate_X = sequences_X / seconds_X / steps
    waiting_X = rate_X * held_s
    blocks_X = sequences_X * decoding + waiting_X * prompt + np.minimum(sequences_X + waiting_X, room.blocks / 4)
    allowed_X = (blocks_X <= room.blocks) & (sequences_X + waiting_X <= room.max_running)
    return float(rate_X.max(where=allowed_X, initial=0.0)) * room.all_ranks
