"""What a load run measured: one record a request, and their summary.

Definitions: TTFT, from the moment a request was due (open loop) or sent (closed loop) to its first token. TPOT, from
the first token to the last, divided by output tokens - 1. ITL, the gaps between the events that brought tokens.
"""

from __future__ import annotations

from collections import Counter
from math import ceil, floor
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Objectives", "Percentiles", "Record", "Summary", "percentile", "summarize"]


class Record(msgspec.Struct, kw_only=True):
    """One request as the client saw it.

    Units:
        due_s, sent_s: seconds since the load began; ttft_s, e2e_s, gaps_s: seconds.
    """

    index: int
    due_s: float
    sent_s: float
    ttft_s: float | None = None
    e2e_s: float | None = None
    gaps_s: list[float] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    status: int = 0
    finish_reason: str | None = None
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None for fewer than two tokens."""
        if self.ttft_s is None or self.e2e_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution in brief, in the unit of its values; all zero when `count` is 0."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Objectives(msgspec.Struct, frozen=True, kw_only=True):
    """What a request must keep to count towards goodput; None: any value will do.

    Units:
        ttft_s, tpot_s: seconds.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None

    def met_by(self, record: Record) -> bool:
        """Tell whether a request was answered within the objectives."""
        if record.error is not None or record.ttft_s is None:
            return False
        if self.ttft_s is not None and record.ttft_s > self.ttft_s:
            return False
        return self.tpot_s is None or record.tpot_s is None or record.tpot_s <= self.tpot_s


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A load run in figures.

    `goodput_per_s` and `goodput_share` count the requests that met the objectives. `lateness_s` is how far behind
    its plan the generator sent; `client_cpu_s` is the CPU time of the process that sent the load.

    Units:
        *_s: seconds; *_per_s: per second of `duration_s` (first request sent to last answer).
    """

    requests: int
    completed: int
    failed: int
    interrupted: int
    errors: dict[str, int]
    duration_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_s: Percentiles
    tpot_s: Percentiles
    itl_s: Percentiles
    e2e_s: Percentiles
    lateness_s: Percentiles
    objectives: Objectives
    goodput_per_s: float
    goodput_share: float
    client_cpu_s: float = 0.0


INTERRUPTED = "interrupted"


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of ascending values lie, interpolated linearly."""
    position = (len(ordered) - 1) * share
    low, high = floor(position), ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def distribution(values: Iterable[float | None]) -> Percentiles:
    """Sum up the values that are not None."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return Percentiles()
    return Percentiles(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=percentile(ordered, 0.50),
        p90=percentile(ordered, 0.90),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


def summarize(records: Sequence[Record], *, objectives: Objectives | None = None, client_cpu_s: float = 0.0) -> Summary:
    """Sum up a run; only completed requests count in latencies and throughput."""
    objectives = objectives or Objectives()
    done = [record for record in records if record.error is None]
    failed = [record.error for record in records if record.error not in {None, INTERRUPTED}]
    duration_s = _duration(records)
    per_s = 1.0 / duration_s if duration_s > 0 else 0.0
    good = sum(objectives.met_by(record) for record in done)
    prompt_tokens = sum(record.prompt_tokens for record in done)
    output_tokens = sum(record.output_tokens for record in done)
    return Summary(
        requests=len(records),
        completed=len(done),
        failed=len(failed),
        interrupted=len(records) - len(done) - len(failed),
        errors=dict(Counter(str(error) for error in failed).most_common()),
        duration_s=duration_s,
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(record.cached_tokens for record in done),
        output_tokens=output_tokens,
        requests_per_s=len(done) * per_s,
        output_tokens_per_s=output_tokens * per_s,
        total_tokens_per_s=(prompt_tokens + output_tokens) * per_s,
        ttft_s=distribution(record.ttft_s for record in done),
        tpot_s=distribution(record.tpot_s for record in done),
        itl_s=distribution(gap for record in done for gap in record.gaps_s),
        e2e_s=distribution(record.e2e_s for record in done),
        lateness_s=distribution(record.sent_s - record.due_s for record in records),
        objectives=objectives,
        goodput_per_s=good * per_s,
        goodput_share=good / len(records) if records else 0.0,
        client_cpu_s=client_cpu_s,
    )


def _duration(records: Sequence[Record]) -> float:
    """Return the seconds from the first request sent to the last answer ended."""
    ends = [record.due_s + record.e2e_s for record in records if record.e2e_s is not None]
    return max(ends) - min(record.sent_s for record in records) if ends else 0.0
