"""What requests of a workload are, as weights of prompts and answers: all that a steady state depends on.

Drawn lengths stand as equally likely values of their distributions, a trace as its requests. Not for when single
requests come (`fourlane.twin.serving`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from fourlane.spec.request_load import Lengths
from fourlane.spec.request_traces import HASH_BLOCK, read_trace_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.spec.request_traces import TraceRow
    from fourlane.spec.twin import Workload

    Floats = NDArray[np.float64]

__all__ = ["Draws", "RequestMix", "draws", "longest", "request_mix"]

DRAWN, DRAWS = 512, 2048
_P99 = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True, eq=False)
class RequestMix:
    """Requests, equally likely.

    Args:
        input_N, output_N: [requests] tokens of prompts and answers.
        cached_N: [requests] leading tokens of its prompt that a prefix cache holds.
        rate: requests a second; None where none is given.
        concurrency: requests at a time, of a closed loop.
        burstiness: coefficient of variation of the gaps.
        source: in words.
    """

    input_N: Floats
    output_N: Floats
    cached_N: Floats
    rate: float | None
    concurrency: int | None
    burstiness: float
    source: str

    @property
    def new_N(self) -> Floats:  # noqa: N802 - a shape suffix
        """Return the prompt tokens that are computed."""
        return self.input_N - self.cached_N

    @property
    def further_N(self) -> Floats:  # noqa: N802 - a shape suffix
        """Return the tokens after the first, which decode ranks compute."""
        return np.maximum(self.output_N - 1.0, 0.0)

    @property
    def pairs(self) -> float:
        """Return the mean positions a computed prompt token attends to."""
        pairs_N = (self.input_N * (self.input_N + 1) - self.cached_N * (self.cached_N + 1)) / 2
        return float(pairs_N.sum() / self.new_N.sum())

    @property
    def decode_context(self) -> float:
        """Return the mean positions a decoding sequence has in its cache, over the steps that are computed."""
        weight = self.further_N.sum()
        if not weight:
            return float(self.input_N.mean())
        return float((self.further_N * (self.input_N + (self.further_N + 1) / 2)).sum() / weight)

    def pages(self, block_size: int) -> tuple[float, float]:
        """Return the KV blocks of a prompt, mean of requests, and of a decoding sequence, mean of steps."""
        prompt_N = np.ceil(self.input_N / block_size)
        grown_N = (prompt_N + np.ceil((self.input_N + self.further_N) / block_size)) / 2
        weight = self.further_N.sum()
        return float(prompt_N.mean()), float((grown_N * self.further_N).sum() / weight) if weight else 0.0


@dataclass(frozen=True, eq=False)
class Draws:
    """Requests picked out evenly, each with what it happens to meet, as numbers spread evenly over 0..1, [draws].

    Args:
        input_N, new_N, further_N: of the requests: tokens of the prompt, of it computed, tokens after the first.
        moment_N: when in a prefill step it comes; finds_N: whether one runs; step_N, joins_N: which one that is, and
            which it is computed in; queue_N, kv_N: the wait for a rank, for the KV path; reserve_N, decode_N: for a
            decode step's end, when pages are asked for and when decoding begins.
    """

    input_N: Floats
    new_N: Floats
    further_N: Floats
    moment_N: Floats
    finds_N: Floats
    step_N: Floats
    joins_N: Floats
    queue_N: Floats
    kv_N: Floats
    reserve_N: Floats
    decode_N: Floats


def draws(mix: RequestMix) -> Draws:
    """Return a fixed set of draws.

    Source: M. Roberts, The unreasonable effectiveness of quasirandom sequences (2018): the additive recurrence by
        powers of the root of x^10 = x + 1.
    """
    root = 2.0
    for _ in range(64):
        root = (1.0 + root) ** 0.1
    steps = root ** -np.arange(1.0, 10.0)
    spread_KN = (0.5 + steps[:, None] * np.arange(1, DRAWS + 1)) % 1.0
    order = np.argsort(mix.new_N, kind="stable")
    chosen = order[(spread_KN[0] * len(order)).astype(int)]
    return Draws(mix.input_N[chosen], mix.new_N[chosen], mix.further_N[chosen], *spread_KN[1:])


def request_mix(workload: Workload, *, block_size: int, cache_blocks: int, seed: int = 0) -> RequestMix:
    """Return the requests of a workload.

    Args:
        workload: drawn lengths or a trace.
        block_size: tokens of a KV block.
        cache_blocks: blocks that hold prefixes, of all prefill ranks together; 0: no prefix is reused. A prefix is
            counted as reused if one cache of that size, least recently used leaving first, would hold it: routing
            sends requests to the ranks that have seen theirs.
        seed: of the pairing of drawn prompts with drawn answers.

    Raises:
        SpecError: a length or the trace is not as it must be.
    """
    if workload.trace is not None:
        found = _of_trace(workload.trace, workload.requests, block_size, cache_blocks)
        input_N, output_N, cached_N, rate, variation = found
        rate = None if workload.concurrency is not None else rate * workload.speed
        return RequestMix(
            input_N, output_N, cached_N, rate, workload.concurrency, variation, f"trace {Path(workload.trace).name}"
        )
    input_N = _values(Lengths.parse(workload.input_len, name="workload.input_len")) + workload.shared_prefix
    output_N = np.random.default_rng(seed).permutation(
        _values(Lengths.parse(workload.output_len, name="workload.output_len"))
    )
    shared = workload.shared_prefix // block_size * block_size
    held = shared if 0 < shared <= cache_blocks * block_size else 0
    return RequestMix(
        input_N,
        output_N,
        np.minimum(np.full(len(input_N), float(held)), input_N - 1),
        workload.rate,
        workload.concurrency,
        workload.burstiness,
        f"prompts {workload.input_len}, answers {workload.output_len}",
    )


def longest(workload: Workload) -> dict[str, int]:
    """Return the tokens of the longest prompt and of the longest request; of a lognormal the 99th percentile."""
    if workload.trace is not None:
        input_N, output_N, *_ = _of_trace(workload.trace, workload.requests, 1, 0)
        return {"prompt": int(input_N.max()), "request": int((input_N + output_N).max())}
    most = [
        Lengths.parse(getattr(workload, name), name=f"workload.{name}").high for name in ("input_len", "output_len")
    ]
    return {"prompt": most[0] + workload.shared_prefix, "request": sum(most) + workload.shared_prefix}


def _values(lengths: Lengths) -> Floats:
    """Return equally likely values of a distribution, each the middle of its share."""
    share_N = (np.arange(DRAWN) + 0.5) / DRAWN
    if lengths.kind == "fixed":
        return np.full(DRAWN, float(lengths.low))
    if lengths.kind == "uniform":
        return np.floor(lengths.low + share_N * (lengths.high - lengths.low + 1))
    sigma = math.log(lengths.high / lengths.low) / _P99
    normal_N = np.array([NormalDist().inv_cdf(share) for share in share_N.tolist()])
    return np.maximum(1.0, np.rint(lengths.low * np.exp(sigma * normal_N)))


def _of_trace(
    trace: str, limit: int | None, block_size: int, cache_blocks: int
) -> tuple[Floats, Floats, Floats, float, float]:
    """Return prompts, answers, cached tokens, requests a second and variation of the gaps; cached while unchanged."""
    path = Path(trace)
    changed = path.stat().st_mtime_ns if path.exists() else 0
    return _read_trace(path, changed, limit, block_size, cache_blocks)


@lru_cache(maxsize=8)
def _read_trace(
    path: Path, _changed: int, limit: int | None, block_size: int, cache_blocks: int
) -> tuple[Floats, Floats, Floats, float, float]:
    rows = read_trace_rows(path, limit=limit)
    input_N = np.array([max(1, row.input_length) for row in rows], dtype=np.float64)
    output_N = np.array([max(1, row.output_length) for row in rows], dtype=np.float64)
    gap_N = np.diff([row.at_s for row in rows])
    span_s = float(gap_N.sum())
    rate = len(gap_N) / span_s if span_s > 0 else math.inf
    variation = float(gap_N.std() / gap_N.mean()) if span_s > 0 else 1.0
    cached_N = np.minimum(_cached(rows, cache_blocks * block_size // HASH_BLOCK), input_N - 1)
    return input_N, output_N, cached_N // block_size * block_size, rate, variation


def _cached(rows: tuple[TraceRow, ...], capacity: int) -> Floats:
    """Return the leading tokens of each prompt that a cache of so many trace blocks holds when it comes."""
    held = OrderedDict[int, None]()
    cached_N = np.zeros(len(rows))
    for place, row in enumerate(rows):
        known = next((at for at, name in enumerate(row.hash_ids) if name not in held), len(row.hash_ids))
        cached_N[place] = known * HASH_BLOCK
        for name in row.hash_ids:
            held[name] = None
            held.move_to_end(name)
        while len(held) > capacity:
            held.popitem(last=False)
    return cached_N
