# ruff: noqa: E501 (the lines of a Markdown template are as long as the card needs them)
"""Write MODEL_CARD.md from what was measured: the sources, the checkpoints and the evaluation reports."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from tools.train_bundled_model import chat, data, focus
from tools.train_bundled_model.corpus import HELD_OUT_PERCENT
from tools.train_bundled_model.model import ModelConfig
from tools.train_bundled_model.train import WINDOWS

_LICENCES = {
    "bible-kjv": "reader of the text; GPL-2+ (program used to print the text, no part of the model)",
    "bible-kjv-text": "King James Bible (1611), copyright expired; data file free to copy, modify and distribute",
    "wordnet-base": "WordNet 3.0 licence, see WORDNET_LICENSE.txt",
}

_TEMPLATE = """\
---
license: other
license_name: wordnet-3.0
license_link: WORDNET_LICENSE.txt
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [moe, qwen3_moe]
---
# The bundled model of fourlane

A mixture-of-experts language model of {parameters:.1f} million parameters, of which {active:.1f} million work on a token, in the
Hugging Face layout of `Qwen3MoeForCausalLM`. It exists so that `fourlane serve`, its tests and its examples have a
model whose routing was learned rather than drawn at random, and whose answers can be read. It is a demonstration, not
a source of knowledge.

## Architecture

| | |
|---|---|
| layers, model dim | {c.layers}, {c.dim} |
| attention | {c.heads} heads, {c.kv_heads} key-value heads, head dim {c.head_dim}, query and key norms, rotary base {c.rope_theta:.0f} |
| experts | {c.experts} a layer, {c.top_k} a token, hidden dim {c.expert_dim}; softmax over all, then top {c.top_k}, renormalised |
| vocabulary | {c.vocabulary}, byte-level BPE, digits apart; embedding and output head tied |
| context | {c.context} tokens |
| weights | bfloat16, {shards} shards, {megabytes:.1f} MB |

Chat format: `{chat_example}`. {end} ends an answer and a document.

## Data

| Debian package | version | licence |
|---|---|---|
{sources}

Plain documents: the chapters of the Bible, and WordNet's synsets written as short dictionary paragraphs. Chats,
written by rules: definitions, examples, synonyms, opposites, kinds, parts of speech; verses, continuations and
passages; a few greetings. Meanings that are common in SemCor are asked about more often. Synsets that record insults
or sexual vocabulary are left out by a list of patterns. {held_out_percent} % of the chapters and of the synsets are held out
whole: no plain document and no chat of the training set quotes their verses or definitions. (Question forms, and
the words themselves in other meanings, are shared.)

## Training

Two stages, each driven by wall-clock time on {hardware}: {processes} processes of one thread at low
priority, {per_step} tokens a step, bfloat16 with float32 master weights, torch {torch_version}. Muon for the matrices (peak rate
{rates[muon]}), AdamW for embedding and norms ({rates[adam]}) and routers ({rates[router]}); load-balancing loss {balance}, router z-loss {z};
linear decay to zero at the end of each stage.

| | general | focus |
|---|---|---|
{stages}

