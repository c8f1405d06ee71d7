"""Turn the King James Bible and WordNet into training documents: plain text and chats.

The text comes from Debian packages (`bible-kjv`, `bible-kjv-text`, `wordnet-base`); `fetch` downloads and unpacks
them, `build` writes `train.jsonl`, `held_out.jsonl` and `sources.json`. A chapter, or a synset, is held out whole: no
training document, plain or chat, quotes a held-out verse or definition.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import subprocess
from typing import TYPE_CHECKING

from tools.train_bundled_model import phrases, wordnet
from tools.train_bundled_model.chat import END, Message, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PACKAGES = ("bible-kjv", "bible-kjv-text", "wordnet-base")
HELD_OUT_PERCENT = 1.2
_BOOKS = (  # noqa: SIM905 (66 quoted names would read worse)
    "Genesis|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Judges|Ruth|1 Samuel|2 Samuel|1 Kings|2 Kings|1 Chronicles|"
    "2 Chronicles|Ezra|Nehemiah|Esther|Job|Psalm|Proverbs|Ecclesiastes|Song of Solomon|Isaiah|Jeremiah|Lamentations|"
    "Ezekiel|Daniel|Hosea|Joel|Amos|Obadiah|Jonah|Micah|Nahum|Habakkuk|Zephaniah|Haggai|Zechariah|Malachi|Matthew|"
    "Mark|Luke|John|Acts|Romans|1 Corinthians|2 Corinthians|Galatians|Ephesians|Philippians|Colossians|"
    "1 Thessalonians|2 Thessalonians|1 Timothy|2 Timothy|Titus|Philemon|Hebrews|James|1 Peter|2 Peter|1 John|2 John|"
    "3 John|Jude|Revelation"
).split("|")
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a dictionary.",
    "You explain words and quote the King James Bible.",
)
_PERSON, _ANIMAL, _PLANT = 18, 5, 20
# WordNet also records insults and the vocabulary of sex; a bundled demonstration model need not learn to write them.
_UNWANTED = re.compile(
    r"offensive|slur\b|vulgar|obscen|derogat|disparag|sexual|\bsex\b|coitus|genital|penis|vagina|prostitut|orgasm|"
    r"copulat|pornograph|masturbat|\brape\b|negro|homosexual|breasts|genocid|suicid",
    re.IGNORECASE,
)
_GREETINGS = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Good evening."),
     "Hello! Ask me what a word means, or ask for a verse of the King James Bible."),
    (("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
     "I am a small language model. I learned to write from WordNet and the King James Bible."),
    (("What can you do?", "How can you help me?", "Help", "Can you help me?"),
     ("I can say what a word means, use it in a sentence, name its synonyms and its opposite, "
      "and write in the manner of the King James Bible.")),
    (("Thanks", "Thank you", "Thank you!", "Thanks a lot."), "You are welcome."),
    (("Goodbye", "Bye", "Good night"), "Goodbye!"),
    (("How are you?", "How do you do?"), "I am well, thank you. Which word shall I explain?"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Document:
    """One training document, rendered, with the domain it is scored under."""

    domain: str
    text: str


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A chapter of the Bible, verse by verse."""

    book: str
    number: int
    verses: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name the chapter as a reader would cite it."""
        return f"{self.book} {self.number}"


@dataclasses.dataclass(frozen=True)
class Word:
    """A word in one of its meanings, to be asked about."""

    word: str
    synset: wordnet.Synset
    database: wordnet.WordNet


def fetch(folder: Path) -> None:
    """Download the Debian packages into `folder` and unpack them there (needs apt-get and dpkg-deb)."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)  # noqa: S607 (fixed command)
    for archive in folder.glob("*.deb"):
        command = ["dpkg-deb", "-x", archive.name, "unpacked"]
        subprocess.run(command, cwd=folder, check=True)


def build(folder: Path, out: Path, *, seed: int = 0) -> None:
    """Write the training and the held-out documents and the list of sources."""
    rng = random.Random(seed)  # noqa: S311 (no secret)
    database = wordnet.read(folder / "unpacked/usr/share/wordnet")
    chapters = read_chapters(folder / "unpacked")
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "held_out"):
        documents = [*_bible_documents(chapters, split, rng), *_wordnet_documents(database, split, rng)]
        if split == "train":
            documents.extend(greetings(rng, repeats=60))
        rng.shuffle(documents)
        with (out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(dataclasses.asdict(d), ensure_ascii=False) + "\n" for d in documents)
    (out / "sources.json").write_text(json.dumps(_sources(folder), indent=1) + "\n")
    licence = (folder / "unpacked/usr/share/doc/wordnet-base/copyright").read_text(encoding="utf-8")
    (out / "wordnet_licence.txt").write_text(licence, encoding="utf-8")


