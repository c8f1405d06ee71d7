"""Read the WordNet 3.0 database files of the Debian package `wordnet-base` into synsets.

Source: wndb(5WN), the manual page of the file format.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_SS_TYPE = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
_POINTER_NAMES = {"@": "hypernym", "@i": "instance_of", "~": "hyponym", "!": "antonym"}
_MARKER = re.compile(r"\((?:a|p|ip)\)$")


@dataclasses.dataclass(frozen=True)
class Pointer:
    """A relation to another synset, or between one word of each (antonyms)."""

    relation: str
    synset: tuple[str, int]
    source_word: int
    target_word: int


@dataclasses.dataclass(frozen=True)
class Synset:
    """One meaning: the words that have it, its definition, its examples and what it is related to."""

    key: tuple[str, int]
    topic: int
    words: tuple[str, ...]
    pointers: tuple[Pointer, ...]
    definition: str
    examples: tuple[str, ...]

    @property
    def part_of_speech(self) -> str:
        """Name the part of speech, such as "noun"."""
        return PARTS_OF_SPEECH[self.key[0]]

    def related(self, relation: str) -> list[Pointer]:
        """List the pointers of one relation."""
        return [p for p in self.pointers if p.relation == relation]


@dataclasses.dataclass(frozen=True)
class WordNet:
    """The database: synsets by key, the senses of each word, and how often each sense was tagged in SemCor."""

    synsets: dict[tuple[str, int], Synset]
    senses: dict[tuple[str, str], tuple[tuple[str, int], ...]]
    counts: dict[tuple[str, str, int], int]

    def count(self, synset: Synset) -> int:
        """Return how often the commonest word of this synset was seen in this sense."""
        return max(self.sense_count(word, synset) for word in synset.words)

    def sense_count(self, word: str, synset: Synset) -> int:
        """Return how often `word` was seen in the sense of `synset`."""
        lemma, pos = word.lower().replace(" ", "_"), synset.key[0]
        senses = self.senses.get((lemma, pos), ())
        if synset.key not in senses:
            return 0
        return self.counts.get((lemma, pos, senses.index(synset.key) + 1), 0)


def read(folder: Path) -> WordNet:
    """Read data.*, index.* and cntlist.rev from `folder`."""
    synsets: dict[tuple[str, int], Synset] = {}
    senses: dict[tuple[str, str], tuple[tuple[str, int], ...]] = {}
    for pos, suffix in _FILES.items():
        for line in _lines(folder / f"data.{suffix}"):
            synset = _parse_synset(line, pos)
            synsets[synset.key] = synset
        for line in _lines(folder / f"index.{suffix}"):
            fields = line.split()
            count = int(fields[2])
            senses[fields[0], pos] = tuple((pos, int(o)) for o in fields[-count:])
    counts: dict[tuple[str, str, int], int] = {}
    for line in _lines(folder / "cntlist.rev"):
        sense, number, count = line.split()
        lemma, _, rest = sense.partition("%")
        counts[lemma, _SS_TYPE[rest[0]], int(number)] = int(count)
    return WordNet(synsets, senses, counts)


def _lines(path: Path) -> list[str]:
    """Read the lines of a database file without the licence at its head."""
    text = path.read_text(encoding="latin-1")
    return [line for line in text.splitlines() if line and not line.startswith("  ")]


def _parse_synset(line: str, pos: str) -> Synset:
    fields_text, _, gloss = line.partition(" | ")
    fields = fields_text.split()
    word_count = int(fields[3], 16)
    words = [_MARKER.sub("", w).replace("_", " ") for w in fields[4 : 4 + 2 * word_count : 2]]
    at = 4 + 2 * word_count
    pointers = []
    for i in range(int(fields[at])):
        symbol, offset, target_pos, ends = fields[at + 1 + 4 * i : at + 5 + 4 * i]
        if symbol in _POINTER_NAMES:
            target = ("a" if target_pos == "s" else target_pos, int(offset))
            pointers.append(Pointer(_POINTER_NAMES[symbol], target, *divmod(int(ends, 16), 256)))
    definition, examples = _split_gloss(gloss.strip())
    return Synset((pos, int(fields[0])), int(fields[1]), tuple(words), tuple(pointers), definition, examples)


def _split_gloss(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Split a gloss into its definition and the quoted examples after it."""
    definition, quote, rest = gloss.partition('"')
    examples = [e.strip() for e in re.findall(r'"([^"]+)"', quote + rest)]
    if not definition.strip():
        return gloss.replace('"', "").strip(), ()
    return definition.strip().rstrip(";:,").strip(), tuple(e for e in examples if e)
