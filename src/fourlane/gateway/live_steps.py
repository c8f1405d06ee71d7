"""What steps of a running service take, seen from outside: small loads of its own, and what clients and ranks say.

For `gateway.calibration`, which takes off what passes take by themselves. Not for measuring a service under a load of
one's choice (`fourlane bench serve`).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fourlane.errors import CheckFailed, EngineError
from fourlane.gateway.load import Load, PlannedRequest, run_load
from fourlane.gateway.load.workload import token_ids
from fourlane.gateway.mixed_loads import Pace
from fourlane.spec.request_load import Arrivals, Lengths, draw_requests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.gateway.load import Client, Record
    from fourlane.gateway.mixed_loads import MixedLoad

__all__ = ["Crowded", "Gap", "LivePrompts", "LiveService", "Lone"]

_SETTLE_S = 0.45
"""Until ranks have told of their last steps: they report five times a second."""
_WARM_S = 0.05
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Gap:
    """The time between two tokens of a sequence, which had so many tokens before the second."""

    begin_s: float
    seconds: float
    context: int


@dataclass(frozen=True, slots=True)
class LivePrompts:
    """Prompts that were computed one after the other, with one token each for an answer.

    Units:
        ttft_s: until a prompt's token came; step_s: of that in the rank's step; host_s: processor time of gateway and
        client.
    """

    ttft_s: float
    step_s: float
    host_s: float


@dataclass(frozen=True, slots=True)
class Lone:
    """A lone request.

    Units:
        ttft_s: until its first token came; gaps_s: between its tokens; prefill_idle_s, decode_idle_s: for how long the
        unit of either phase had done nothing.
    """

    ttft_s: float
    gaps_s: list[float]
    prefill_idle_s: float
    decode_idle_s: float


@dataclass(frozen=True, slots=True)
class Crowded:
    """Sequences that decoded, at first by themselves and then beside prompts: gaps of both times.

    `prompts`, `steps`: that were computed beside them, and in how many steps.

    Units:
        step_s: seconds of those steps together; seconds: of the time with prompts.
    """

    alone: list[Gap]
    beside: list[Gap]
    prompts: int
    steps: int
    step_s: float
    seconds: float


class LiveService:
    """A running service that is sent small loads.

    Args:
        client: of it.
        model: to ask for.
        vocabulary: token ids that prompts are drawn from.
    """

    def __init__(self, client: Client, model: str, vocabulary: range) -> None:
        self._client, self._model, self._vocabulary = client, model, vocabulary
        self._drawn = 0
        self.longest = 1024
        """Tokens of a sequence that every rank can hold."""
        self.first_gap_s = 0.0
        """Between first and second token of the sequences decoded last, on average."""

    async def decoding(self, sequences: int, *, prompt: int, output: int) -> list[Gap]:
        """Decode so many sequences at once, and return the gaps between tokens while all were under way."""
        began, records = await self._send(self._requests(sequences, prompt, output), sequences)
        self.first_gap_s = statistics.fmean(record.gaps_s[0] for record in records)
        return self._gaps(records, began, prompt, after=_all_running(records, began) + _WARM_S)

    async def prompts(self, tokens: int, requests: int) -> LivePrompts:
        """Compute prompts of so many tokens one after the other."""
        await self._send(self._requests(1, tokens, 1), 1)
        before = await self._prefill_steps()
        host_s = time.process_time()
        _, records = await self._send(self._requests(requests, tokens, 1), 1)
        host_s = time.process_time() - host_s
        after = await self._prefill_steps()
        steps = max(after[rank][0] - before[rank][0] for rank in after)
        if steps < requests:
            raise EngineError(f"calibration: prefill ranks told of {steps} steps for {requests} prompts")
        seconds = [(after[rank][1] - before[rank][1]) / requests for rank in after]
        return LivePrompts(statistics.fmean(_ttft(record) for record in records), max(seconds), host_s / requests)

    async def burst(self, prompts: int, *, tokens: int) -> int:
        """Send prompts at once to a service that does nothing, and return how many of them its first step had."""
        await asyncio.sleep(_WARM_S)
        _, records = await self._send(self._requests(prompts, tokens, 1), prompts)
        times = sorted(_ttft(record) for record in records)
        return sum(each < times[0] + (times[-1] - times[0]) / 2 for each in times) if prompts > 1 else 1

    async def after_pauses(
        self, pairs: int, seconds: float, *, prompt: int, output: int
    ) -> tuple[list[Lone], list[Lone]]:
        """Send lone requests in turn after a pause and right after the one before; return those, and these.

        Args:
            pairs: of requests.
            seconds: of a pause.
            prompt: tokens of each.
            output: tokens of each answer.
        """
        later, at_once = list[Lone](), list[Lone]()
        decoding_s = 0.0
        await self._send(self._requests(1, prompt, 1), 1)
        for _ in range(pairs):
            for pause_s, found in ((seconds, later), (0.0, at_once)):
                await asyncio.sleep(pause_s)
                _, (record,) = await self._send(self._requests(1, prompt, output), 1)
                ttft_s = _ttft(record)
                found.append(Lone(ttft_s, record.gaps_s, pause_s + decoding_s, pause_s + ttft_s))
                decoding_s = sum(record.gaps_s)
        return later, at_once

    async def mixed(self, load: MixedLoad) -> Pace:
        """Send a closed loop whose requests begin and end while others decode, and return what they saw."""
        drawn = draw_requests(
            Arrivals(concurrency=load.concurrency),
            requests=load.requests,
            input_lengths=Lengths.parse(str(load.prompt), name="prompt"),
            output_lengths=Lengths.parse(load.output, name="output"),
            seed=0,
        )
        requests = (next(self._requests(1, prompt, output)) for _, prompt, output in drawn)
        _, records = await self._send(requests, load.concurrency)
        each = [record.tpot_s for record in records if record.tpot_s is not None]
        return Pace(statistics.fmean(_ttft(record) for record in records), statistics.fmean(each))

    async def crowded(self, sequences: int, at_once: int, *, prompt: int, context: int, seconds: float) -> Crowded:
        """Decode sequences, after a while beside prompts of so many tokens, so many at once.

        Args:
            sequences: that decode, after `context` tokens.
            at_once: prompts under way.
            prompt: tokens of each.
            seconds: how long prompts are sent, and before that none.
        """
        stop = asyncio.Event()
        requests = self._requests(sequences, context, _endless(self.longest, context))
        began = time.perf_counter()
        decoding = asyncio.ensure_future(run_load(self._client, self._load(sequences), requests, stop=stop))
        await asyncio.sleep(seconds)
        before = await self._prefill_steps(0.0)
        begin = time.perf_counter()
        load = msgspec.structs.replace(self._load(at_once), duration_s=seconds)
        prompts = await run_load(self._client, load, self._requests(100_000, prompt, 1))
        end = time.perf_counter()
        after = await self._prefill_steps()
        stop.set()
        records = await decoding
        await asyncio.sleep(_SETTLE_S)  # ranks hear that these sequences are cancelled
        gaps = self._gaps(records, began, context, after=_all_running(records, began) + _WARM_S, cut=True)
        return Crowded(
            alone=[gap for gap in gaps if gap.begin_s + gap.seconds < begin],
            beside=[gap for gap in gaps if begin < gap.begin_s and gap.begin_s + gap.seconds < end],
            prompts=len(prompts),
            steps=max(after[rank][0] - before[rank][0] for rank in after),
            step_s=max(after[rank][1] - before[rank][1] for rank in after),
            seconds=end - begin,
        )

    def _requests(self, count: int, prompt: int, output: int) -> Iterator[PlannedRequest]:
        for _ in range(count):
            self._drawn += 1
            ids = token_ids(f"calibration/{self._drawn}", prompt, vocabulary=self._vocabulary)
            yield PlannedRequest(prompt=ids, max_tokens=output)

    def _load(self, concurrency: int) -> Load:
        return Load(model=self._model, concurrency=concurrency, timeout_s=_TIMEOUT_S)

    async def _send(self, requests: Iterator[PlannedRequest], concurrency: int) -> tuple[float, list[Record]]:
        began = time.perf_counter()
        records = await run_load(self._client, self._load(concurrency), requests)
        failed = [record.error for record in records if record.error is not None]
        if failed:
            raise CheckFailed(f"calibration: {len(failed)} of {len(records)} requests failed, the first: {failed[0]}")
        return began, records

    def _gaps(self, records: list[Record], began: float, prompt: int, *, after: float, cut: bool = False) -> list[Gap]:
        """Return the gaps that begin after a moment and end before the first sequence does."""
        until = float("inf") if cut else min(_last(record, began) for record in records)
        return [
            gap
            for record in records
            for gap in _gaps_of(record, began, prompt)
            if after <= gap.begin_s and gap.begin_s + gap.seconds <= until
        ]

    async def _prefill_steps(self, settle_s: float = _SETTLE_S) -> dict[str, tuple[int, float]]:
        """Return the steps and their seconds so far, by prefill rank, once all has been told."""
        await asyncio.sleep(settle_s)
        response = await self._client.get("/stats")
        stats: dict[str, Any] = msgspec.json.decode(bytes(response.body))
        ranks = [rank for pool in stats["pools"] if pool["name"] == "prefill" for rank in pool["ranks"]]
        return {rank["name"]: (rank["steps"], rank["step_s"]) for rank in ranks}


def _endless(longest: int, context: int) -> int:
    return max(8, longest - context - 1)


def _ttft(record: Record) -> float:
    if record.ttft_s is None:
        raise CheckFailed(f"calibration: a request brought no token: {record.error}")
    return record.ttft_s


def _first(record: Record, began: float) -> float:
    return began + record.due_s + _ttft(record)


def _last(record: Record, began: float) -> float:
    return _first(record, began) + sum(record.gaps_s)


def _all_running(records: list[Record], began: float) -> float:
    """Return when the last sequence had its second token: from then on all decode."""
    return max(_first(record, began) + (record.gaps_s[0] if record.gaps_s else 0.0) for record in records)


def _gaps_of(record: Record, began: float, prompt: int) -> Iterator[Gap]:
    at = _first(record, began)
    for number, seconds in enumerate(record.gaps_s):
        yield Gap(at, seconds, prompt + number + 1)
        at += seconds
