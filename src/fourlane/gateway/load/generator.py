"""Send a planned load and record what came back.

The closed loop keeps a number of requests under way; the open loop sends each when it is due, whatever the service
does, and counts a late answer from the time it was due.
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError
from fourlane.gateway.load.results import INTERRUPTED, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fourlane.gateway.load.client import Client, Response
    from fourlane.gateway.load.workload import PlannedRequest

__all__ = ["Load", "run_load"]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How a planned load is sent.

    `concurrency`: places of the closed loop; None for the open loop. `duration_s`: no request is sent after it.
    `timeout_s`: a request without an end by then is recorded as an error. `extra`: further fields of the body.
    """

    model: str
    concurrency: int | None
    duration_s: float | None = None
    timeout_s: float = 600.0
    ignore_eos: bool = True
    temperature: float = 0.0
    extra: dict[str, object] = {}


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, int | None] | None = None


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Error(msgspec.Struct):
    message: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_events = msgspec.json.Decoder(_Event)


class _Watch:
    """Times the events of one answer."""

    __slots__ = ("error", "finish_reason", "stamps", "usage")

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.usage: _Usage | None = None
        self.error: str | None = None
        self.finish_reason: str | None = None

    def on_event(self, now: float, payload: bytes) -> None:
        """Take in one event: tokens, usage or an error."""
        try:
            event = _events.decode(payload)
        except msgspec.MsgspecError as error:
            self.error = f"not an OpenAI event ({error}): {payload[:120]!r}"
            return
        if event.choices:
            self.stamps.append(now)
            self.finish_reason = event.choices[0].finish_reason or self.finish_reason
        if event.usage is not None:
            self.usage = event.usage
        if event.error is not None:
            self.error = event.error.message or "the stream ended with an error event"


async def run_load(
    client: Client,
    load: Load,
    requests: Iterable[PlannedRequest],
    *,
    on_record: Callable[[Record], None] | None = None,
    stop: asyncio.Event | None = None,
) -> list[Record]:
    """Send every request and return a record for each that was sent, in the order of sending.

    Args:
        on_record: called as each request ends, for a progress bar.
        stop: once set, nothing more is sent and what is under way is cut off and recorded as interrupted.
    """
    run = _Run(client, load, on_record)
    sending = asyncio.ensure_future(run.closed(iter(requests)) if load.concurrency else run.open(iter(requests)))
    stopping = asyncio.ensure_future(stop.wait()) if stop is not None else None
    try:
        await asyncio.wait({sending, stopping} if stopping else {sending}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await sending
    finally:
        for task in (sending, stopping):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
    return sorted(run.records, key=lambda record: record.index)


class _Run:
    """The state of one load run."""

    def __init__(self, client: Client, load: Load, on_record: Callable[[Record], None] | None) -> None:
        self.records: list[Record] = []
        self._client = client
        self._load = load
        self._on_record = on_record
        self._start = time.perf_counter()
        self._sent = 0

    async def closed(self, requests: Iterator[PlannedRequest]) -> None:
        """Keep `concurrency` requests under way until there are no more."""

        async def place() -> None:
            for request in requests:
                if not self._time_left():
                    return
                await self._send(request, self._elapsed())

        assert self._load.concurrency is not None
        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.concurrency):
                group.create_task(place())

    async def open(self, requests: Iterator[PlannedRequest]) -> None:
        """Send each request when it is due."""
        async with asyncio.TaskGroup() as group:
            for request in requests:
                if request.due_s is None:
                    raise SpecError("open loop: every request needs a due time; give --rate or --trace")
                limit = self._load.duration_s
                if limit is not None and request.due_s > limit:
                    return
                await asyncio.sleep(max(0.0, request.due_s - self._elapsed()))
                group.create_task(self._send(request, request.due_s))

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _time_left(self) -> bool:
        return self._load.duration_s is None or self._elapsed() < self._load.duration_s

    async def _send(self, request: PlannedRequest, due_s: float) -> None:
        record = Record(index=self._sent, due_s=due_s, sent_s=self._elapsed())
        self._sent += 1
        watch = _Watch()
        try:
            response = await self._client.post(
                "/v1/completions", self._body(request), timeout=self._load.timeout_s, on_event=watch.on_event
            )
            record.status = response.status
            record.error = _why_failed(response, watch)
        except asyncio.CancelledError:
            record.error = INTERRUPTED
            raise
        except TimeoutError:
            record.error = f"no end of the answer within {self._load.timeout_s:g} s"
        except (ConnectionError, msgspec.MsgspecError) as error:
            record.error = str(error)
        finally:
            self._close(record, watch)

    def _body(self, request: PlannedRequest) -> bytes:
        return msgspec.json.encode(
            {
                "model": self._load.model,
                "prompt": request.prompt,
                "max_tokens": request.max_tokens,
                "temperature": self._load.temperature,
                "stream": True,
                "stream_options": {"include_usage": True},
                **({"ignore_eos": True} if self._load.ignore_eos else {}),
                **self._load.extra,
            }
        )

    def _close(self, record: Record, watch: _Watch) -> None:
        """Put the watch's times into the record and hand it on."""
        stamps = watch.stamps
        if stamps:
            record.ttft_s = stamps[0] - self._start - record.due_s
            record.gaps_s = [after - before for before, after in pairwise(stamps)]
        end = stamps[-1] - self._start if stamps else self._elapsed()
        record.e2e_s = end - record.due_s
        record.finish_reason = watch.finish_reason
        if watch.usage is not None:
            record.prompt_tokens = watch.usage.prompt_tokens
            record.output_tokens = watch.usage.completion_tokens
            record.cached_tokens = (watch.usage.prompt_tokens_details or {}).get("cached_tokens") or 0
        self.records.append(record)
        if self._on_record is not None:
            self._on_record(record)


def _why_failed(response: Response, watch: _Watch) -> str | None:
    """Return why an answer does not count, or None."""
    if response.status != 200:
        try:
            body = msgspec.json.decode(bytes(response.body), type=_Event)
            text = body.error.message if body.error else ""
        except msgspec.MsgspecError:
            text = bytes(response.body[:200]).decode(errors="replace")
        return f"status {response.status}: {text}"
    if watch.error is not None:
        return f"stream: {watch.error}"
    if not response.complete or watch.finish_reason is None:
        return "the stream ended early: no finish reason or no [DONE]"
    if watch.usage is None:
        return "the stream brought no usage (stream_options.include_usage is not supported there)"
    return None
