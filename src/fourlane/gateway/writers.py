"""Write answers: whole ones and chunks, for completions and for chat."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from fourlane.engine.messages import TokenEvent
from fourlane.gateway.openai_answers import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessageAnswer,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.gateway.prepare import Job
    from fourlane.gateway.state import ModelFacts
    from fourlane.gateway.tokenizer import ModelTokenizer

__all__ = ["ChatWriter", "ChoiceResult", "CompletionWriter", "Writer", "usage_of"]

_encode = msgspec.json.Encoder().encode


class ChoiceResult(msgspec.Struct):
    """A choice as it has come so far."""

    pieces: list[str] = []
    finish: str | None = None
    tokens: int = 0
    events: list[TokenEvent] = []

    @property
    def text(self) -> str:
        """Return the text so far."""
        return "".join(self.pieces)


def usage_of(job: Job, results: Sequence[ChoiceResult], cached_tokens: int | None) -> Usage:
    """Return a request's usage; a prompt counts once, whatever `n`."""
    prompt = sum(map(len, job.prompts))
    completion = sum(result.tokens for result in results)
    details = PromptTokensDetails(cached_tokens=cached_tokens) if cached_tokens is not None else None
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=details,
    )


class Writer(Protocol):
    """Writes one request's answer. All methods return JSON."""

    def opening(self) -> list[bytes]:
        """Return the chunks that come before any token."""
        ...

    def chunk(self, choice: int, text: str, events: Sequence[TokenEvent], finish: str | None) -> bytes:
        """Return a chunk with the next text (and tokens) of a choice."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """Return the chunk that ends a stream with the usage."""
        ...

    def whole(self, results: Sequence[ChoiceResult], usage: Usage) -> bytes:
        """Return the answer in one piece."""
        ...


class CompletionWriter:
    """Writes answers of /v1/completions."""

    def __init__(self, job: Job, model: ModelFacts, tokenizer: ModelTokenizer, answer_id: str) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._head = {
            "id": answer_id,
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._offset = [len(self._echo(choice)) for choice in range(len(job.generation.choices))]
        self._null_usage = None if job.usage else msgspec.UNSET

    def _echo(self, choice: int) -> str:
        return self._job.echo[choice // self._job.choices_per_prompt] if self._job.echo is not None else ""

    def opening(self) -> list[bytes]:
        """Return the prompts, if they are to be echoed."""
        if self._job.echo is None:
            return []
        return [self.chunk(choice, self._echo(choice), (), None) for choice in range(len(self._job.generation.choices))]

    def chunk(self, choice: int, text: str, events: Sequence[TokenEvent], finish: str | None) -> bytes:
        """Return a chunk with the next text (and tokens) of a choice."""
        logprobs = self._logprobs(choice, events) if self._job.logprobs is not None else None
        piece = CompletionChoice(index=choice, text=text, logprobs=logprobs, finish_reason=finish)
        return _encode(Completion(**self._head, choices=[piece], usage=self._null_usage))

    def usage(self, usage: Usage) -> bytes:
        """Return the chunk that ends a stream with the usage."""
        return _encode(Completion(**self._head, choices=[], usage=usage))

    def whole(self, results: Sequence[ChoiceResult], usage: Usage) -> bytes:
        """Return the answer in one piece."""
        choices = [
            CompletionChoice(
                index=index,
                text=self._echo(index) + result.text,
                logprobs=self._logprobs(index, result.events) if self._job.logprobs is not None else None,
                finish_reason=result.finish,
            )
            for index, result in enumerate(results)
        ]
        return _encode(Completion(**self._head, choices=choices, usage=usage))

    def _logprobs(self, choice: int, events: Sequence[TokenEvent]) -> CompletionLogprobs:
        """Return tokens' log-probabilities; offsets count characters of the tokens' own texts."""
        text_of = self._tokenizer.token_text
        tokens = [text_of(event.token_id) for event in events]
        offsets = []
        for token in tokens:
            offsets.append(self._offset[choice])
            self._offset[choice] += len(token)
        top = [{text_of(token): logprob for token, logprob in event.top or ()} for event in events]
        return CompletionLogprobs(
            tokens=tokens,
            token_logprobs=[event.logprob for event in events],
            top_logprobs=top if self._job.logprobs else None,
            text_offset=offsets,
        )


class ChatWriter:
    """Writes answers of /v1/chat/completions."""

    def __init__(self, job: Job, model: ModelFacts, tokenizer: ModelTokenizer, answer_id: str) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._head = {
            "id": answer_id,
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._null_usage = None if job.usage else msgspec.UNSET

    def opening(self) -> list[bytes]:
        """Return the chunks that name each choice's role."""
        delta = ChatDelta(role="assistant", content="")
        return [
            self._chunk(ChatChunkChoice(index=index, delta=delta)) for index in range(len(self._job.generation.choices))
        ]

    def chunk(self, choice: int, text: str, events: Sequence[TokenEvent], finish: str | None) -> bytes:
        """Return a chunk with the next text (and tokens) of a choice."""
        logprobs = self._logprobs(events) if self._job.logprobs is not None and events else None
        delta = ChatDelta(content=text) if text or not finish else ChatDelta()
        return self._chunk(ChatChunkChoice(index=choice, delta=delta, logprobs=logprobs, finish_reason=finish))

    def _chunk(self, choice: ChatChunkChoice) -> bytes:
        return _encode(ChatChunk(**self._head, choices=[choice], usage=self._null_usage))

    def usage(self, usage: Usage) -> bytes:
        """Return the chunk that ends a stream with the usage."""
        return _encode(ChatChunk(**self._head, choices=[], usage=usage))

    def whole(self, results: Sequence[ChoiceResult], usage: Usage) -> bytes:
        """Return the answer in one piece."""
        choices = [
            ChatChoice(
                index=index,
                message=ChatMessageAnswer(content=result.text),
                logprobs=self._logprobs(result.events) if self._job.logprobs is not None else None,
                finish_reason=result.finish,
            )
            for index, result in enumerate(results)
        ]
        return _encode(ChatAnswer(**self._head, choices=choices, usage=usage))

    def _logprobs(self, events: Sequence[TokenEvent]) -> ChatLogprobs:
        content = []
        for event in events:
            top = [self._top(token, logprob) for token, logprob in event.top or ()]
            chosen = self._top(event.token_id, event.logprob if event.logprob is not None else -9999.0)
            content.append(
                TokenLogprob(
                    token=chosen.token,
                    logprob=chosen.logprob,
                    bytes=chosen.bytes,
                    top_logprobs=top[: self._job.logprobs],
                )
            )
        return ChatLogprobs(content=content)

    def _top(self, token: int, logprob: float) -> TopLogprob:
        data = self._tokenizer.token_bytes(token)
        return TopLogprob(token=data.decode("utf-8", "replace"), logprob=logprob, bytes=list(data))
