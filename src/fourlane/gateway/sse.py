"""Send a generation to its client: as server-sent events, or whole; and drop it when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from starlette.responses import Response

from fourlane.errors import RequestError
from fourlane.gateway.refusals import error_body
from fourlane.gateway.writers import ChoiceResult, usage_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from fourlane.gateway.generation import Delta, Generation
    from fourlane.gateway.metrics import Metrics
    from fourlane.gateway.prepare import Job
    from fourlane.gateway.tokenizer import ModelTokenizer
    from fourlane.gateway.writers import Writer

__all__ = ["Answer", "EventStream", "WholeAnswer"]

DONE = b"data: [DONE]\n\n"


def event(data: bytes) -> bytes:
    """Return a server-sent event."""
    return b"data: " + data + b"\n\n"


@contextlib.asynccontextmanager
async def watched(receive: Receive, generation: Generation) -> AsyncIterator[None]:
    """Cancel a generation as soon as its client disconnects, and when the block is left before its end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        generation.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        generation.cancel()


class Answer:
    """A generation being turned into text."""

    def __init__(self, generation: Generation, job: Job, writer: Writer, tokenizer: ModelTokenizer) -> None:
        self.generation = generation
        self.job = job
        self.writer = writer
        self.results = [ChoiceResult() for _ in job.generation.choices]
        self._texts = [job.text(tokenizer) for _ in job.generation.choices]

    @property
    def complete(self) -> bool:
        """Tell whether every choice has ended; not so when the client went away."""
        return all(result.finish is not None for result in self.results)

    def gather(self, delta: Delta) -> None:
        """Add new tokens to a choice's result."""
        text, used = self._take(delta)
        result = self.results[delta.choice]
        result.pieces.append(text)
        if self.job.logprobs is not None:
            result.events.extend(delta.events[:used])

    def chunk(self, delta: Delta) -> bytes:
        """Return the event for new tokens; empty while their text is held back."""
        result = self.results[delta.choice]
        if result.finish is not None:
            return b""
        text, used = self._take(delta)
        wants_tokens = self.job.logprobs is not None and used
        if not text and not wants_tokens and result.finish is None:
            return b""
        return event(self.writer.chunk(delta.choice, text, delta.events[:used], result.finish))

    def _take(self, delta: Delta) -> tuple[str, int]:
        text, result = self._texts[delta.choice], self.results[delta.choice]
        if result.finish is not None:
            return "", 0
        piece, used = text.feed(delta.events)
        result.tokens, result.finish = text.tokens, text.finish
        if text.stopped:
            self.generation.stop_choice(delta.choice)
        return piece, used

    def closing(self) -> bytes:
        """Return the events that end a stream."""
        if not self.job.usage:
            return DONE
        return event(self.writer.usage(usage_of(self.job, self.results, self.generation.cached_tokens))) + DONE

    def whole(self) -> bytes:
        """Return the answer in one piece."""
        return self.writer.whole(self.results, usage_of(self.job, self.results, self.generation.cached_tokens))


class EventStream(Response):
    """Streams an answer.

    Headers are sent with the first token: what fails before it is answered with a status of its
    own. What fails later is told in an event, after which the stream ends without [DONE].
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, metrics: Metrics) -> None:
        self._answer = answer
        self._metrics = metrics
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    def init_headers(self, headers: dict[str, str] | None = None) -> None:  # pyrefly: ignore
        """Set the headers; there is no length."""
        pairs = {"content-type": "text/event-stream; charset=utf-8", **(headers or {})}
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs.items()]

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        answer, generation = self._answer, self._answer.generation
        started = False
        async with watched(receive, generation):
            try:
                async for deltas in generation:
                    data = b"".join([answer.chunk(delta) for delta in deltas])
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        data = b"".join(map(event, answer.writer.opening())) + data
                    if data:
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                last = answer.closing() if answer.complete else b""
            except RequestError as error:
                if not started:
                    raise
                self._metrics.refused(error.status)
                last = event(error_body(error))
            if started:
                await send({"type": "http.response.body", "body": last, "more_body": False})


class WholeAnswer(Response):
    """Waits for an answer and sends it in one piece."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(media_type="application/json")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        answer = self._answer
        async with watched(receive, answer.generation):
            async for deltas in answer.generation:
                for delta in deltas:
                    answer.gather(delta)
        if answer.complete:  # else nobody is there to read it
            await Response(answer.whole(), media_type="application/json")(scope, receive, send)
