"""From a checked request body to what is asked of the ranks: prompts, sampling, limits."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from fourlane.engine.messages import Sampling
from fourlane.errors import InvalidRequest
from fourlane.gateway.detokenizer import ChoiceText
from fourlane.gateway.generation import ChoiceSpec, GenerationRequest
from fourlane.gateway.openai_types import MAX_BIASES, MAX_CHOICES, MAX_STOP_CHARACTERS, MAX_STOPS, refused_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fourlane.gateway.openai_types import ChatMessage, ChatRequest, CompletionRequest, GenerationOptions
    from fourlane.gateway.state import GatewayState
    from fourlane.gateway.tokenizer import ModelTokenizer

__all__ = ["Job", "prepare_chat", "prepare_completion"]

DEFAULT_MAX_TOKENS = 16
MAX_SEED = 2**63


@dataclass(frozen=True, slots=True)
class Job:
    """A request ready to be submitted, and how its texts are to be written.

    Args:
        choices_per_prompt: `n`; choice c belongs to prompt c // n.
        logprobs: how many likeliest tokens to report beside the chosen one; None for no logprobs.
        usage: whether a stream ends with the usage.
    """

    generation: GenerationRequest
    prompts: list[list[int]]
    choices_per_prompt: int
    stops: list[str]
    logprobs: int | None
    stream: bool
    usage: bool
    keep_stop: bool
    skip_special: bool
    min_tokens: int
    echo: list[str] | None = None

    def text(self, tokenizer: ModelTokenizer) -> ChoiceText:
        """Return a fresh text of one choice."""
        detokenizer = tokenizer.detokenizer(skip_special=self.skip_special)
        return ChoiceText(detokenizer, self.stops, keep_stop=self.keep_stop, min_tokens=self.min_tokens)


async def prepare_completion(state: GatewayState, request: CompletionRequest, request_id: str) -> Job:
    """Work out a completion request.

    Raises:
        InvalidRequest: it asks for what is not allowed or not supported.
    """
    _check_common(state, request)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequest(
            f"best_of: expected the value of n ({request.n or 1}), got {request.best_of}", param="best_of"
        )
    if request.suffix:
        raise InvalidRequest("suffix: filling in the middle is not supported", param="suffix")
    if request.echo and request.logprobs is not None:
        raise InvalidRequest(
            "echo: log-probabilities of the prompt are not computed; ask without logprobs", param="echo"
        )
    prompts = await _completion_prompts(state, request)
    texts = _echoed(state, request, prompts) if request.echo else None
    return _job(
        state,
        request,
        request_id,
        prompts,
        max_tokens=_max_tokens(state, prompts, request.max_tokens, default=DEFAULT_MAX_TOKENS),
        logprobs=request.logprobs,
        echo=texts,
    )


async def prepare_chat(state: GatewayState, request: ChatRequest, request_id: str) -> Job:
    """Work out a chat request.

    Raises:
        InvalidRequest: it asks for what is not allowed or not supported.
    """
    _check_common(state, request)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
    if request.modalities not in (None, [], ["text"]):
        raise InvalidRequest(f'modalities: expected ["text"], got {request.modalities}', param="modalities")
    if request.tool_choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice: tools are not supported; leave it out", param="tool_choice")
    if not request.messages:
        raise InvalidRequest("messages: expected at least one message, got none", param="messages")
    messages = [_message(index, message) for index, message in enumerate(request.messages)]
    generation_prompt = True if request.add_generation_prompt is None else request.add_generation_prompt
    options = _template_options(request.chat_template_kwargs) | {"add_generation_prompt": generation_prompt}
    limit = state.max_length()
    prompt = await state.tokenizer.encode(
        state.tokenizer.render_chat(messages, **options),
        add_special_tokens=bool(request.add_special_tokens),
        limit=limit,
        param="messages",
    )
    _check_prompt(state, prompt, "messages")
    given = request.max_completion_tokens or request.max_tokens
    return _job(
        state,
        request,
        request_id,
        [prompt],
        max_tokens=_max_tokens(state, [prompt], given, default=limit),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def _job(
    state: GatewayState,
    request: CompletionRequest | ChatRequest,
    request_id: str,
    prompts: list[list[int]],
    *,
    max_tokens: int,
    logprobs: int | None,
    echo: list[str] | None = None,
) -> Job:
    n = request.n or 1
    if n * len(prompts) > MAX_CHOICES:
        found = f"{len(prompts)} prompts with n = {n}"
        raise InvalidRequest(f"n: expected at most {MAX_CHOICES} texts a request, got {found}", param="n")
    if (request.min_tokens or 0) > max_tokens:
        found = f"min_tokens: expected at most max_tokens ({max_tokens}), got {request.min_tokens}"
        raise InvalidRequest(found, param="min_tokens")
    sampling = _sampling(state, request, max_tokens=max_tokens, logprobs=logprobs)
    choices = [
        ChoiceSpec(prompt, msgspec.structs.replace(sampling, seed=(sampling.seed + index) % MAX_SEED))
        for prompt in prompts
        for index in range(n)
    ]
    return Job(
        generation=GenerationRequest(request_id, choices),
        prompts=prompts,
        choices_per_prompt=n,
        stops=_stops(request.stop),
        logprobs=logprobs,
        stream=bool(request.stream),
        usage=request.stream_options is not None and bool(request.stream_options.include_usage),
        keep_stop=bool(request.include_stop_str_in_output),
        skip_special=request.skip_special_tokens is not False,
        min_tokens=request.min_tokens or 0,
        echo=echo,
    )


def _sampling(state: GatewayState, request: GenerationOptions, *, max_tokens: int, logprobs: int | None) -> Sampling:
    def value(given: float | None, default: float) -> float:
        return default if given is None else given

    return Sampling(
        max_tokens=max_tokens,
        temperature=value(request.temperature, 1.0),
        top_p=value(request.top_p, 1.0),
        top_k=min(max(0, request.top_k or 0), state.model.vocab_size),
        min_p=value(request.min_p, 0.0),
        seed=secrets.randbits(63) if request.seed is None else request.seed % MAX_SEED,
        presence_penalty=value(request.presence_penalty, 0.0),
        frequency_penalty=value(request.frequency_penalty, 0.0),
        repetition_penalty=value(request.repetition_penalty, 1.0),
        logit_bias=_biases(state, request.logit_bias or {}),
        stop_token_ids=_stop_ids(state, request.stop_token_ids or []),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
        logprobs=logprobs,
    )


def _check_common(state: GatewayState, request: CompletionRequest | ChatRequest) -> None:
    if request.model is None:
        raise InvalidRequest(f'model: missing; expected "{state.model.name}"', param="model")
    if request.model != state.model.name:
        message = f'model: "{request.model[:80]}" is not served here; expected "{state.model.name}"'
        raise InvalidRequest(message, param="model", code="model_not_found", status=404)
    for name in refused_fields(type(request)):
        if getattr(request, name) not in (None, False, [], {}, "", 0):
            message = f"{name}: not supported by this service; leave it out"
            raise InvalidRequest(message, param=name, code="unsupported_parameter")
    if request.response_format is not None and request.response_format.type != "text":
        found = request.response_format.type[:40]
        raise InvalidRequest(f'response_format: only "text" is supported, got "{found}"', param="response_format")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options: only allowed when stream is true", param="stream_options")
    if request.stream_options is not None and request.stream_options.continuous_usage_stats:
        raise InvalidRequest("stream_options.continuous_usage_stats: not supported", param="stream_options")


# prompts


async def _completion_prompts(state: GatewayState, request: CompletionRequest) -> list[list[int]]:
    """Return the token ids of each prompt of a completion request."""
    add_special = request.add_special_tokens is not False
    prompts = _split_prompts(request.prompt)
    result: list[list[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = await state.tokenizer.encode(
                prompt, add_special_tokens=add_special, limit=state.max_length(), param="prompt"
            )
        else:
            ids = prompt
        _check_prompt(state, ids, "prompt")
        result.append(ids)
    return result


def _split_prompts(prompt: str | list[str | int | list[int]] | None) -> Sequence[str | list[int]]:
    """Return the prompts of the four forms the API has for them."""
    if prompt is None:
        raise InvalidRequest("prompt: missing", param="prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt: expected text or token ids, got an empty list", param="prompt")
    if all(isinstance(part, int) for part in prompt):
        return [[part for part in prompt if isinstance(part, int)]]
    if any(isinstance(part, int) for part in prompt) or len({type(part) for part in prompt}) > 1:
        raise InvalidRequest(
            "prompt: expected only texts, only token ids or only lists of these, got a mix", param="prompt"
        )
    if len(prompt) > MAX_CHOICES:
        raise InvalidRequest(f"prompt: expected at most {MAX_CHOICES} prompts, got {len(prompt)}", param="prompt")
    return [part for part in prompt if not isinstance(part, int)]


def _check_prompt(state: GatewayState, prompt: list[int], param: str) -> None:
    """Refuse a prompt without tokens, with unknown ones, or that leaves no room for an answer."""
    if not prompt:
        raise InvalidRequest(f"{param}: expected at least one token, got an empty prompt", param=param)
    limit = state.max_length()
    if len(prompt) >= limit:
        raise InvalidRequest(
            f"{param}: {len(prompt)} tokens; the limit is {limit} tokens of prompt and output: shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )
    if min(prompt) < 0 or max(prompt) >= state.model.vocab_size:
        bad = next(token for token in prompt if not 0 <= token < state.model.vocab_size)
        found = bad if abs(bad) < MAX_SEED else "a larger number"
        message = f"{param}: expected token ids from 0 to {state.model.vocab_size - 1}, got {found}"
        raise InvalidRequest(message, param=param)


def _max_tokens(state: GatewayState, prompts: list[list[int]], given: int | None, *, default: int) -> int:
    """Return the most tokens to produce: what the client gave, which must fit, or as much of `default` as fits."""
    limit, longest = state.max_length(), max(map(len, prompts))
    if given is None:
        return min(default, limit - longest)
    if longest + given > limit:
        raise InvalidRequest(
            f"max_tokens: {longest} tokens of prompt and {given} of output make {longest + given}; "
            f"the limit is {limit}: ask for at most {limit - longest}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return given


def _echoed(state: GatewayState, request: CompletionRequest, prompts: list[list[int]]) -> list[str]:
    """Return each prompt's text, as it was given if it was given as text."""
    given = _split_prompts(request.prompt)
    return [
        text if isinstance(text, str) else state.tokenizer.decode(ids) for text, ids in zip(given, prompts, strict=True)
    ]


