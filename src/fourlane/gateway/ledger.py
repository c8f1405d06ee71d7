"""The book of sequences at ranks: begun, grown, struck out; and what ranks are told of it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from fourlane.engine.messages import Cancel, KvAddress, Prefill, Reserve, Run, SequenceSpec
from fourlane.gateway.generation import Attempt
from fourlane.policy.request_routing import pages_for

if TYPE_CHECKING:
    from fourlane.gateway.generation import Choice
    from fourlane.gateway.placing import Placing
    from fourlane.gateway.ranks import RankLink

__all__ = ["Ledger"]


class Ledger:
    """Every attempt under way, and with it what each rank is counted with.

    Whatever changes a rank's `owned`, `pages`, `queued_tokens` or `attempts` does it here.
    """

    def __init__(self, link: RankLink, block_size: int) -> None:
        self._link = link
        self._block_size = block_size
        self._attempts: dict[int, Attempt] = {}
        # ranks may outlive a gateway: its successor's ids must not meet sequences they still hold
        self._last_id = secrets.randbits(30) << 32

    def __len__(self) -> int:
        """Return the number of sequences at ranks."""
        return len(self._attempts)

    def get(self, sequence_id: int) -> Attempt | None:
        """Return the attempt with this id, None if it is over or unknown."""
        return self._attempts.get(sequence_id)

    def all(self) -> list[Attempt]:
        """Return every attempt under way."""
        return list(self._attempts.values())

    def begin(self, choice: Choice, placing: Placing, now: float) -> None:
        """Enter an attempt and send it off: a reservation, or all of it to a unified rank."""
        self._last_id += 1
        attempt = Attempt(
            sequence_id=self._last_id,
            choice=choice,
            decode=placing.decode,
            prefill=placing.prefill,
            pages=placing.pages,
            prompt_cost=placing.prompt_cost,
            first_index=len(choice.tokens),
            since=now,
        )
        choice.attempt = attempt
        self._attempts[attempt.sequence_id] = attempt
        attempt.decode.attempts.add(attempt)
        attempt.prefill.attempts.add(attempt)
        attempt.decode.owned += 1
        attempt.decode.pages += placing.pages
        attempt.prefill.queued_tokens += placing.prompt_cost
        attempt.prefill.remember_prefix(choice.hashes)
        if attempt.prefill is attempt.decode:
            attempt.state = "decoding"
            self._link.send(attempt.decode.name, Run(sequence=_sequence(attempt)))
        else:
            self._link.send(attempt.decode.name, Reserve(sequence=_sequence(attempt)))

    def prefill(self, attempt: Attempt, target: KvAddress, now: float) -> None:
        """Send a reserved attempt to its prefill rank."""
        attempt.state = "prefilling"
        attempt.since = now
        self._link.send(attempt.prefill.name, Prefill(sequence=_sequence(attempt), target=target))

    def computed(self, attempt: Attempt) -> None:
        """Note that the prompt is computed: it is no longer in its prefill rank's queue."""
        attempt.prefill.queued_tokens -= attempt.prompt_cost
        attempt.prompt_cost = 0

    def grow(self, attempt: Attempt) -> None:
        """Count the pages that the tokens there are now take."""
        tokens = len(attempt.choice.spec.token_ids) + len(attempt.choice.tokens)
        pages = pages_for(tokens, self._block_size)
        if pages > attempt.pages:
            attempt.decode.pages += pages - attempt.pages
            attempt.pages = pages

    def release(self, attempt: Attempt) -> None:
        """Strike out an attempt its ranks know to be over."""
        del self._attempts[attempt.sequence_id]
        attempt.choice.attempt = None
        attempt.decode.attempts.discard(attempt)
        attempt.prefill.attempts.discard(attempt)
        attempt.decode.owned -= 1
        attempt.decode.pages -= attempt.pages
        self.computed(attempt)

    def abandon(self, attempt: Attempt) -> None:
        """Strike out an attempt and tell its ranks to drop it."""
        self.release(attempt)
        for rank in {attempt.decode.name: attempt.decode, attempt.prefill.name: attempt.prefill}.values():
            if rank.state not in {"lost", "starting"}:
                self._link.send(rank.name, Cancel(sequence_ids=[attempt.sequence_id]))


def _sequence(attempt: Attempt) -> SequenceSpec:
    spec = attempt.choice.spec
    return SequenceSpec(
        sequence_id=attempt.sequence_id,
        token_ids=spec.token_ids + attempt.choice.tokens,
        prompt_tokens=len(spec.token_ids),
        sampling=spec.sampling,
    )
