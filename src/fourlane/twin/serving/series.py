"""Courses over time of a simulated service: who waits where, how busy units are, how much KV cache is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.serving.results import ServingResults

__all__ = ["Series", "series", "spread"]


@dataclass(frozen=True, slots=True)
class Series:
    """Means over each of equal stretches of time.

    Args:
        times: amid each stretch, in seconds.
        requests: by where they are: "waiting in the gateway", "at prefill ranks", "KV on its way", "decoding".
        busy: share of units in a step, by phase.
        tokens: a second: "prompt" computed, "answer" told.
        batch: rows on the mean rank of decode units in a step.
        blocks: share of decode ranks' KV blocks held, by the tokens their sequences have.
        kv: bytes of KV a second.
    """

    times: NDArray[np.float64]
    requests: dict[str, NDArray[np.float64]]
    busy: dict[str, NDArray[np.float64]]
    tokens: dict[str, NDArray[np.float64]]
    batch: NDArray[np.float64]
    blocks: NDArray[np.float64]
    kv: NDArray[np.float64]


def series(results: ServingResults, stretches: int = 200) -> Series:
    """Return a simulation's courses."""
    begin, end = results.span
    edges = np.linspace(begin, max(end, begin + 1e-9), stretches + 1)
    width = edges[1] - edges[0]
    requests, assembly = results.requests, results.assembly
    done = requests.done
    sent, placed, first = requests.sent[done], requests.placed[done], requests.first_token[done]
    ended, prompt, output = requests.ended[done], requests.prompt_tokens[done], requests.output_tokens[done]
    there = np.where(np.isfinite(requests.kv_done[done]), requests.kv_done[done], first)
    since, until, computed = _columns([(begin, end, float(step.total)) for step, begin, end in results.prefill_steps])
    leapt = [(begin, end, float(leap.steps * leap.sequences)) for leap, begin, end in results.decode_leaps]
    from_, to, told = _columns(leapt)
    mean_rows = np.array([leap.mean for leap, _, _ in results.decode_leaps], np.float64)
    computing, answering = _mean(since, until, None, edges), _mean(from_, to, None, edges)
    held = (prompt + output / 2) / assembly.twin.block_size + 0.5
    blocks = assembly.decode.ranks * assembly.decode.memory.kv_blocks
    return Series(
        times=(edges[:-1] + edges[1:]) / 2,
        requests={
            "waiting in the gateway": _mean(sent, placed, None, edges),
            "at prefill ranks": _mean(placed, first, None, edges),
            "KV on its way": _mean(first, there, None, edges),
            "decoding": _mean(there, ended, None, edges),
        },
        busy={
            "prefill": computing / assembly.prefill.pool.units,
            "decode": answering / assembly.decode.pool.units,
        },
        tokens={
            "prompt": spread(since, until, computed, edges) / width,
            "answer": spread(from_, to, told, edges) * assembly.tokens_per_step / width,
        },
        batch=_mean(from_, to, mean_rows, edges) / np.maximum(answering, 1e-12),
        blocks=_mean(placed, ended, held, edges) / blocks,
        kv=spread(placed, there, (prompt * assembly.kv_token_bytes).astype(np.float64), edges) / width,
    )


def _columns(rows: list[tuple[float, float, float]]) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.array(rows, np.float64).reshape(-1, 3).T)


def _mean(
    begins: NDArray[np.float64],
    ends: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    edges: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return how much weight is under way, mean over each stretch."""
    weights = np.ones(len(begins)) if weights is None else weights
    lasting = weights * (ends - begins)
    return spread(begins, ends, lasting, edges) / (edges[1] - edges[0])


def spread(
    begins: NDArray[np.float64], ends: NDArray[np.float64], amounts: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how much of amounts, each spread evenly from its begin to its end, falls into each stretch."""
    if not len(begins):
        return np.zeros(len(edges) - 1)
    ends = np.maximum(ends, begins + 1e-9)
    rates = amounts / (ends - begins)
    times = np.concatenate([begins, ends])
    order = np.argsort(times, kind="stable")
    times = times[order]
    rate = np.cumsum(np.concatenate([rates, -rates])[order])
    so_far = np.concatenate([[0.0], np.cumsum(rate[:-1] * np.diff(times))])
    return np.diff(np.interp(edges, times, so_far))