def _message(index: int, message: ChatMessage) -> dict[str, object]:
    """Return a message as the chat template sees it."""
    place = f"messages[{index}]"
    for name in ("tool_calls", "tool_call_id", "function_call", "audio"):
        if getattr(message, name):
            raise InvalidRequest(
                f"{place}.{name}: not supported by this service; leave it out", param=f"{place}.{name}"
            )
    if message.role in {"tool", "function"}:
        raise InvalidRequest(f'{place}.role: tools are not supported, got "{message.role}"', param=f"{place}.role")
    if message.content is None:
        raise InvalidRequest(f"{place}.content: expected text, got null", param=f"{place}.content")
    content = message.content if isinstance(message.content, str) else _joined(place, message)
    role = "system" if message.role == "developer" else message.role
    rendered: dict[str, object] = {"role": role, "content": content}
    if message.name:
        rendered["name"] = message.name
    return rendered


def _joined(place: str, message: ChatMessage) -> str:
    texts = []
    for index, part in enumerate(message.content or ()):
        where = f"{place}.content[{index}]"
        if isinstance(part, str) or part.type != "text" or part.text is None:
            kind = part if isinstance(part, str) else part.type
            raise InvalidRequest(
                f'{where}: expected {{"type": "text", "text": ...}}, got type "{kind[:40]}"', param=where
            )
        texts.append(part.text)
    return "\n".join(texts)


