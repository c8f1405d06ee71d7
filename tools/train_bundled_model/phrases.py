"""English phrases: articles, lists, capitals and full stops."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.train_bundled_model.wordnet import Synset

_COUNTABLE_TOPICS = frozenset({5, 6, 8, 13, 17, 18, 20})  # animal artifact body food object person plant
DETERMINERS = (
    "a ",
    "an ",
    "the ",
    "any ",
    "one ",
    "someone ",
    "something ",
    "some ",
    "each ",
    "all ",
    "either ",
    "that ",
    "this ",
)


def is_countable(word: str, synset: Synset) -> bool:
    """Guess whether a noun takes an article in this meaning: a common noun for a thing, in the singular."""
    return synset.topic in _COUNTABLE_TOPICS and not word[0].isupper() and not re.search(r"(?<!s)s$", word)


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


def listed(words: list[str]) -> str:
    """Join words as in "one, two and three"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def alternatives(words: list[str]) -> str:
    """Join words as in "one, two or three"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def capital(text: str) -> str:
    """Begin with a capital letter."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Begin with a capital letter and end with a full stop, unless another mark ends the text."""
    text = capital(text.strip())
    return text if text.endswith((".", "!", "?")) else f"{text}."
