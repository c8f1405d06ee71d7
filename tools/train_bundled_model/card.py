# ruff: noqa: E501 (the lines of a Markdown template are as long as the card needs them)
"""Write MODEL_CARD.md from what was measured: the sources, the training checkpoint and the evaluation report."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch

from tools.train_bundled_model import chat
from tools.train_bundled_model.corpus import HELD_OUT_PERCENT
from tools.train_bundled_model.model import ModelConfig
from tools.train_bundled_model.train import STAGES

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

`python -m tools.train_bundled_model train --work WORK --minutes {minutes:.0f}`

{tokens:.1f} million tokens ({epochs} passes over the training documents) in {steps} steps and {wall:.0f} minutes of wall-clock time on
{hardware}: {processes} processes of one thread at low priority on a machine shared with other work, {per_step} tokens a
step, bfloat16 with float32 master weights, torch {torch_version}. Muon for the matrices (peak rate {rates[muon]}), AdamW for
embedding and norms ({rates[adam]}) and routers ({rates[router]}); linear decay to zero over the budget; windows of {stages} of it.
Load-balancing loss {balance}, router z-loss {z}. {notes}

## Held-out text

Each document alone, in float32 with the exported weights, at most {c.context} tokens. Bits per byte count the text without
special tokens; "chat answers" scores only what the assistant writes.

| domain | documents | tokens | perplexity per token | bits per byte |
|---|---|---|---|---|
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
temperature 0.8 (seed 8, first draw).

{samples}

## Limits

- It knows what an hour on two CPU cores can teach 15 million weights: the manner of dictionary entries and of the
  Bible. Its sentences can be read; what they say of a word is mostly wrong, above all for rarer words, which it confuses with
  others that look alike. Verses asked for by number are invented. It cannot count, reason, translate or write code.
- Greedy answers tend to repeat a phrase; temperature 0.8 reads better.
- It follows a conversation for a few short turns about one word; a system message has little effect.
- English only; other scripts pass through the tokenizer byte by byte and mean nothing to the model.
- It repeats the views of its sources, a translation of 1611 and a lexicon of 2006, and can write offensive things in spite
  of the filter. Do not show its output as fact or as scripture.
"""


def write(work: Path, folder: Path) -> None:
    """Write MODEL_CARD.md into `folder`."""
    config = ModelConfig()
    report = json.loads((work / "evaluation.json").read_text(encoding="utf-8"))
    state = torch.load(work / "run/checkpoint.pt", map_location="cpu", weights_only=True)
    run = state["config"]
    epochs = re.findall(r"epochs ([\d.]+)", (work / "run/log.txt").read_text())[-1]
    notes = work / "run/notes.txt"  # what a reader should know of this run and no figure says
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
        minutes=run["budget_s"] / 60,
        tokens=state["tokens_seen"] / 1e6,
        epochs=epochs,
        steps=state["optimizer"]["steps"],
        wall=state["elapsed"] / 60,
        hardware=_hardware(run["device"]),
        processes=run["processes"],
        per_step=run["processes"] * run["tokens_per_process"],
        torch_version=torch.__version__,
        rates=run["rates"],
        balance=run["balance_weight"],
        z=run["z_weight"],
        notes=notes.read_text(encoding="utf-8").strip() if notes.exists() else "",
        stages=", then ".join(f"{length} tokens to {end:.0%}" for end, length in STAGES),
        perplexities=_perplexities(report["held_out"]),
        hf=hf,
        missing=len(hf["missing_keys"]) or "no",
        unexpected=len(hf["unexpected_keys"]) or "no",
        agreement=_agreement(hf["perplexity"]),
        experts=_experts(report["expert_use"]),
        samples="\n".join(_sample(s) for s in report["samples"]),
    )
    (folder / "MODEL_CARD.md").write_text(text, encoding="utf-8")


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


def _perplexities(held_out: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"| {domain} | {f['documents']} | {f['tokens']} | {f['perplexity']:.2f} | "
        f"{'' if f['bits_per_byte'] is None else format(f['bits_per_byte'], '.3f')} |"
        for domain, f in held_out.items()
    )


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