The first stage reads everything once at most. The second starts from its weights with fresh optimizers and repeats a
narrower corpus: the {words} commonest words, a noun and a verb of the same form being two (by SemCor counts and by
use in WordNet's own text; nouns for things preferred), each in its first meaning only: its dictionary entry, its
definition cut to the first clause, its opposite, an example, a synonym, kinds of it; Genesis, Exodus, Psalms,
Proverbs and the Gospels with 30 well-known chapters asked for verse by verse and {verses} well-known verses asked for
again and again; a share of the other books; and {general_share:.0%} of the first stage's documents. Answers in it are
the same each time, questions vary. The {passes} passes written differ in their questions.
{notes}

## What it recalls

The second stage makes the model repeat by heart what it was shown; it does not teach it to define words it was not
shown. Questions whose answers stand in that corpus, drawn at random and answered greedily: how many answers are right to the
letter. "Known" are the well-known verses asked for again and again, "other" those of the well-known chapters.

| | questions | after the first stage | after the second |
|---|---|---|---|
{recall}

## Held-out text

Each document alone, in float32 with the exported weights, at most {c.context} tokens. Bits per byte count the text without
special tokens; "chat answers" scores only what the assistant writes. Nearly all held-out definitions are of rarer words, in
full length, and so measure what is general in what was learned. "Before" is after the first stage: the second stage
exchanges some of it for common words known by heart.

| domain | documents | tokens | perplexity per token | bits per byte | perplexity before | bits before |
|---|---|---|---|---|---|---|
{perplexities}

Loaded with `transformers.AutoModelForCausalLM.from_pretrained` (transformers {hf[transformers]}) the folder has {missing} missing
and {unexpected} unexpected keys, and every fourth of these documents gives {agreement}. The largest difference of a logit was
{hf[largest_logit_difference]:.1e}.

## Use of the experts

Load of an expert: tokens that chose it. Per layer the highest load over the mean load, the coefficient of variation
of the loads, and the median over windows of 256 tokens of the highest over the mean load; "prompts" are all held-out
documents, "generated" the model's own text at temperature 0.8. Loads by expert, and by domain, are in
`expert_use.json`.

| layer | prompts: max/mean | cv | max/mean of 256 | generated: max/mean | cv | max/mean of 256 |
|---|---|---|---|---|---|---|
{experts}

## Samples

Verbatim, at most 80 tokens; "…" marks an answer that was cut there. The first answer is greedy, the second was drawn at
temperature 0.8 (seed 8, first draw). "Heron", "abundant" and "lighthouse" are not among the words of the second stage; the
other words asked about are, and so are the verses.

{samples}

## Limits

- It knows what two CPU cores can teach 15 million weights in less than two hours: by heart, definitions and opposites of
  some thousand common words; beyond that only the manner of dictionary entries and of the Bible. What it says of another
  word is mostly invented, is often the definition of a word that looks alike, and reads just as assured. Examples, kinds
  and verses asked for by number are mostly wrong. It cannot count, reason, translate or write code.
- Of a word with several meanings it knows one.
- What it knows by heart it answers best greedily; drawn at temperature 0.8 an answer is often another word's. Greedy
  Bible text tends to repeat a phrase.
- It follows a conversation for a few short turns about one word; a system message has little effect.
- English only; other scripts pass through the tokenizer byte by byte and mean nothing to the model.
- It repeats the views of its sources, a translation of 1611 and a lexicon of 2006, and can write offensive things in spite
  of the filter. Do not show its output as fact or as scripture.
"""


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """What a stage of training left behind: its checkpoint without tensors, its corpus and its evaluation."""

    config: dict[str, Any]
    steps: int
    tokens_seen: int
    elapsed_s: float
    corpus_tokens: int
    notes: str
    report: dict[str, Any]

    @classmethod
    def read(cls, run: Path, report: Path) -> StageRecord:
        """Read the folder of a run and the report on the model it ended with."""
        state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
        notes = run / "notes.txt"  # what a reader should know of this run and no figure says
        return cls(
            config={"stage": "general", "peak": 1.0, **state["config"]},
            steps=state["optimizer"]["steps"],
            tokens_seen=state["tokens_seen"],
            elapsed_s=state["elapsed"],
            corpus_tokens=len(data.load(run / "train_tokens.npz").ids),
            notes=notes.read_text(encoding="utf-8").strip() if notes.exists() else "",
            report=json.loads(report.read_text(encoding="utf-8")),
        )


def write(stages: list[StageRecord], work: Path, folder: Path) -> None:
    """Write MODEL_CARD.md into `folder`, from the records of the stages in the order they were trained."""
    config = ModelConfig()
    first, last = stages
    run, report = last.config, last.report
    hf = report["transformers"]
    text = _TEMPLATE.format(
        c=config,
        parameters=config.parameter_count() / 1e6,
        active=_active_parameters(config) / 1e6,
        shards=len(list(folder.glob("*.safetensors"))),
        megabytes=sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6,
        chat_example=chat.render([("user", "What is a heron?"), ("assistant", "A heron is a wading bird.")]),
        end=f"`{chat.END}`",
        sources=_sources(work / "corpus/sources.json"),
        held_out_percent=HELD_OUT_PERCENT,
        hardware=_hardware(run["device"]),
        processes=run["processes"],
        per_step=run["processes"] * run["tokens_per_process"],
        torch_version=torch.__version__,
        rates=first.config["rates"],
        balance=run["balance_weight"],
        z=run["z_weight"],
        stages=_stages(stages),
        words=f"{focus.WORDS:,}",
        verses=len(focus.KNOWN_VERSES),
        general_share=focus.GENERAL_SHARE,
        passes=focus.PASSES,
        notes="\n".join(stage.notes for stage in stages if stage.notes),
        recall=_recall(first.report["recall"], report["recall"]),
        perplexities=_perplexities(report["held_out"], first.report["held_out"]),
        hf=hf,
        missing=len(hf["missing_keys"]) or "no",
        unexpected=len(hf["unexpected_keys"]) or "no",
        agreement=_agreement(hf["perplexity"]),
        experts=_experts(report["expert_use"]),
        samples="\n".join(_sample(s) for s in report["samples"]),
    )
    (folder / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def _stages(stages: list[StageRecord]) -> str:
    """Write the table of the stages, one column each."""
    rows = {
        "`train` with": [f"`--stage {s.config['stage']} --minutes {s.config['budget_s'] / 60:.1f}`" for s in stages],
        "tokens in the corpus": [f"{s.corpus_tokens / 1e6:.1f} million" for s in stages],
        "tokens seen": [f"{s.tokens_seen / 1e6:.1f} million" for s in stages],
        "passes over the corpus": [f"{s.tokens_seen / s.corpus_tokens:.2f}" for s in stages],
        "steps": [str(s.steps) for s in stages],
        "wall-clock time": [f"{s.elapsed_s / 60:.1f} minutes" for s in stages],
        "peak rates": [f"{s.config['peak']:.0%} of those above" for s in stages],
        "windows": [", ".join(f"{n} tokens to {end:.0%}" for end, n in WINDOWS[s.config["stage"]]) for s in stages],
    }
    return "\n".join(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())


def _recall(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> str:
    return "\n".join(
        f"| {kind}s | {counts['questions']} | {before[kind]['word_for_word']} | {counts['word_for_word']} |"
        for kind, counts in after.items()
    )


def _active_parameters(config: ModelConfig) -> int:
    idle = config.layers * (config.experts - config.top_k) * 3 * config.dim * config.expert_dim
    return config.parameter_count() - idle


def _hardware(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", info)
    extension = " with AVX512-bf16" if "avx512_bf16" in info else ""
    return f"{os.cpu_count()} cores of a CPU that calls itself {name[1] if name else 'nothing'}{extension}, no GPU"


def _sources(path: Path) -> str:
    return "\n".join(
        f"| {row['Package']} | {row['Version']} | {_LICENCES[row['Package']]} |" for row in json.loads(path.read_text())
    )


def _perplexities(after: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> str:
    return "\n".join(
        f"| {domain} | {f['documents']} | {f['tokens']} | {_figures(f)} | {_figures(before[domain])} |"
        for domain, f in after.items()
    )


def _figures(f: dict[str, Any]) -> str:
    return f"{f['perplexity']:.2f} | {'' if f['bits_per_byte'] is None else format(f['bits_per_byte'], '.3f')}"


def _agreement(perplexity: dict[str, dict[str, float]]) -> str:
    worst = max(abs(p["ours"] / p["transformers"] - 1) for p in perplexity.values())
    return f"the same perplexities as the training code's model, to a relative {worst:.0e}"


def _experts(use: dict[str, dict[str, list[float]]]) -> str:
    names = ("max_over_mean", "coefficient_of_variation", "median_max_over_mean_of_256_tokens")
    columns = [use[part][name] for part in ("prompts", "generated") for name in names]
    return "\n".join(
        f"| {i} | {' | '.join(f'{v:.2f}' for v in row)} |" for i, row in enumerate(zip(*columns, strict=True))
    )


def _sample(sample: dict[str, str]) -> str:
    answers = [
        text.removesuffix(chat.END).replace("\n", " / ") + ("" if text.endswith(chat.END) else " …")
        for text in (sample["greedy"], sample["temperature_0.8"])
    ]
    prompt = sample["prompt"].replace("\n", " / ")
    return f"- **{prompt}**\n  - {answers[0]}\n  - {answers[1]}"
