"""The commands: each reads what the one before it left in the work folder.

A stage of training has its own documents, run and report in that folder: `general` comes first, `focus` second.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from typing import TYPE_CHECKING

import tokenizers

from tools.train_bundled_model import card, chat
from tools.train_bundled_model import corpus as corpus_
from tools.train_bundled_model import evaluate as evaluate_
from tools.train_bundled_model import export as export_
from tools.train_bundled_model import focus as focus_
from tools.train_bundled_model import tokenizer as tokenizer_
from tools.train_bundled_model import train as train_
from tools.train_bundled_model.model import ModelConfig

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class StageFiles:
    """Where a stage of training keeps its files, relative to the work folder."""

    documents: str
    run: str
    report: str


STAGES = {
    "general": StageFiles("corpus/train.jsonl", "run", "evaluation.json"),
    "focus": StageFiles("corpus/focus.jsonl", "run-focus", "evaluation-focus.json"),
}


def fetch(arguments: argparse.Namespace) -> None:
    """Download the texts."""
    corpus_.fetch(arguments.work / "packages")


def corpus(arguments: argparse.Namespace) -> None:
    """Write the documents of a stage; those of the second need those of the first."""
    build = {"general": corpus_.build, "focus": focus_.build}[arguments.stage]
    build(arguments.work / "packages", arguments.work / "corpus")


def tokenizer(arguments: argparse.Namespace) -> None:
    """Train the tokenizer on the training documents of the first stage."""
    special = re.compile("|".join(re.escape(token) for token in chat.SPECIAL_TOKENS))
    with (arguments.work / STAGES["general"].documents).open(encoding="utf-8") as file:
        texts = [special.sub("\n", json.loads(line)["text"]) for line in file]
    (arguments.work / "tokenizer").mkdir(exist_ok=True)
    tokenizer_.save(tokenizer_.train(texts), arguments.work / "tokenizer", context=ModelConfig().context)


def train(arguments: argparse.Namespace) -> None:
    """Train a stage, or go on with it."""
    config = train_.TrainingConfig(
        budget_s=arguments.minutes * 60,
        device=arguments.device,
        processes=2 if arguments.device == "cpu" else 1,
        tokens_per_process=arguments.tokens,
    )
    work: Path = arguments.work
    if arguments.stage == "focus":
        config = train_.focus(config, arguments.warm_start or work / STAGES["general"].run / "checkpoint.pt")
    files = STAGES[arguments.stage]
    learned = tokenizers.Tokenizer.from_file(str(work / "tokenizer/tokenizer.json"))
    train_.train(work / files.documents, learned, work / files.run, config)


def export(arguments: argparse.Namespace) -> None:
    """Write the last checkpoint of a stage as a Hugging Face folder."""
    work: Path = arguments.work
    notice = work / "WORDNET_LICENSE.txt"
    shutil.copyfile(work / "corpus/wordnet_licence.txt", notice)
    checkpoint = work / STAGES[arguments.stage].run / "checkpoint.pt"
    export_.export(checkpoint, work / "tokenizer", [notice], arguments.out)


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure the exported folder; after the second stage, write its card."""
    work: Path = arguments.work
    recall = work / "corpus/recall.json"
    report = work / STAGES[arguments.stage].report
    evaluate_.evaluate(arguments.out, work / "corpus/held_out.jsonl", recall, report)
    if arguments.stage == "focus":
        card.write([card.StageRecord.read(work / f.run, work / f.report) for f in STAGES.values()], work, arguments.out)
