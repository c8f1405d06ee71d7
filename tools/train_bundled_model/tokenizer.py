"""Train the byte-level BPE tokenizer and write its Hugging Face files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tools.train_bundled_model import chat

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

VOCABULARY = 4096


def train(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """Learn 4,096 tokens from `texts`: the special tokens first, then all bytes, then merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(chat.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: tokenizers.Tokenizer, folder: Path, *, context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": None, "eos_token": chat.END, "pad_token": chat.PAD, "unk_token": None}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "additional_special_tokens": [f"<|{role}|>" for role in chat.ROLES],
        "chat_template": chat.TEMPLATE,
        **special,
    }
    _write(folder / "tokenizer_config.json", config)
    known: dict[str, object] = {name: token for name, token in special.items() if token}
    known["additional_special_tokens"] = config["additional_special_tokens"]
    _write(folder / "special_tokens_map.json", known)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
