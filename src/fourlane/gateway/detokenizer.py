"""Token ids to text as they come: never half a character, stop strings cut exactly.

The work for a token does not grow with the text before it. Cutting a stream of tokens into
other portions changes nothing in the text that comes out.
"""

from __future__ import annotations

import codecs
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import tokenizers

    from fourlane.engine.messages import TokenEvent

__all__ = ["ByteDetokenizer", "ChoiceText", "Detokenizer", "StopMatcher", "WindowDetokenizer", "bytes_of_piece"]

REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """Turns one sequence's tokens into text."""

    def add(self, token_id: int) -> str:
        """Return the text that is certain now; a character begun is held back."""
        ...

    def flush(self) -> str:
        """Return what is held back, half characters replaced; the sequence has ended."""
        ...


@cache
def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's alphabet: the printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def bytes_of_piece(piece: str) -> bytes:
    """Return the bytes of a piece of a byte-level vocabulary."""
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in piece])
    except KeyError:  # not written in the alphabet: it stands for itself
        return piece.encode()


class ByteDetokenizer:
    """For byte-level vocabularies: each token is bytes, and UTF-8 is decoded as they come."""

    def __init__(self, token_bytes: Callable[[int], bytes], skipped: Collection[int]) -> None:
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """Return the text that is certain now."""
        return "" if token_id in self._skipped else self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """Return what is held back."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any other vocabulary: decodes a window of the last tokens, and says what a new token adds.

    A window, because a token's text may depend on those before it (spaces, bytes of a character).
    """

    LONGEST = 16
    """Tokens that may wait for their character's end; broken bytes are let through after so many."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, skipped: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._window: list[int] = []
        self._read = 0
        """Tokens of the window whose text has been given out."""

    def add(self, token_id: int) -> str:
        """Return the text that is certain now."""
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        waiting = len(self._window) - self._read
        return self._advance(force=waiting >= self.LONGEST)

    def flush(self) -> str:
        """Return what is held back."""
        return self._advance(force=True)

    def _advance(self, *, force: bool) -> str:
        before = self._decode(self._window[: self._read])
        after = self._decode(self._window)
        if after.endswith(REPLACEMENT) and not force:
            return ""
        del self._window[: self._read]
        self._read = len(self._window)
        return after[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False) if token_ids else ""


class StopMatcher:
    """Finds the first stop string to be completed, in text that comes in pieces.

    Of several completed by the same character the longest counts. Text that may be the beginning
    of a stop string is held back; the work is linear in the text (Knuth-Morris-Pratt).
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        self._stops = [(stop, _failure(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""
        self._keep = keep

    def feed(self, text: str) -> tuple[str, str | None]:
        """Return the text that may be given out and the stop string found; after one, feed no more."""
        for position, character in enumerate(text):
            found = self._step(character)
            if found is not None:
                whole = self._held + text[: position + 1]
                self._held = ""
                return (whole if self._keep else whole[: len(whole) - len(found)]), found
        whole = self._held + text
        certain = len(whole) - max(self._matched)
        self._held = whole[certain:]
        return whole[:certain], None

    def _step(self, character: str) -> str | None:
        found: str | None = None
        for index, (stop, failure) in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = failure[matched - 1]
            matched += stop[matched] == character
            self._matched[index] = matched
            if matched == len(stop) and (found is None or len(stop) > len(found)):
                found = stop
        return found

    def flush(self) -> str:
        """Return what is held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _failure(stop: str) -> list[int]:
    """Return, for each prefix of `stop`, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[length] != stop[index]:
            length = table[length - 1]
        length += stop[length] == stop[index]
        table[index] = length
    return table


class ChoiceText:
    """One choice's text: tokens in, text out, ended by a stop string or by its last token.

    Args:
        min_tokens: stop strings do not count in the first so many tokens.
    """

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str], *, keep_stop: bool, min_tokens: int) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops, keep=keep_stop) if stops else None
        self._min_tokens = min_tokens
        self.tokens = 0
        """Tokens taken in."""
        self.finish: str | None = None
        """Why it ended, None while it goes on."""
        self.stopped = False
        """Whether a stop string ended it."""

    def feed(self, events: Sequence[TokenEvent]) -> tuple[str, int]:
        """Take tokens; return the text that is certain now and how many of them belong to the choice."""
        text: list[str] = []
        for used, event in enumerate(events, 1):
            self.tokens += 1
            piece = self._detokenizer.add(event.token_id)
            if event.finish is not None:
                piece += self._detokenizer.flush()
            text.append(self._check(piece))
            if self.stopped:
                self.finish = "stop"
                return "".join(text), used
            if event.finish is not None:
                self.finish = event.finish
                if self._matcher is not None:
                    text.append(self._matcher.flush())
                return "".join(text), used
        return "".join(text), len(events)

    def _check(self, piece: str) -> str:
        if self._matcher is None or self.tokens <= self._min_tokens:
            return piece
        piece, found = self._matcher.feed(piece)
        self.stopped = found is not None
        return piece
