"""Tokenise the documents once and pack them into training windows that begin where a document begins."""

from __future__ import annotations

import bisect
import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np

IGNORED = -100

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers
    from numpy.typing import NDArray

_POOL = 2000


@dataclasses.dataclass(frozen=True)
class Tokens:
    """All documents, one after the other; document i is `ids[starts[i]:starts[i + 1]]`."""

    ids: NDArray[np.uint16]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the documents."""
        return len(self.starts) - 1

    def document(self, index: int) -> NDArray[np.uint16]:
        """Return the tokens of one document."""
        return self.ids[self.starts[index] : self.starts[index + 1]]


def tokenize(path: Path, tokenizer: tokenizers.Tokenizer, cache: Path) -> Tokens:
    """Tokenise a file of documents, or load what an earlier call saved in `cache`."""
    if not cache.exists():
        texts = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
        encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        starts = np.cumsum([0, *(len(ids) for ids in encoded)])
        np.savez(cache, ids=np.concatenate(encoded).astype(np.uint16), starts=starts)
    return load(cache)


def load(cache: Path) -> Tokens:
    """Load what `tokenize` saved."""
    loaded = np.load(cache)
    return Tokens(loaded["ids"], loaded["starts"])


class Packer:
    """Endless windows of whole documents: best fit from a shuffled pool; only documents longer than a window are cut.

    Windows that mix lengths of context come from the same stream, so that the stages of training share its epochs.
    """

    def __init__(self, tokens: Tokens, *, rank: int, world: int, seed: int) -> None:
        self._tokens = tokens
        self._mine = np.arange(rank, len(tokens), world)
        self._rng = np.random.default_rng([seed, rank])
        self._queue: list[int] = []
        self._pool: list[tuple[int, int, NDArray[np.uint16]]] = []
        self._serial = 0
        self.documents = 0

    def __len__(self) -> int:
        """Count the documents of all processes."""
        return len(self._tokens)

    def batch(self, windows: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the inputs and the targets of a batch, both of shape [windows, length]."""
        ids = np.zeros((windows, length + 1), np.int64)
        is_text = np.zeros((windows, length + 1), bool)
        for i in range(windows):
            used = 0
            while used < length + 1 and (piece := self._take(length + 1 - used, fresh=used == 0)) is not None:
                ids[i, used : used + len(piece)] = piece
                used += len(piece)
            is_text[i, :used] = True
        return ids[:, :-1], np.where(is_text[:, 1:], ids[:, 1:], IGNORED)

    def _take(self, room: int, *, fresh: bool) -> NDArray[np.uint16] | None:
        """Take the longest pooled document that fits, or at the head of a window any document, cut to fit."""
        while len(self._pool) < _POOL:
            self._add(self._next_document())
        if fresh:
            at = int(self._rng.integers(len(self._pool)))
        else:
            at = bisect.bisect_left(self._pool, (room + 1,)) - 1
            if at < 0:
                return None
        _, _, piece = self._pool.pop(at)
        if len(piece) > room:
            self._add(piece[room - 1 :])
            piece = piece[:room]
        return piece

    def _add(self, piece: NDArray[np.uint16]) -> None:
        self._serial += 1
        bisect.insort(self._pool, (len(piece), self._serial, piece))

    def _next_document(self) -> NDArray[np.uint16]:
        if not self._queue:
            self._queue = self._rng.permutation(self._mine).tolist()
        self.documents += 1
        return self._tokens.document(self._queue.pop())