def _template_options(given: Mapping[str, object] | None) -> dict[str, object]:
    """Return the client's template variables; those the service sets itself cannot be given."""
    taken = {"messages", "add_generation_prompt", "tools", "documents"} & set(given or {})
    if taken:
        name = min(taken)
        raise InvalidRequest(
            f"chat_template_kwargs.{name}: set by the service; leave it out", param="chat_template_kwargs"
        )
    return dict(given or {})


# stops and biases


def _stops(stop: str | list[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"stop: expected at most {MAX_STOPS} strings, got {len(stops)}", param="stop")
    for index, text in enumerate(stops):
        if not text:
            raise InvalidRequest(f"stop[{index}]: expected a string of at least one character, got none", param="stop")
        if len(text) > MAX_STOP_CHARACTERS:
            found = f"stop[{index}]: expected at most {MAX_STOP_CHARACTERS} characters, got {len(text)}"
            raise InvalidRequest(found, param="stop")
    return list(dict.fromkeys(stops))


def _stop_ids(state: GatewayState, ids: list[int]) -> list[int]:
    if len(ids) > MAX_BIASES:
        raise InvalidRequest(f"stop_token_ids: expected at most {MAX_BIASES}, got {len(ids)}", param="stop_token_ids")
    for token in ids:
        if token >= state.model.vocab_size:
            message = f"stop_token_ids: expected ids from 0 to {state.model.vocab_size - 1}, got {token}"
            raise InvalidRequest(message, param="stop_token_ids")
    return ids


def _biases(state: GatewayState, given: Mapping[str, float]) -> dict[int, float]:
    if len(given) > MAX_BIASES:
        raise InvalidRequest(f"logit_bias: expected at most {MAX_BIASES} tokens, got {len(given)}", param="logit_bias")
    biases: dict[int, float] = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 12 and int(name) < state.model.vocab_size):
            found = f"logit_bias: expected token ids from 0 to {state.model.vocab_size - 1} as names, got {name[:40]!r}"
            raise InvalidRequest(found, param="logit_bias")
        biases[int(name)] = bias
    return biases