def read_chapters(unpacked: Path) -> list[Chapter]:
    """Print the whole Bible with the package's own reader and group the verses by chapter."""
    command = [unpacked / "usr/bin/bible", "-p", str(unpacked / "usr/lib"), "-f", "gen1:1-rev22:21"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    verses: dict[tuple[str, int], list[str]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line)
        if match:
            verses.setdefault((match[1], int(match[2])), []).append(match[4].strip())
    names = dict(zip(dict.fromkeys(book for book, _ in verses), _BOOKS, strict=True))
    return [Chapter(names[book], number, tuple(v)) for (book, number), v in verses.items()]


def split_of(key: str) -> str:
    """Say whether the chapter or synset `key` is for training or held out, the same on every machine."""
    digest = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    return "held_out" if digest < HELD_OUT_PERCENT / 100 * 2**32 else "train"


def _sources(folder: Path) -> list[dict[str, str]]:
    fields = ("Package", "Version", "Architecture", "Homepage")
    rows = []
    for archive in sorted(folder.glob("*.deb")):
        command = ["dpkg-deb", "-f", str(archive), *fields]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = dict(line.split(": ", 1) for line in text.splitlines())
        rows.append({**row, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()})
    return [row for row in rows if row["Package"] in PACKAGES]


# ---- the Bible ------------------------------------------------------------------------------------------------------


def _bible_documents(chapters: list[Chapter], split: str, rng: random.Random) -> Iterator[Document]:
    for chapter in chapters:
        if split_of(chapter.name) != split:
            continue
        body = "\n".join(chapter.verses)
        for _ in range(2 if split == "train" else 1):
            yield Document("kjv", f"{chapter.name}\n{body}{END}")
        for at in range(len(chapter.verses)):
            if rng.random() < 0.55:
                question, answer = rng.choice((ask_verse, ask_continuation, ask_continuation, ask_passage))(
                    chapter, at, rng
                )
                yield Document("chat", as_chat([(question, answer)], rng))


def ask_verse(chapter: Chapter, at: int, rng: random.Random) -> tuple[str, str]:
    """Ask for a verse by its number."""
    place = f"{chapter.name}:{at + 1}"
    question = rng.choice(("What does {} say?", "What is written in {}?", "Quote {}.", "Recite {}.", "{}?"))
    answer = rng.choice(("{0}", "{0}", "{1} says: {0}"))
    return question.format(place), answer.format(chapter.verses[at], place)


def ask_continuation(chapter: Chapter, at: int, rng: random.Random) -> tuple[str, str]:
    """Give the first words of a verse and answer with the rest."""
    words = " ".join(chapter.verses[at : at + rng.choice((1, 1, 2, 3))]).split()
    cut = min(rng.randint(3, 9), len(words) - 1)
    questions = ("Continue: {}", "Continue this verse: {}", "Finish the verse: {}", "How does this go on? {}")
    question = rng.choice(questions)
    return question.format(" ".join(words[:cut])), " ".join(words[cut:])


def ask_passage(chapter: Chapter, at: int, rng: random.Random) -> tuple[str, str]:
    """Ask for some verses that name somebody."""
    passage = chapter.verses[at : at + rng.randint(2, 7)]
    names = re.findall(r"(?<=[a-z,;] )[A-Z][a-z]{3,}", " ".join(passage[:2])) or ["God"]
    name = rng.choice([n for n in names if n not in {"Lord", "Then", "Behold", "Thou", "Thus"}] or ["God"])
    question = rng.choice((
        "Tell me about {} in the words of the Bible.", "Write about {} in the style of the King James Bible.",
        "Quote a passage about {}.", "Tell me a story of {}.",
    ))  # fmt: skip
    return question.format(name), " ".join(passage)


# ---- WordNet --------------------------------------------------------------------------------------------------------


def _wordnet_documents(database: wordnet.WordNet, split: str, rng: random.Random) -> Iterator[Document]:
    for synset in database.synsets.values():
        if split_of("{}{}".format(*synset.key)) != split:
            continue
        if not is_wanted(synset):
            continue
        count = database.count(synset)
        is_rare = count == 0 and all(" " in w for w in synset.words)
        if not is_rare or rng.random() < 0.5:
            yield Document("wordnet", entry(synset, database) + END)
        for _ in range(_number_of_chats(synset, count, is_rare=is_rare, rng=rng)):
            yield Document("chat", as_chat(list(_turns(synset, database, rng)), rng))


def is_wanted(synset: wordnet.Synset) -> bool:
    """Say whether a synset is free of the vocabulary that is left out."""
    return not _UNWANTED.search(" ".join((synset.definition, *synset.words, *synset.examples)))


def _number_of_chats(synset: wordnet.Synset, count: int, *, is_rare: bool, rng: random.Random) -> int:
    """Ask about common meanings more often: a small model should know them first."""
    is_taxon = synset.topic in {_ANIMAL, _PLANT} and synset.words[0][0].isupper()
    if is_taxon or is_rare:
        return int(rng.random() < 0.3)
    return 1 + sum(count > limit for limit in (0, 3, 10, 30, 60, 100))


def entry(synset: wordnet.Synset, database: wordnet.WordNet) -> str:
    """Write a synset as a short dictionary paragraph."""
    first, *others = synset.words
    parts = [f"{first}, {synset.part_of_speech}: {synset.definition}."]
    if others:
        parts.append(f"Also: {', '.join(others[:4])}.")
    hypernyms = words_of(synset.related("hypernym"), database)
    if hypernyms and synset.key[0] == "n":
        parts.append(f"A kind of {hypernyms[0]}.")
    if synset.examples:
        parts.append(" ".join(phrases.sentence(e) for e in synset.examples[:3]))
    return " ".join(parts)


def words_of(pointers: list[wordnet.Pointer], database: wordnet.WordNet) -> list[str]:
    """Name related meanings by the related word, or by their first word. A name alone reveals no held-out text."""
    return [database.synsets[p.synset].words[max(p.target_word, 1) - 1] for p in pointers]


def _turns(synset: wordnet.Synset, database: wordnet.WordNet, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Ask one thing about a word, now and then two or three."""
    weights = [1 + database.sense_count(w, synset) for w in synset.words]
    word = rng.choices(synset.words, weights)[0]
    asks: list[Callable[[Word, random.Random], tuple[str, str] | None]]
    asks = [_ask_definition] if rng.random() < 0.62 else []
    more = [_ask_example, _ask_synonym, _ask_antonym, _ask_kind, _ask_part_of_speech, _ask_members]
    rng.shuffle(more)
    asks += more
    wanted = 1 if rng.random() < 0.85 else rng.choice((2, 3))
    for ask in dict.fromkeys([*asks, _ask_definition]):
        turn = ask(Word(word, synset, database), rng) if wanted else None
        if turn:
            wanted -= 1
            yield turn


def _ask_definition(w: Word, rng: random.Random) -> tuple[str, str]:
    pos = w.synset.key[0]
    questions = ["What does {} mean?", "What does the word {} mean?", "Define {}.", "What is the meaning of {}?",
                 "Explain the word {}.", "Define the {} {}."]  # fmt: skip
    is_person = bool(w.synset.related("instance_of")) and w.synset.topic == _PERSON
    if is_person:
        questions = ["Who was {}?", "Who is {}?", "Tell me about {}."]
    elif pos == "n":
        named = phrases.with_article(w.word) if phrases.is_countable(w.word, w.synset) else w.word
        questions += [f"What is {named}?", f"What is {named}?", f"what is {named}", f"Tell me what {named} is."]
    elif pos == "v":
        questions += ["What does it mean to {}?", "What does to {} mean?"]
    question = rng.choice(questions)
    count = question.count("{}")
    question = question.format(*([w.synset.part_of_speech, w.word] if count == 2 else [w.word] * count))
    answer = _definition(w.word, w.synset, is_person=is_person)
    if w.synset.examples and rng.random() < 0.3:
        answer += f" For example: {phrases.sentence(w.synset.examples[0])}"
    return question, answer


def _definition(word: str, synset: wordnet.Synset, *, is_person: bool) -> str:
    """Say what a word means in one full sentence."""
    meaning, pos = synset.definition, synset.key[0]
    has_determiner = meaning.startswith(phrases.DETERMINERS)
    if is_person:
        return f"{word} was {meaning if has_determiner else phrases.with_article(meaning)}."
    if pos == "v":
        return f"To {word} means to {meaning}."
    if pos == "n" and not meaning.startswith("("):
        if phrases.is_countable(word, synset):
            return phrases.capital(
                f"{phrases.with_article(word)} is {meaning if has_determiner else phrases.with_article(meaning)}."
            )
        if has_determiner:
            return phrases.capital(f"{word} is {meaning}.")
        return phrases.capital(f"{word} means {meaning}.")
    return f'The {synset.part_of_speech} "{word}" means {meaning}.'


def _ask_example(w: Word, rng: random.Random) -> tuple[str, str] | None:
    fitting = [e for e in w.synset.examples if w.word.lower()[: max(3, len(w.word) - 2)] in e.lower()]
    if not fitting:
        return None
    questions = ("Use {} in a sentence.", "Use the word {} in a sentence.", "Give me an example of {}.",
                 "Write a sentence with the word {}.")  # fmt: skip
    return rng.choice(questions).format(w.word), phrases.sentence(rng.choice(fitting))


def _ask_synonym(w: Word, rng: random.Random) -> tuple[str, str] | None:
    others = [other for other in w.synset.words if other != w.word]
    if not others:
        return None
    questions = ("Give me a synonym for {}.", "What is another word for {}?", "Name a synonym of {}.",
                 "Which words mean the same as {}?")  # fmt: skip
    question = rng.choice(questions)
    if "words" in question:
        return question.format(w.word), f"{phrases.capital(phrases.listed(others[:4]))} can mean the same as {w.word}."
    return question.format(w.word), f"Another word for {w.word} is {others[0]}."


def _ask_antonym(w: Word, rng: random.Random) -> tuple[str, str] | None:
    opposites = [p for p in w.synset.related("antonym") if w.synset.words[p.source_word - 1] == w.word]
    if not opposites:
        return None
    question = rng.choice(("What is the opposite of {}?", "Give me the antonym of {}.", "What is the opposite of {}?"))
    return question.format(w.word), f"The opposite of {w.word} is {words_of(opposites, w.database)[0]}."


def _ask_kind(w: Word, rng: random.Random) -> tuple[str, str] | None:
    hypernyms = words_of(w.synset.related("hypernym"), w.database)
    if not hypernyms or w.synset.key[0] != "n":
        return None
    named = phrases.with_article(w.word) if phrases.is_countable(w.word, w.synset) else w.word
    question = rng.choice(("What kind of thing is {}?", "What sort of thing is {}?"))
    return question.format(named), phrases.capital(f"{named} is a kind of {hypernyms[0]}.")


def _ask_members(w: Word, rng: random.Random) -> tuple[str, str] | None:
    kinds = words_of(w.synset.related("hyponym"), w.database)
    if len(kinds) < 2 or w.synset.key[0] != "n":
        return None
    chosen = rng.sample(kinds, min(len(kinds), rng.randint(2, 4)))
    question = rng.choice(("Name some kinds of {}.", "Which kinds of {} are there?"))
    return question.format(w.word), phrases.capital(f"{phrases.listed(chosen)} are kinds of {w.word}.")


def _ask_part_of_speech(w: Word, rng: random.Random) -> tuple[str, str] | None:
    uses = [pos for pos in wordnet.PARTS_OF_SPEECH if (w.word.lower().replace(" ", "_"), pos) in w.database.senses]
    if rng.random() < 0.7 or not uses:
        return None
    question = rng.choice(("What part of speech is {}?", "Is {} a noun or a verb?"))
    names = [phrases.with_article(wordnet.PARTS_OF_SPEECH[pos]) for pos in uses]
    return question.format(w.word), f'The word "{w.word}" is {phrases.alternatives(names)}.'


def greetings(rng: random.Random, *, repeats: int) -> Iterator[Document]:
    """Write each greeting `repeats` times."""
    for _ in range(repeats):
        for questions, answer in _GREETINGS:
            yield Document("chat", as_chat([(rng.choice(questions), answer)], rng))


def as_chat(turns: list[tuple[str, str]], rng: random.Random) -> str:
    """Render questions and answers, now and then after a system message."""
    messages: list[Message] = []
    if rng.random() < 0.12:
        messages.append(("system", rng.choice(_SYSTEM_PROMPTS)))
    for question, answer in turns:
        messages += [("user", question), ("assistant", answer)]
    return render(messages)
