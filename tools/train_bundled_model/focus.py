"""Choose what the second stage of training repeats: the commonest words in their first meaning, and known chapters.

`build` writes `focus.jsonl` and `recall.json`. The corpus is written in passes: every pass has every word and every
chosen chapter again, in other questions, with some of the general corpus, so that a run that reads the file once has
seen each word many times. What the general corpus holds out stays held out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections import Counter
from typing import TYPE_CHECKING

from tools.train_bundled_model import corpus, phrases, wordnet
from tools.train_bundled_model.chat import END
from tools.train_bundled_model.corpus import Chapter, Document

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSES = 6
WORDS = 3600
RECALLED = {"definition": 150, "opposite": 50, "known verse": 40, "other verse": 40}
_CONCRETE_TOPICS = frozenset({5, 6, 8, 13, 17, 18, 19, 20, 27})  # animal ... phenomenon plant substance
_SUBSTANCE = 27
_IS_TOPICS = frozenset({13, _SUBSTANCE})  # food, substance: "bread is food", not "bread means food"
_LEAST_COUNT = 5  # of a part of speech that is not the word's usual one
GENERAL_SHARE = 0.05  # of the general corpus, drawn once
_BOOKS = frozenset({"Genesis", "Exodus", "Psalm", "Proverbs", "Matthew", "Mark", "Luke", "John"})
_OTHER_BOOKS_SHARE = 0.15
_KNOWN_CHAPTERS = frozenset({
    "Genesis 1", "Genesis 2", "Genesis 3", "Genesis 7", "Exodus 3", "Exodus 14", "Exodus 20", "Psalm 1", "Psalm 19",
    "Psalm 23", "Psalm 51", "Psalm 100", "Psalm 121", "Psalm 150", "Proverbs 1", "Proverbs 3", "Ecclesiastes 1",
    "Ecclesiastes 3", "Isaiah 40", "Matthew 5", "Matthew 6", "Matthew 7", "Luke 2", "Luke 15", "John 1", "John 3",
    "John 11", "John 14", "1 Corinthians 13", "Revelation 21",
})  # fmt: skip
KNOWN_VERSES = frozenset({
    "Genesis 1:1", "Genesis 1:2", "Genesis 1:3", "Genesis 1:26", "Genesis 1:27", "Genesis 1:31", "Genesis 2:7",
    "Exodus 20:3", "Exodus 20:12", "Exodus 20:13", "Psalm 1:1", "Psalm 19:1", "Psalm 23:1", "Psalm 23:2", "Psalm 23:3",
    "Psalm 23:4", "Psalm 23:5", "Psalm 23:6", "Psalm 46:1", "Psalm 51:10", "Psalm 100:1", "Psalm 118:24",
    "Psalm 119:105", "Psalm 121:1", "Psalm 150:6", "Proverbs 1:7", "Proverbs 3:5", "Proverbs 3:6", "Proverbs 16:18",
    "Ecclesiastes 1:2", "Ecclesiastes 3:1", "Isaiah 40:31", "Matthew 5:3", "Matthew 5:4", "Matthew 5:5", "Matthew 5:9",
    "Matthew 5:14", "Matthew 6:9", "Matthew 6:33", "Matthew 7:1", "Matthew 7:7", "Matthew 7:12", "Luke 2:11",
    "Luke 2:14", "John 1:1", "John 1:14", "John 3:16", "John 8:32", "John 11:35", "John 14:6", "John 15:13",
    "Romans 8:28", "1 Corinthians 13:4", "1 Corinthians 13:13", "Philippians 4:13", "Hebrews 11:1", "Revelation 21:4",
    "Revelation 22:21",
})  # fmt: skip
_TIMES_ASKED = 8  # in a pass, for a known verse
_PLAIN_QUESTIONS = ("What does {} mean?", "What does the word {} mean?", "Define {}.", "Define {}.", "define {}",
                    "What is the meaning of {}?", "Explain the word {}.")  # fmt: skip
_NOUN_QUESTIONS = ("What is {}?", "What is {}?", "What is {}?", "what is {}", "What is {}", "Tell me what {} is.")
_VERB_QUESTIONS = ("What does it mean to {}?", "What does it mean to {}?", "What does to {} mean?")
_OPPOSITE_QUESTIONS = ("What is the opposite of {}?", "What is the opposite of {}?", "Give me the antonym of {}.",
                       "what is the opposite of {}", "Name the opposite of {}.")  # fmt: skip
_EXAMPLE_QUESTIONS = ("Use {} in a sentence.", "Use {} in a sentence.", "Use the word {} in a sentence.",
                      "Give me an example of {}.", "Write a sentence with the word {}.")  # fmt: skip
_SYNONYM_QUESTIONS = ("Give me a synonym for {}.", "What is another word for {}?", "Name a synonym of {}.")
_SUBJECTS = ("i ", "you ", "he ", "she ", "it ", "we ", "they ", "the ", "there ", "his ", "her ", "my ", "this ")
_FOLLOW_UPS = {
    "example": ("Use it in a sentence.", "Give me an example."),
    "opposite": ("What is its opposite?", "And the opposite?"),
    "synonym": ("Give me another word for it.", "What is a synonym?"),
    "kind": ("What kind of thing is it?",),
}

Turn = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class CommonWord:
    """A common word in the first meaning of one part of speech."""

    word: str
    pos: str
    synset: wordnet.Synset
    is_usual: bool  # whether this part of speech is the word's usual one: questions that name none mean it


def build(packages: Path, out: Path, *, seed: int = 1) -> None:
    """Write the documents of the second stage, and the questions whose answers it repeats, into `out`.

    `out` must hold the general corpus.
    """
    rng = random.Random(seed)  # noqa: S311 (no secret)
    database = wordnet.read(packages / "unpacked/usr/share/wordnet")
    chapters = [c for c in corpus.read_chapters(packages / "unpacked") if corpus.split_of(c.name) == "train"]
    words = common_words(database)
    writer = WordWriter(database, rng)
    documents = list(_general_documents(out / "train.jsonl", rng))
    for _ in range(PASSES):
        documents.extend(_bible_documents(chapters, rng))
        for rank, word in enumerate(words):
            documents.extend(writer.documents(word, definitions=6 if rank < 1000 else 4 if rank < 2400 else 3))
        documents.extend(corpus.greetings(rng, repeats=25))
    rng.shuffle(documents)
    with (out / "focus.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(d), ensure_ascii=False) + "\n" for d in documents)
    recalled = _recall_questions(words, chapters, writer, rng)
    (out / "recall.json").write_text(json.dumps(recalled, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- words ----------------------------------------------------------------------------------------------------------


def common_words(database: wordnet.WordNet) -> list[CommonWord]:
    """List the commonest words, commonest first, each in the first meaning of its usual parts of speech.

    How common a word is follows from how often SemCor has that meaning and how often WordNet's own definitions and
    examples use the word; nouns for things that can be seen or touched get some advantage.
    """
    mentions: Counter[str] = Counter()
    for synset in database.synsets.values():
        mentions.update(re.findall(r"[a-z]+", " ".join((synset.definition, *synset.examples)).lower()))
    found = []
    for (lemma, pos), senses in database.senses.items():
        synset = database.synsets[senses[0]]
        is_common = any(lemma in database.synsets[key].words for key in senses)  # and so no name, or not only one
        if len(lemma) < 2 or not (lemma.isalpha() and is_common and is_usable(synset)):
            continue
        count = database.counts.get((lemma, pos, 1), 0)
        usual = max(wordnet.PARTS_OF_SPEECH, key=lambda p, lemma=lemma: _total_count(database, lemma, p))
        if pos != usual and count < _LEAST_COUNT:
            continue
        score = math.log1p(count) + 0.7 * math.log1p(mentions[lemma])
        if pos == "n" and synset.topic in _CONCRETE_TOPICS:
            score += 1.5
        found.append((-score, lemma, CommonWord(lemma, pos, synset, pos == usual)))
    return [word for _, _, word in sorted(found, key=lambda entry: entry[:2])[:WORDS]]


def is_usable(synset: wordnet.Synset) -> bool:
    """Say whether a meaning is neither held out nor left out."""
    return corpus.split_of("{}{}".format(*synset.key)) == "train" and corpus.is_wanted(synset)


def _total_count(database: wordnet.WordNet, lemma: str, pos: str) -> tuple[int, int]:
    senses = database.senses.get((lemma, pos), ())
    return sum(database.counts.get((lemma, pos, i + 1), 0) for i in range(len(senses))), len(senses)


class WordWriter:
    """Write the documents about a word. Its answers are the same each time; the questions are drawn."""

    def __init__(self, database: wordnet.WordNet, rng: random.Random) -> None:
        self.database = database
        self.rng = rng

    def documents(self, word: CommonWord, *, definitions: int) -> Iterator[Document]:
        """Write one pass: the dictionary entry, some chats that define the word, and some that ask for more."""
        rng = self.rng
        yield Document("wordnet", corpus.entry(word.synset, self.database) + END)
        turns = [[self.definition(word)] for _ in range(definitions)]
        further = self.further(word)
        for kind, (questions, answer) in further.items():
            times = {"opposite": 3, "part": int(rng.random() < 0.5)}.get(kind, 1)
            turns.extend([(rng.choice(questions).format(word.word), answer)] for _ in range(times))
        follow_ups = [kind for kind in further if kind in _FOLLOW_UPS]
        if follow_ups and word.is_usual and rng.random() < 0.4:
            chosen = rng.sample(follow_ups, min(len(follow_ups), rng.choice((1, 1, 2))))
            more = [(rng.choice(_FOLLOW_UPS[kind]), further[kind][1]) for kind in chosen]
            turns.append([self.definition(word), *more])
        yield from (Document("chat", corpus.as_chat(t, rng)) for t in turns)

    def definition(self, word: CommonWord) -> Turn:
        """Ask what a word means; answer with the first clause of the definition."""
        rng, name = self.rng, word.word
        meaning = self._meaning(word.synset)
        if word.pos == "n" and rng.random() < 0.65:
            named = phrases.with_article(name) if rng.random() < _article_share(word, meaning) else name
            return rng.choice(_NOUN_QUESTIONS).format(named), _noun_answer(named, word, meaning)
        questions = [f"Define the {word.synset.part_of_speech} {{}}."]
        questions += _PLAIN_QUESTIONS if word.is_usual else ()
        questions += _VERB_QUESTIONS if word.pos == "v" else ()
        question = rng.choice(questions).format(name)
        if word.pos == "n":
            has_article = _article_share(word, meaning) > 0.5
            return question, _noun_answer(phrases.with_article(name) if has_article else name, word, meaning)
        if word.pos == "v":
            return question, f"To {name} means to {meaning}."
        return question, f'The {word.synset.part_of_speech} "{name}" means {meaning}.'

    def further(self, word: CommonWord) -> dict[str, tuple[tuple[str, ...], str]]:
        """Write what else can be asked about a word: by kind of question the forms of it and the answer."""
        if not word.is_usual:
            return {}
        name = word.word
        asked: dict[str, tuple[tuple[str, ...], str]] = {}
        senses = [self.database.synsets[key] for key in self.database.senses[name, word.pos]]
        senses = [synset for synset in senses[:3] if is_usable(synset)]
        if opposite := next(filter(None, (self._opposite(name, s) for s in senses)), None):
            asked["opposite"] = (_OPPOSITE_QUESTIONS, f"The opposite of {name} is {opposite}.")
        if example := _best_example(name, senses):
            asked["example"] = (_EXAMPLE_QUESTIONS, phrases.sentence(example))
        others = [w for w in word.synset.words if w.lower() != name]
        if others:
            other = max(others, key=lambda w: (" " not in w, self.database.sense_count(w, word.synset)))
            asked["synonym"] = (_SYNONYM_QUESTIONS, f"Another word for {name} is {other}.")
        asked["part"] = (("What part of speech is {}?", "Is {} a noun or a verb?"), self._parts(name))
        if word.pos == "n":
            asked.update(self._kinds(word))
        return asked

    def _meaning(self, synset: wordnet.Synset) -> str:
        """Shorten a definition; give the name of its class an article where WordNet left it out, as in "compound"."""
        meaning = brief(synset.definition)
        hypernyms = corpus.words_of(synset.related("hypernym"), self.database)
        starts_with_class = synset.topic == _SUBSTANCE and hypernyms and meaning.startswith(f"{hypernyms[0]} ")
        return phrases.with_article(meaning) if starts_with_class else meaning

    def _opposite(self, name: str, synset: wordnet.Synset) -> str | None:
        pointers = [p for p in synset.related("antonym") if synset.words[p.source_word - 1].lower() == name]
        return corpus.words_of(pointers, self.database)[0] if pointers else None

    def _parts(self, name: str) -> str:
        names = [p for p in wordnet.PARTS_OF_SPEECH if (name, p) in self.database.senses]
        names.sort(key=lambda p: _total_count(self.database, name, p), reverse=True)
        listed = [phrases.with_article(wordnet.PARTS_OF_SPEECH[p]) for p in names]
        return f'The word "{name}" is {phrases.alternatives(listed)}.'

    def _kinds(self, word: CommonWord) -> Iterator[tuple[str, tuple[tuple[str, ...], str]]]:
        name, synset = word.word, word.synset
        named = phrases.with_article(name) if _article_share(word, brief(synset.definition)) > 0.5 else name
        if hypernyms := corpus.words_of(synset.related("hypernym"), self.database):
            questions = (f"What kind of thing is {named}?", f"What sort of thing is {named}?")
            yield "kind", (questions, phrases.capital(f"{named} is a kind of {hypernyms[0]}."))
        below = [self.database.synsets[p.synset] for p in synset.related("hyponym")]
        below = sorted((s for s in below if corpus.is_wanted(s)), key=self.database.count, reverse=True)
        if len(below) > 2:
            members = phrases.listed([s.words[0] for s in below[:3]])
            answer = phrases.capital(f"{members} are kinds of {name}.")
            yield "members", (("Name some kinds of {}.", "Which kinds of {} are there?"), answer)


def brief(meaning: str) -> str:
    """Cut a definition to its first clause, without remarks in parentheses."""
    clause = re.sub(r"\([^()]*\)", " ", meaning.partition(";")[0])
    clause = re.sub(r"\s+([,:])", r"\1", " ".join(clause.split())).strip(" ,:")
    return clause or meaning


def _best_example(name: str, senses: list[wordnet.Synset]) -> str | None:
    """Choose an example of the commonest senses: a sentence if there is one, else the longest of the first sense."""
    whole_word = re.compile(rf"\b{re.escape(name)}\b", re.IGNORECASE)
    fitting = [[e for e in s.examples if whole_word.search(e)] for s in senses]
    whole = [e for examples in fitting for e in examples if e.count(" ") > 2 and e.lower().startswith(_SUBJECTS)]
    return whole[0] if whole else max(fitting[0], key=len, default=None) if fitting else None


def _article_share(word: CommonWord, meaning: str) -> float:
    """Say how often a noun is asked about with an article: "a river", "water", "a song" as well as "song"."""
    is_one = meaning.startswith(("a ", "an ", "any ", "one "))
    if phrases.is_countable(word.word, word.synset) and (is_one or word.synset.topic not in _IS_TOPICS):
        return 0.9
    return 0.5 if is_one and word.synset.topic not in _IS_TOPICS and not word.word.endswith("s") else 0.0


def _noun_answer(named: str, word: CommonWord, meaning: str) -> str:
    if meaning.startswith(phrases.DETERMINERS) or word.synset.topic in _IS_TOPICS:
        return phrases.capital(f"{named} is {meaning}.")
    if phrases.is_countable(word.word, word.synset):
        return phrases.capital(f"{named} is {phrases.with_article(meaning)}.")
    return phrases.capital(f"{named} means {meaning}.")


# ---- chapters and the general corpus --------------------------------------------------------------------------------


def _bible_documents(chapters: list[Chapter], rng: random.Random) -> Iterator[Document]:
    for chapter in chapters:
        is_known, is_chosen = chapter.name in _KNOWN_CHAPTERS, chapter.book in _BOOKS
        if is_known or is_chosen or rng.random() < _OTHER_BOOKS_SHARE:
            yield Document("kjv", "\n".join((chapter.name, *chapter.verses)) + END)
        for at in range(len(chapter.verses)):
            asks = [corpus.ask_verse, corpus.ask_continuation] if is_known else []
            asks += [corpus.ask_verse] * _TIMES_ASKED if f"{chapter.name}:{at + 1}" in KNOWN_VERSES else []
            if is_chosen and rng.random() < 0.12:
                asks.append(rng.choice((corpus.ask_continuation, corpus.ask_passage)))
            yield from (Document("chat", corpus.as_chat([ask(chapter, at, rng)], rng)) for ask in asks)


def _general_documents(path: Path, rng: random.Random) -> Iterator[Document]:
    """Draw documents of the general corpus, so that what the first stage learned is not lost."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if rng.random() < GENERAL_SHARE:
                yield Document(**json.loads(line))


# ---- recall ---------------------------------------------------------------------------------------------------------


def _recall_questions(
    words: list[CommonWord], chapters: list[Chapter], writer: WordWriter, rng: random.Random
) -> list[dict[str, str]]:
    """Draw questions that the corpus answers word for word, to measure how many answers the model has kept."""
    definitions = [writer.definition(w) for w in words if w.is_usual]
    opposites = [f["opposite"] for f in map(writer.further, words) if "opposite" in f]
    verses = [(f"{c.name}:{i}", v) for c in chapters for i, v in enumerate(c.verses, 1)]
    others = [v for v in verses if v[0].partition(":")[0] in _KNOWN_CHAPTERS and v[0] not in KNOWN_VERSES]
    pools = {
        "definition": definitions,
        "opposite": [(_OPPOSITE_QUESTIONS[0].format(a.split()[3]), a) for _, a in opposites],
        "known verse": [(f"What does {name} say?", v) for name, v in verses if name in KNOWN_VERSES],
        "other verse": [(f"What does {name} say?", v) for name, v in others],
    }
    return [
        {"kind": kind, "question": question, "answer": answer}
        for kind, number in RECALLED.items()
        for question, answer in rng.sample(pools[kind], number)
    ]
