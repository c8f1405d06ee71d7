"""Text from tokens: the same in any portions, whole characters only, stop strings cut exactly."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from fourlane.engine.messages import TokenEvent
from fourlane.gateway.detokenizer import ChoiceText, StopMatcher, bytes_of_piece
from fourlane.gateway.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEXT = "The naïve 日本語 text 🙂🙃👩\u200d👩\u200d👧 — and others, the end."


@pytest.fixture(scope="module")
def byte_level(model_folder: Path) -> ModelTokenizer:
    return ModelTokenizer.read(model_folder)


@pytest.fixture(scope="module")
def with_spaces() -> ModelTokenizer:
    """Return a tokenizer in the manner of SentencePiece: spaces as marks, bytes as a fallback."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=["<unk>", "<end>"], show_progress=False)
    tokenizer.train_from_iterator(["the naive text and others the end"] * 10, trainer)
    described = json.loads(tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    raw = tokenizers.Tokenizer.from_str(json.dumps(described))
    return ModelTokenizer(raw, None)


def events_of(ids: Sequence[int], *, finish: str | None = "length") -> list[TokenEvent]:
    last = len(ids) - 1
    return [TokenEvent(1, at, token, finish=finish if at == last else None) for at, token in enumerate(ids)]


def run(text: ChoiceText, events: list[TokenEvent], cuts: Sequence[int]) -> list[str]:
    """Feed events in portions; return the pieces of text that come out."""
    pieces, start = [], 0
    for cut in [*sorted({cut % (len(events) + 1) for cut in cuts}), len(events)]:
        if text.finish is None and events[start:cut]:
            pieces.append(text.feed(events[start:cut])[0])
        start = cut
    return pieces


ids_of_any_token = st.lists(st.integers(0, 299), min_size=1, max_size=60)
cuts = st.lists(st.integers(0, 60), max_size=8)


@given(ids=ids_of_any_token, at=cuts)
def test_any_tokens_in_any_portions_give_the_text_of_all_of_them(
    byte_level: ModelTokenizer, ids: list[int], at: list[int]
) -> None:
    data = b"".join(byte_level.token_bytes(token) for token in ids if token >= 4)
    text = ChoiceText(byte_level.detokenizer(), [], keep_stop=False, min_tokens=0)
    assert "".join(run(text, events_of(ids), at)) == data.decode("utf-8", "replace")


@given(st.text(max_size=60))
def test_what_is_encoded_comes_back_whole_and_as_the_library_decodes_it(byte_level: ModelTokenizer, text: str) -> None:
    ids = byte_level._encode(text, add_special_tokens=False, param="x")
    assert byte_level.decode(ids) == text == byte_level._tokenizer.decode(ids)


@given(ids=ids_of_any_token, at=cuts, stops=st.lists(st.text("abthe d\ufffd", min_size=1, max_size=4), max_size=4))
@settings(max_examples=300)
def test_stop_strings_cut_the_same_in_any_portions(
    byte_level: ModelTokenizer, ids: list[int], at: list[int], stops: list[str]
) -> None:
    def made(portions: list[int], *, keep: bool) -> tuple[str, str | None, int]:
        text = ChoiceText(byte_level.detokenizer(), stops, keep_stop=keep, min_tokens=0)
        return "".join(run(text, events_of(ids), portions)), text.finish, text.tokens

    assert made(at, keep=False) == made([], keep=False) == made(list(range(60)), keep=False)
    whole = "".join(run(ChoiceText(byte_level.detokenizer(), [], keep_stop=False, min_tokens=0), events_of(ids), []))
    cut, finish, _ = made(at, keep=False)
    kept, _, _ = made(at, keep=True)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    if ends:
        first = min(ends)
        longest = max((stop for stop in stops if whole[:first].endswith(stop)), key=len)
        assert (cut, kept, finish) == (whole[: first - len(longest)], whole[:first], "stop")
    else:
        assert (cut, kept, finish) == (whole, whole, "length")


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3))
def test_held_back_text_is_exactly_the_longest_beginning_of_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    given_out = ""
    for end in range(1, len(text) + 1):
        piece, found = matcher.feed(text[end - 1])
        given_out += piece
        if found is not None:
            assert text[:end].endswith(found)
            return
        assert not any(stop in text[:end] for stop in stops)
        begun = [n for stop in stops for n in range(1, len(stop)) if text[:end].endswith(stop[:n])]
        assert given_out == text[: end - max(begun, default=0)]
    assert given_out + matcher.flush() == text


