"""What a load consists of: requests with prompts, all drawn from one seed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec

from fourlane.spec.request_load import draw_requests

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fourlane.spec.request_load import Arrivals, Lengths

__all__ = ["PlannedRequest", "plan_requests", "token_ids"]


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request to send.

    `due_s`: seconds after the start of the load; None: as soon as a place is free (closed loop).
    `prompt`: token ids or text.
    """

    prompt: list[int] | str
    max_tokens: int
    due_s: float | None = None


def token_ids(seed: object, length: int, *, vocabulary: range) -> list[int]:
    """Draw token ids that depend on the seed alone."""
    generator = random.Random(f"{seed}")  # noqa: S311 - load, not cryptography
    return generator.choices(vocabulary, k=length)


def plan_requests(
    arrivals: Arrivals,
    *,
    requests: int,
    input_lengths: Lengths,
    output_lengths: Lengths,
    vocabulary: range,
    seed: int,
    texts: Sequence[str] = (),
) -> Iterable[PlannedRequest]:
    """Plan a load of random token ids, or of `texts` in turn (`input_lengths` then goes unused)."""
    drawn = draw_requests(
        arrivals, requests=requests, input_lengths=input_lengths, output_lengths=output_lengths, seed=seed
    )
    for index, (due_s, length, output) in enumerate(drawn):
        prompt = texts[index % len(texts)] if texts else token_ids(f"{seed}/{index}", length, vocabulary=vocabulary)
        yield PlannedRequest(prompt=prompt, max_tokens=output, due_s=due_s)
