"""The requests of a workload: when they come, how long they are, which prompts begin alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.spec.request_load import Arrivals, Lengths, draw_requests
from fourlane.spec.request_traces import HASH_BLOCK, read_trace_rows
from fourlane.twin.serving.prompt_names import PromptNames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.spec.request_traces import TraceRow
    from fourlane.spec.twin import Workload

__all__ = ["Request", "RequestLoad", "request_load"]

DRAWN_REQUESTS, DRAWN_S = 2000, 30.0
"""Where the workload does not say: at least so many requests, and as many as come in so many seconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Args:
        due_s: when it is sent; None: as soon as another has ended (closed loop).
        prompt_tokens, output_tokens: its lengths.
        runs: names of its prompt's pages (`prompt_names`).
    """

    due_s: float | None
    prompt_tokens: int
    output_tokens: int
    runs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """Requests in order of their times, the names of their prompts' pages, and a line that says what they are.

    `concurrency`: how many are under way at a time in a closed loop; None: an open loop.
    """

    requests: tuple[Request, ...]
    names: PromptNames
    concurrency: int | None
    description: str


def request_load(workload: Workload, *, block_size: int, seed: int) -> RequestLoad:
    """Return the requests of a workload.

    Raises:
        SpecError: a length or a trace is wrong, or nothing says when requests come.
    """
    names = PromptNames(block_size)
    if workload.trace is not None:
        return _recorded(workload, Path(workload.trace), names)
    if (workload.rate is None) == (workload.concurrency is None):
        raise SpecError("workload: expected a trace, or either a rate (open loop) or a concurrency (closed loop)")
    count = workload.requests or max(DRAWN_REQUESTS, round(DRAWN_S * (workload.rate or 0.0)))
    requests = tuple(_drawn(workload, count, names, seed))
    when = f"{workload.concurrency} at a time" if workload.rate is None else f"{workload.rate:g} a second"
    what = f"{workload.input_len} tokens in, {workload.output_len} out"
    return RequestLoad(requests, names, workload.concurrency, f"{count} requests, {when}, {what}, seed {seed}")


def _drawn(workload: Workload, count: int, names: PromptNames, seed: int) -> Iterator[Request]:
    drawn = draw_requests(
        Arrivals(rate=workload.rate, concurrency=workload.concurrency, burstiness=workload.burstiness),
        requests=count,
        input_lengths=Lengths.parse(workload.input_len, name="workload.input_len"),
        output_lengths=Lengths.parse(workload.output_len, name="workload.output_len"),
        seed=seed,
    )
    for index, (due_s, prompt, output) in enumerate(drawn):
        shared = min(workload.shared_prefix, prompt)
        runs = names.name((("shared", shared), (("own", index), prompt)))
        yield Request(due_s, prompt, output, runs)


def _recorded(workload: Workload, path: Path, names: PromptNames) -> RequestLoad:
    rows = read_trace_rows(path, limit=workload.requests)
    requests = tuple(
        Request(
            row.at_s / workload.speed,
            max(1, row.input_length),
            max(1, row.output_length),
            names.name(_pieces(row, index)),
        )
        for index, row in enumerate(rows)
    )
    return RequestLoad(requests, names, None, f"{len(rows)} requests of {path.name}, speed x {workload.speed:g}")


def _pieces(row: TraceRow, index: int) -> Iterator[tuple[object, int]]:
    """Yield what a recorded prompt consists of: a piece for each hash id, and the rest, which is its own."""
    end = 0
    for hash_id in row.hash_ids:
        end = min(end + HASH_BLOCK, row.input_length)
        yield hash_id, end
    if end < row.input_length:
        yield ("own", index), row.input_length
