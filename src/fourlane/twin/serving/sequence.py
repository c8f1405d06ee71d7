"""A request on its way through the simulated service."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fourlane.twin.serving.requests import Request

__all__ = ["Sequence", "State"]

State = Literal["waiting", "reserving", "prefilling", "leaving", "decoding", "done", "failed", "refused"]
"""Waiting in the gateway; reserving pages; at a prefill rank; computed, its KV on its way; decoding; over."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request: where it is, what it holds there, and when it got where.

    An *attempt* is what `gateway.generation.Attempt` is: from the queue to two ranks, until it ends or something is
    lost. `attempt` counts them; whatever was said of an earlier one no longer holds.

    Args:
        emitted: tokens answered.
        tokens: of this attempt's prompt: the request's, and what was answered before.
        asked: pages the gateway's books count; cost: prompt tokens it counts in the prefill rank's queue.
        computed, cached: tokens of the prompt that have KV, and that were found in the prefix cache.
        held, nameless: runs and further pages held on the prefill rank.
        joined: its place in the order of joining the decode unit; -1 unless it decodes. begin_step, end_step: the
            unit's steps between which it does; pages: it holds there.
    """

    index: int
    request: Request
    output_tokens: int
    state: State = "waiting"
    sent_s: float = 0.0
    attempt: int = 0
    emitted: int = 0
    retries: int = 0
    evictions: int = 0
    avoid_prefill: set[int] = field(default_factory=set)
    avoid_decode: set[int] = field(default_factory=set)

    prefill_rank: int = -1
    decode_rank: int = -1
    tokens: int = 0
    runs: tuple[int, ...] = ()
    asked: int = 0
    cost: int = 0

    computed: int = 0
    cached: int = 0
    held: list[int] = field(default_factory=list)
    named: int = 0
    nameless: int = 0
    kv_until: float = 0.0

    joined: int = -1
    begin_step: int = 0
    end_step: int = 0
    begin_tokens: int = 0
    pages: int = 0

    placed_s: float = inf
    started_s: float = inf
    first_token_s: float = inf
    kv_done_s: float = inf
    decoding_s: float = inf
    ended_s: float = inf
    failure: str = ""

    @property
    def pending(self) -> int:
        """Return the prompt's tokens still to compute."""
        return self.tokens - self.computed

    @property
    def over(self) -> bool:
        """Tell whether nothing more will happen to it."""
        return self.state in {"done", "failed", "refused"}
