"""Text to token ids and back, and the chat template, from a model folder. No torch, no transformers."""

from __future__ import annotations

import asyncio
import json
from functools import cached_property
from typing import TYPE_CHECKING

import tokenizers

from fourlane.errors import CheckpointError, InvalidRequest
from fourlane.gateway.chat_template import ChatTemplate
from fourlane.gateway.detokenizer import ByteDetokenizer, WindowDetokenizer, bytes_of_piece

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fourlane.gateway.detokenizer import Detokenizer

__all__ = ["ModelTokenizer"]

THREAD_FROM = 8192
"""Texts of at least so many characters are tokenized on a thread, so that other requests go on."""


class ModelTokenizer:
    """A model folder's tokenizer.json and chat template."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, template: ChatTemplate | None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._template = template
        self._added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(index for index, token in self._added.items() if token.special)
        self._bytes: dict[int, bytes] = {}
        decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
        self._byte_level = decoder.get("type") == "ByteLevel"

    @classmethod
    def read(cls, folder: Path) -> ModelTokenizer:
        """Read tokenizer.json and the chat template (chat_template.jinja or in tokenizer_config.json).

        Raises:
            CheckpointError: a file is missing or cannot be used.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: not found; expected the tokenizer in the format of the tokenizers library")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path}: cannot be used: {error}") from error
        return cls(tokenizer, ChatTemplate.read(folder))

    @property
    def has_chat_template(self) -> bool:
        """Tell whether chat requests can be served."""
        return self._template is not None

    @cached_property
    def longest_token(self) -> int:
        """Return the most characters one token stands for (for byte-level vocabularies: bytes)."""
        return max((len(piece) for piece in self._tokenizer.get_vocab()), default=1)

    async def encode(self, text: str, *, add_special_tokens: bool, limit: int, param: str) -> list[int]:
        """Return the token ids of a text.

        Args:
            limit: a text that must have more tokens than this is refused without tokenizing it.
            param: the request's field the text came from, for messages.

        Raises:
            InvalidRequest: the text is too long, or holds what is not Unicode.
        """
        least = -(-len(text) // self.longest_token)
        if least > limit:
            raise InvalidRequest(
                f"the prompt has {len(text)} characters, that is at least {least} tokens; "
                f"the limit is {limit} tokens of prompt and output: shorten the prompt",
                param=param,
                code="context_length_exceeded",
            )
        if len(text) < THREAD_FROM:
            return self._encode(text, add_special_tokens=add_special_tokens, param=param)
        return await asyncio.to_thread(self._encode, text, add_special_tokens=add_special_tokens, param=param)

    def _encode(self, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:  # lone surrogates
            message = f"{param}: half a surrogate pair is no character"
            raise InvalidRequest(message, param=param) from error

    def render_chat(self, messages: Sequence[Mapping[str, object]], **options: object) -> str:
        """Return the prompt text of a conversation.

        Raises:
            InvalidRequest: the model has no template, or the template refuses these messages.
        """
        if self._template is None:
            raise InvalidRequest("this model has no chat template: use /v1/completions", param="messages")
        return self._template.render(messages, **options)

    def detokenizer(self, *, skip_special: bool = True) -> Detokenizer:
        """Return a fresh incremental detokenizer."""
        skipped = self._special if skip_special else frozenset[int]()
        if self._byte_level:
            return ByteDetokenizer(self.token_bytes, skipped)
        return WindowDetokenizer(self._tokenizer, skipped)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for (of a special token: its name); empty for an id without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """Return a token's text, what is not whole UTF-8 replaced."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].content.encode()
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return bytes_of_piece(piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of whole token ids."""
        detokenizer = self.detokenizer(skip_special=skip_special)
        return "".join(map(detokenizer.add, token_ids)) + detokenizer.flush()
