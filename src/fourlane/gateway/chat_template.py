"""Render a model's chat template as Hugging Face does: the same Jinja environment, sandboxed."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fourlane.errors import CheckpointError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jinja2.parser import Parser

__all__ = ["ChatTemplate"]

_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class _GenerationBlock(Extension):
    """Let `{% generation %} ... {% endgeneration %}` pass; it marks training targets and prints its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: object, indent: int | None = None, *, ensure_ascii: bool = False, **options: object) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)  # pyrefly: ignore


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    functions = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    cast("dict[str, object]", environment.globals).update(functions)
    return environment


class ChatTemplate:
    """A compiled template and the special tokens it may name.

    Raises:
        CheckpointError: it is no valid Jinja.
    """

    def __init__(self, source: str, special: Mapping[str, str], *, origin: str) -> None:
        self._special = dict(special)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"{origin}: the chat template is no valid Jinja: {error}") from error

    @classmethod
    def read(cls, folder: Path) -> ChatTemplate | None:
        """Return a model folder's template: chat_template.jinja, else `chat_template` in tokenizer_config.json.

        Raises:
            CheckpointError: a file is there but cannot be used.
        """
        config = _config(folder / "tokenizer_config.json")
        special = {name: text for name in _TOKENS if (text := _token_text(config.get(name))) is not None}
        path = folder / "chat_template.jinja"
        if path.is_file():
            return cls(path.read_text(encoding="utf-8"), special, origin=str(path))
        source = config.get("chat_template")
        if isinstance(source, list):  # named templates: [{"name": "default", "template": ...}, ...]
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if not isinstance(source, str):
            return None
        return cls(source, special, origin=str(folder / "tokenizer_config.json"))

    def render(self, messages: Sequence[Mapping[str, object]], **options: object) -> str:
        """Return the prompt text.

        Args:
            options: further variables, such as add_generation_prompt.

        Raises:
            InvalidRequest: the template refuses these messages.
        """
        variables = {"tools": None, "documents": None, **self._special, **options}
        try:
            return self._template.render(messages=messages, **variables)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refused the messages: {error}", param="messages") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            message = f"the chat template could not render these messages: {type(error).__name__}: {error}"
            raise InvalidRequest(message, param="messages") from error


def _config(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, got {error}") from error
    return config if isinstance(config, dict) else {}


def _token_text(token: object) -> str | None:
    """Return a special token's text; it is given as text or as {"content": text, ...}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
