"""Measure how many answers the model gives word for word as its training documents did."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING

from tools.train_bundled_model import chat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PROMPTS_AT_A_TIME = 50
_LONGEST_ANSWER = 80


def measure(path: Path, generate: Callable[[list[str], int], list[str]]) -> dict[str, dict[str, int]]:
    """Ask the questions in `path`, greedily; count by kind the questions and the answers that are right to the letter.

    Args:
        path: JSON list of questions with their kind and their answer.
        generate: Continues rendered prompts by at most so many tokens, and returns what it added.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"questions": 0, "word_for_word": 0})
    for start in range(0, len(rows), _PROMPTS_AT_A_TIME):
        part = rows[start : start + _PROMPTS_AT_A_TIME]
        prompts = [chat.render([("user", row["question"])], add_generation_prompt=True) for row in part]
        for row, answer in zip(part, generate(prompts, _LONGEST_ANSWER), strict=True):
            counts[row["kind"]]["questions"] += 1
            counts[row["kind"]]["word_for_word"] += is_kept(row, answer)
    return dict(counts)


def is_kept(row: dict[str, str], answer: str) -> bool:
    """Compare an answer with the one of the documents; a verse may come after its number."""
    text = answer.removesuffix(chat.END)
    return text == row["answer"] or ("verse" in row["kind"] and text.endswith(f" says: {row['answer']}"))
