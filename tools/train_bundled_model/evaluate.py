"""Measure an exported model: held-out perplexity, use of the experts, samples, and agreement with transformers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
import torch
import transformers
from torch import Tensor

from tools.train_bundled_model import chat, export, recall
from tools.train_bundled_model.model import IGNORED, Model, ModelConfig, RouterStatistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TOKENS_PER_BATCH = 4096
_LOAD_WINDOW = 256
_COMPARED = 4  # every fourth document is scored with transformers too
CHAT_PROMPTS = (
    "What is a river?", "What is a dog?", "What is water?", "Define bread.", "Define courage.",
    "What does it mean to run?", "What is a heron?", "What does the word abundant mean?", "Use happy in a sentence.",
    "Give me a synonym for large.", "What is the opposite of hot?", "What is the opposite of dark?",
    "Name some kinds of tree.", "What part of speech is quickly?", "What does Genesis 1:1 say?",
    "What does John 3:16 say?", "Quote Psalm 23:1.", "Continue: In the beginning God created",
    "Tell me about Moses in the words of the Bible.", "Hello", "Who are you?",
)  # fmt: skip
TEXT_PROMPTS = ("And it came to pass", "Psalm 151\n", "lighthouse, noun:", "And God said unto Noah,")


@dataclasses.dataclass(frozen=True)
class Document:
    """A held-out document in tokens, with the bytes of text it stands for."""

    domain: str
    ids: list[int]
    text_bytes: int


class Subject:
    """A model under evaluation with its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.config = ModelConfig()
        self.model = Model(self.config, export.load(folder))
        self.end = self.tokenizer.token_to_id(chat.END)
        self.answer = self.tokenizer.token_to_id("<|assistant|>")

    def read(self, path: Path) -> list[Document]:
        """Tokenise held-out documents, each cut to the model's context."""
        special = re.compile(r"<\|[a-z]+\|>")
        documents = []
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            ids = self.tokenizer.encode(row["text"]).ids[: self.config.context + 1]
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            documents.append(Document(row["domain"], ids, len(special.sub("", text).encode())))
        return sorted(documents, key=lambda d: len(d.ids))

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], *, tokens: int, temperature: float, seed: int) -> list[list[int]]:
        """Continue prompts until their end or `tokens` more, reading the whole text again for each token."""
        generator = torch.Generator().manual_seed(seed)
        texts = [list(p) for p in prompts]
        running = list(range(len(texts)))
        for _ in range(tokens):
            running = [i for i in running if texts[i][-1] != self.end or len(texts[i]) == len(prompts[i])]
            if not running:
                break
            hidden = self.model.hidden(_padded([texts[i] for i in running]))
            length = max(len(texts[i]) for i in running)
            last = torch.tensor([row * length + len(texts[i]) - 1 for row, i in enumerate(running)])
            logits = hidden[last] @ self.model.parameters["embedding"].t()
            if temperature == 0:
                chosen = logits.argmax(-1)
            else:
                chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            for i, token in zip(running, chosen.tolist(), strict=True):
                texts[i].append(token)
        return texts

    def answer_greedily(self, prompts: list[str], tokens: int) -> list[str]:
        """Continue rendered prompts greedily by at most `tokens`; return what was added."""
        encoded = [self.tokenizer.encode(p).ids for p in prompts]
        written = self.generate(encoded, tokens=tokens, temperature=0.0, seed=0)
        added = [text[len(prompt) :] for prompt, text in zip(encoded, written, strict=True)]
        return [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in added]


def _padded(texts: list[list[int]], *, value: int = 0) -> Tensor:
    length = max(map(len, texts))
    return torch.tensor([t + [value] * (length - len(t)) for t in texts])


def _batches(documents: list[Document]) -> list[list[Document]]:
    """Group documents of similar length, a few thousand tokens a group."""
    groups: list[list[Document]] = [[]]
    for document in documents:
        if groups[-1] and (len(groups[-1]) + 1) * len(document.ids) > _TOKENS_PER_BATCH:
            groups.append([])
        groups[-1].append(document)
    return groups


