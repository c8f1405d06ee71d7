"""Name prefixes of token sequences: a chain of hashes, one a full page.

The gateway (prefix affinity), the KV cache (reuse of pages) and the twin use these same names.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

__all__ = ["prefix_hashes"]


def prefix_hashes(token_ids: list[int], block_size: int) -> list[bytes]:
    """Return a 16-byte name for each full page of a sequence.

    A page's name covers all tokens up to its end, so equal names mean equal prefixes (up to the
    collision bound of a 128-bit BLAKE2b).

    Args:
        token_ids: the sequence.
        block_size: tokens a page.
    """
    tokens = np.asarray(token_ids, dtype="<i4")
    names: list[bytes] = []
    name = b""
    for start in range(0, len(tokens) - block_size + 1, block_size):
        name = blake2b(name + tokens[start : start + block_size].tobytes(), digest_size=16).digest()
        names.append(name)
    return names
