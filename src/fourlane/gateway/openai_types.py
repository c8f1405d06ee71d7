"""The requests of the OpenAI API, with vLLM's additions: what may be in them.

Fields this service does not know are refused, not ignored; so are known ones that ask for what
it cannot do. What a request means is worked out in `prepare`; answers are in `openai_answers`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from fourlane.errors import InvalidRequest

__all__ = [
    "ChatMessage",
    "ChatRequest",
    "CompletionRequest",
    "GenerationOptions",
    "StreamOptions",
    "parse_request",
    "refused_fields",
]

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_BIASES = 1024
_INT64 = 2**63 - 1

Count = Annotated[int, Meta(ge=0, le=_INT64)]
Positive = Annotated[int, Meta(ge=1, le=_INT64)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Refused = object
"""A field that is known but not supported: anything but null, false or empty is answered with an error."""


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How to stream. `include_obfuscation` and `continuous_usage_stats` may be false."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """Only text; the other kinds need a grammar."""

    type: str


class GenerationOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of request may ask for."""

    model: str | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Meta(ge=-_INT64 - 1, le=_INT64)] | None = None
    user: str | None = None
    # vLLM's additions
    top_k: Annotated[int, Meta(ge=-1, le=_INT64)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    stop_token_ids: list[Count] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    # taken and of no effect here: they steer OpenAI's own service
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # refused unless empty
    response_format: ResponseFormat | None = None
    guided_json: Refused = None
    guided_regex: Refused = None
    guided_choice: Refused = None
    guided_grammar: Refused = None
    structured_outputs: Refused = None
    prompt_logprobs: Refused = None
    use_beam_search: Refused = None
    kv_transfer_params: Refused = None


class CompletionRequest(GenerationOptions, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Positive | None = None
    suffix: str | None = None
    prompt_embeds: Refused = None


class ContentPart(msgspec.Struct, kw_only=True):
    """A part of a message; only text is served."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Refused = None
    tool_calls: Refused = None
    tool_call_id: Refused = None
    function_call: Refused = None
    audio: Refused = None
    reasoning_content: Refused = None


class ChatRequest(GenerationOptions, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage] | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: str | dict[str, object] | None = None
    store: Refused = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    tools: Refused = None
    functions: Refused = None
    function_call: Refused = None
    modalities: list[str] | None = None
    audio: Refused = None
    prediction: Refused = None
    reasoning_effort: Refused = None
    verbosity: Refused = None
    web_search_options: Refused = None
    chat_template: Refused = None
    continue_final_message: Refused = None
    documents: Refused = None


@cache
def refused_fields(kind: type[GenerationOptions]) -> tuple[str, ...]:
    """Return the fields of a kind of request that are known but not supported."""
    return tuple(field.name for field in msgspec.structs.fields(kind) if field.type is Refused)


Request = TypeVar("Request", CompletionRequest, ChatRequest)
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<place>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def parse_request(kind: type[Request], body: bytes) -> Request:
    """Read a request's body.

    Raises:
        InvalidRequest: it is no JSON, or not such a request.
    """
    if not body.strip():
        raise InvalidRequest("the body is empty; expected a JSON object")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), body) from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is no valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is no valid UTF-8: byte {error.start} cannot be decoded") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error


def _refusal(complaint: str, body: bytes) -> InvalidRequest:
    """Return the error for a body that is JSON but not such a request: where, what is allowed, what was found."""
    match = _PLACE.match(complaint)
    what, place = (match["what"], match["place"]) if match else (complaint, None)
    path = (place or "$").removeprefix("$").removeprefix(".")
    unknown = _UNKNOWN.match(what)
    if unknown:
        path = f"{path}.{unknown[1]}" if path else unknown[1]
        return InvalidRequest(
            f"{_short(path)}: not a field this service knows", param=_short(path), code="unknown_field"
        )
    what = what[:1].lower() + what[1:]
    found = _found(body, path)
    return InvalidRequest(f"{path or 'body'}: {what}{found}", param=path or None)


def _found(body: bytes, path: str) -> str:
    """Return ", got ..." with the value at a path such as `messages[0].role`, or nothing if it cannot be shown."""
    try:
        value = msgspec.json.decode(body)
        for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
            value = value[int(index)] if index else value[name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    if isinstance(value, (dict, list)):
        return ""
    return f", got {_short(msgspec.json.encode(value).decode())}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