@dataclasses.dataclass
class Score:
    """Summed negative log-likelihood of a domain."""

    nll: float = 0.0
    tokens: int = 0
    text_bytes: int = 0
    documents: int = 0

    def figures(self) -> dict[str, float]:
        """Return perplexity per token and bits per byte of text."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "perplexity": round(math.exp(self.nll / self.tokens), 3),
            "bits_per_byte": round(self.nll / math.log(2) / self.text_bytes, 4) if self.text_bytes else None,
        }


@torch.no_grad()
def score(
    subject: Subject, documents: list[Document], logits_of: Callable[[Tensor], Tensor] | None = None
) -> tuple[dict[str, Score], dict[str, list[Tensor]]]:
    """Score each document alone; also return which experts each of its tokens chose, by domain.

    With `logits_of`, another model's logits are scored and no experts are returned.
    """
    scores: dict[str, Score] = {}
    choices: dict[str, list[Tensor]] = {}
    for group in _batches(documents):
        ids = _padded([d.ids for d in group])
        targets = _padded([d.ids for d in group], value=IGNORED)[:, 1:]
        statistics = RouterStatistics([], torch.zeros(()), torch.zeros(()))
        if logits_of is None:
            hidden = subject.model.hidden(ids[:, :-1], statistics)
            logits = (hidden @ subject.model.parameters["embedding"].t()).unflatten(0, targets.shape)
        else:
            logits = logits_of(ids[:, :-1])
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        if statistics.chosen:
            expert_LBSK = torch.stack(statistics.chosen).unflatten(1, targets.shape)
        for row, document in enumerate(group):
            length = len(document.ids) - 1
            _add(scores, document.domain, nll[row], length, document.text_bytes)
            if document.domain == "chat":
                is_answer = _answer_mask(document.ids, subject)
                _add(scores, "chat answers", nll[row, :length][is_answer], int(is_answer.sum()), 0)
            if statistics.chosen:
                choices.setdefault(document.domain, []).append(expert_LBSK[:, row, :length].to(torch.uint8))
    return scores, choices


def _add(scores: dict[str, Score], domain: str, nll: Tensor, tokens: int, text_bytes: int) -> None:
    total = scores.setdefault(domain, Score())
    total.nll += nll.double().sum().item()
    total.tokens += tokens
    total.text_bytes += text_bytes
    total.documents += 1


def _answer_mask(ids: list[int], subject: Subject) -> Tensor:
    """Mark the predicted tokens that the assistant writes, its end token included."""
    mask, inside = [], False
    for previous, current in itertools.pairwise(ids):
        inside = (inside or previous == subject.answer) and previous != subject.end
        mask.append(inside and current != subject.answer)
    return torch.tensor(mask)


def expert_use(choices: list[Tensor], experts: int) -> dict[str, object]:
    """Summarise which experts a stream of tokens chose.

    Args:
        choices: Per document the chosen experts, shape [layers, tokens, top_k].
        experts: Number of experts a layer.
    """
    expert_LTK = torch.cat(choices, 1).numpy()
    load_LE = np.stack([np.bincount(e.reshape(-1), minlength=experts) for e in expert_LTK])
    windows = expert_LTK.shape[1] // _LOAD_WINDOW
    peaks_LW = np.array([
        [_peak(np.bincount(w.reshape(-1), minlength=experts)) for w in np.split(e[: windows * _LOAD_WINDOW], windows)]
        for e in expert_LTK
    ])  # fmt: skip
    return {
        "tokens": int(expert_LTK.shape[1]),
        "load_LE": load_LE.tolist(),
        "max_over_mean": [round(_peak(load), 3) for load in load_LE],
        "coefficient_of_variation": [round(float(load.std() / load.mean()), 3) for load in load_LE],
        f"median_max_over_mean_of_{_LOAD_WINDOW}_tokens": [round(float(np.median(p)), 3) for p in peaks_LW],
    }


def _peak(load_E: np.ndarray) -> float:
    return float(load_E.max() / load_E.mean())


@torch.no_grad()
def generated_choices(subject: Subject, documents: list[Document], *, seed: int) -> list[Tensor]:
    """Let the model answer held-out prompts and return the experts chosen at the generated tokens."""
    chats = [d for d in documents if d.domain == "chat" and subject.answer in d.ids]
    texts = [d for d in documents if d.domain != "chat"]
    rng = np.random.default_rng(seed)
    prompts = [chats[i].ids[: chats[i].ids.index(subject.answer) + 1] for i in rng.permutation(len(chats))[:96]]
    prompts += [texts[i].ids[:8] for i in rng.permutation(len(texts))[:24]]
    choices = []
    for start in range(0, len(prompts), 40):
        part = prompts[start : start + 40]
        written = subject.generate(part, tokens=96, temperature=0.8, seed=seed + start)
        for prompt, text in zip(part, written, strict=True):
            statistics = RouterStatistics([], torch.zeros(()), torch.zeros(()))
            subject.model.hidden(torch.tensor([text[:-1]]), statistics)
            choices.append(torch.stack(statistics.chosen)[:, len(prompt) :].to(torch.uint8))
    return choices


def samples(subject: Subject, *, tokens: int = 80) -> list[dict[str, str]]:
    """Answer the fixed prompts, greedily and at temperature 0.8."""
    rendered = [chat.render([("user", p)], add_generation_prompt=True) for p in CHAT_PROMPTS] + list(TEXT_PROMPTS)
    prompts = [subject.tokenizer.encode(r).ids for r in rendered]
    columns = {}
    for name, temperature in (("greedy", 0.0), ("temperature_0.8", 0.8)):
        written = subject.generate(prompts, tokens=tokens, temperature=temperature, seed=8)
        columns[name] = [
            subject.tokenizer.decode(text[len(prompt) :], skip_special_tokens=False)
            for prompt, text in zip(prompts, written, strict=True)
        ]
    return [
        {"prompt": prompt, **{name: column[i] for name, column in columns.items()}}
        for i, prompt in enumerate((*CHAT_PROMPTS, *TEXT_PROMPTS))
    ]


def compare_with_transformers(folder: Path, subject: Subject, documents: list[Document]) -> dict[str, object]:
    """Load the folder with transformers in float32 and score the documents with it."""
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    loaded.eval()
    ours, _ = score(subject, documents)
    theirs, _ = score(subject, documents, lambda ids: loaded(ids).logits)
    probe = _padded([d.ids[:128] for d in documents[-4:]])
    with torch.no_grad():
        difference = (loaded(probe).logits - subject.model.logits(probe)).abs().max().item()
    return {
        "transformers": transformers.__version__,
        "missing_keys": sorted(report["missing_keys"]),
        "unexpected_keys": sorted(report["unexpected_keys"]),
        "mismatched_keys": sorted(map(str, report.get("mismatched_keys", ()))),
        "largest_logit_difference": difference,
        "perplexity": {
            d: {"ours": math.exp(ours[d].nll / ours[d].tokens), "transformers": math.exp(t.nll / t.tokens)}
            for d, t in theirs.items()
        },
    }


def evaluate(folder: Path, held_out: Path, recalled: Path, report: Path) -> None:
    """Write expert_use.json into the model's folder and everything else into `report`.

    `recalled` holds questions that the documents of the second stage answer.
    """
    subject = Subject(folder)
    documents = subject.read(held_out)
    scores, choices = score(subject, documents)
    generated = generated_choices(subject, documents, seed=11)
    experts = subject.config.experts
    use = {
        "description": "Tokens sent to each expert, load_LE[layer][expert], on held-out text; top 4 of 32 experts. "
        "prompts: all held-out documents; generated: positions of the model's own text at temperature 0.8.",
        "prompts": expert_use([c for d in choices.values() for c in d], experts),
        "generated": expert_use(generated, experts),
        **{f"prompts_{d}": expert_use(c, experts) for d, c in sorted(choices.items())},
    }
    lines = [f' "{key}": {json.dumps(value)}' for key, value in use.items()]
    (folder / "expert_use.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    result = {
        "held_out": {domain: s.figures() for domain, s in sorted(scores.items())},
        "recall": recall.measure(recalled, subject.answer_greedily),
        "samples": samples(subject),
        "expert_use": {k: {n: v for n, v in u.items() if n != "load_LE"} for k, u in use.items() if k != "description"},
        "transformers": compare_with_transformers(folder, subject, documents[::_COMPARED]),
    }
    report.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
