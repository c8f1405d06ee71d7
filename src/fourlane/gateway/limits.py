"""What the router waits for, and what it says when that took too long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.errors import ServiceUnavailable
from fourlane.policy.request_routing import retry_delay

if TYPE_CHECKING:
    from fourlane.gateway.generation import Attempt, Generation
    from fourlane.gateway.ranks import RankView
    from fourlane.spec.deployment import Deployment

__all__ = ["Limits", "stall_of", "timed_out"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what the router takes on and waits for.

    Units:
        *_s: seconds.
    """

    max_queued_requests: int = 256
    request_timeout_s: float = 600.0
    max_retries: int = 3
    reserve_timeout_s: float = 20.0
    """A decode rank that does not answer a reservation for so long has lost it."""
    gap_timeout_s: float = 5.0
    """A token missing for so long, while later ones have come, is lost."""
    retry_delay_s: float = 0.1
    """Wait before the first retry after a failure; doubles with each, up to two seconds."""
    last_token_grace_s: float = 0.25
    """Wait for a first token that may be the last, after the KV stream behind it has ended."""
    refusal_delay_s: float = 0.5
    """A rank that refused a reservation gets no other for so long, unless it reports sooner."""

    @classmethod
    def of(cls, deployment: Deployment) -> Limits:
        """Return the limits a deployment asks for."""
        gateway = deployment.gateway
        return cls(
            max_queued_requests=gateway.max_queued_requests,
            request_timeout_s=gateway.request_timeout.seconds,
            max_retries=gateway.max_retries,
        )

    def retry_delay(self, retries: int) -> float:
        """Return how long to wait before retry number `retries`, in seconds."""
        return retry_delay(retries, self.retry_delay_s)


def stall_of(attempt: Attempt, limits: Limits, now: float) -> tuple[str, RankView] | None:
    """Return what an attempt has waited for too long, and the rank to blame; None if nothing.

    While a rank is paused its sequences rest, and nothing is late.
    """
    if attempt.decode.state == "paused" or attempt.prefill.state == "paused":
        return None
    if attempt.state == "reserving" and now - attempt.since > limits.reserve_timeout_s:
        name = attempt.decode.name
        return f"rank {name} did not answer a reservation for {limits.reserve_timeout_s:g} s", attempt.decode
    if attempt.gap_since is not None and now - attempt.gap_since > limits.gap_timeout_s:
        missing = len(attempt.choice.tokens)
        reason = f"token {missing} did not come for {limits.gap_timeout_s:g} s, though later ones did"
        return reason, attempt.prefill if missing == attempt.first_index else attempt.decode
    return None


def timed_out(generation: Generation, limits: Limits) -> ServiceUnavailable:
    """Return the error for a request past its deadline: where it was, how far it got, what failed last."""
    open_choices = [choice for choice in generation.choices if not choice.finished]
    attempt = next((choice.attempt for choice in open_choices if choice.attempt is not None), None)
    where = "waiting for room on a rank"
    if attempt is not None:
        where = f"{attempt.state} on ranks {attempt.prefill.name} and {attempt.decode.name}"
    failure = next((choice.last_failure for choice in open_choices if choice.last_failure), "")
    tokens = sum(len(choice.tokens) for choice in generation.choices)
    return ServiceUnavailable(
        f"the request did not end within {limits.request_timeout_s:g} s: it was {where} after {tokens} tokens"
        + (f"; the last failure: {failure}" if failure else "")
    )
