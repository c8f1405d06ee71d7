"""The answers of the OpenAI API, as its clients expect them."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "ChatAnswer",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatDelta",
    "ChatLogprobs",
    "ChatMessageAnswer",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "ErrorBody",
    "ErrorDetail",
    "ModelCard",
    "ModelList",
    "PromptTokensDetails",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
]


class ErrorDetail(msgspec.Struct, kw_only=True):
    """What was wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, kw_only=True):
    """The body of every error."""

    error: ErrorDetail


class ModelCard(msgspec.Struct, kw_only=True):
    """One model served. `max_model_len` is vLLM's addition."""

    id: str
    created: int
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "fourlane"


class ModelList(msgspec.Struct, kw_only=True):
    """The models served."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """Prompt tokens found in a prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Tokens taken in and put out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Log-probabilities in the completions format: four lists, an entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """A text, or the next piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, kw_only=True):
    """The answer to a completion request, or one chunk of it."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"


class TopLogprob(msgspec.Struct, kw_only=True):
    """One of the likeliest tokens."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, kw_only=True):
    """The chosen token and the likeliest ones."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """Log-probabilities in the chat format."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessageAnswer(msgspec.Struct, kw_only=True):
    """The message produced."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    """A message produced and why it ended."""

    index: int
    message: ChatMessageAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatAnswer(msgspec.Struct, kw_only=True):
    """The answer to a chat request."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class ChatDelta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The next piece of a message."""

    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """The next piece of one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    """One chunk of a chat answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