def test_a_character_is_never_given_out_in_halves(byte_level: ModelTokenizer) -> None:
    ids = byte_level._encode(TEXT, add_special_tokens=False, param="x")
    text = ChoiceText(byte_level.detokenizer(), [], keep_stop=False, min_tokens=0)
    pieces = [text.feed([event])[0] for event in events_of(ids)]
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > len(TEXT)  # so some tokens were parts of characters


def test_a_character_cut_off_by_the_end_is_replaced_not_lost(byte_level: ModelTokenizer) -> None:
    ids = byte_level._encode("a🙂", add_special_tokens=False, param="x")[:-1]
    text = ChoiceText(byte_level.detokenizer(), [], keep_stop=False, min_tokens=0)
    assert text.feed(events_of(ids))[0] == "a\ufffd"


def test_special_tokens_are_left_out_unless_wanted(byte_level: ModelTokenizer) -> None:
    ids = [2, *byte_level._encode("hi", add_special_tokens=False, param="x"), 0]
    assert byte_level.decode(ids) == "hi"
    assert byte_level.decode(ids, skip_special=False) == "<|user|>hi<|endoftext|>"


def test_stop_strings_do_not_count_in_the_first_min_tokens(byte_level: ModelTokenizer) -> None:
    ids = [byte_level._encode(letter, add_special_tokens=False, param="x")[0] for letter in "abcabc"]
    text = ChoiceText(byte_level.detokenizer(), ["b"], keep_stop=False, min_tokens=2)
    assert text.feed(events_of(ids))[0] == "abca"


def test_the_same_holds_for_a_vocabulary_with_space_marks_and_byte_fallback(with_spaces: ModelTokenizer) -> None:
    text = "the naive 日本語 text 🙂 and others"
    ids = with_spaces._encode(text, add_special_tokens=False, param="x")
    stream = ChoiceText(with_spaces.detokenizer(), [], keep_stop=False, min_tokens=0)
    pieces = [stream.feed([event])[0] for event in events_of(ids)]
    assert "".join(pieces) == with_spaces._tokenizer.decode(ids) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_broken_bytes_without_end_do_not_pile_up(with_spaces: ModelTokenizer) -> None:
    broken = with_spaces._tokenizer.token_to_id("<0xE6>")
    detokenizer = with_spaces.detokenizer()
    assert "".join(detokenizer.add(broken) for _ in range(200)).count("\ufffd") > 100
    assert len(detokenizer._window) <= 2 * detokenizer.LONGEST


def test_work_for_a_token_does_not_grow_with_the_text(byte_level: ModelTokenizer) -> None:
    ids = byte_level._encode("and the earth ", add_special_tokens=False, param="x") * 400
    text = ChoiceText(byte_level.detokenizer(), ["never found", "ear ache"], keep_stop=False, min_tokens=0)

    def steps(count: int) -> int:
        import sys

        calls = 0

        def count_calls(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count_calls)
        try:
            for token in ids[:count]:
                text.feed([TokenEvent(1, 0, token)])
        finally:
            sys.setprofile(None)
        return calls

    first, later = steps(400), steps(400)
    assert later <= first * 1.1


def test_every_byte_has_its_piece() -> None:
    letters = pre_tokenizers.ByteLevel.alphabet()
    assert {bytes_of_piece(letter) for letter in letters} == {bytes([byte]) for byte in range(256)}
    assert bytes_of_piece("日") == "日".encode()


def test_a_stop_string_in_a_long_text_is_found_in_linear_time() -> None:
    matcher = StopMatcher(["a" * 500 + "b"])
    begun = time.process_time()
    for _ in range(40):
        matcher.feed("a" * 1000)
    assert time.process_time() - begun < 2
    assert matcher.feed("b")[1] == "a" * 500 + "b"
