"""Ranks that damage what they send now and then, or whose threads hang; the rest is the real thing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fourlane.engine.balance import frames as frames_of_weights
from fourlane.engine.balance import mesh, thread
from fourlane.engine.kv_transfer import frames, offers, shared_memory, tcp
from fourlane.engine.worker import run_rank

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    import numpy as np

    from fourlane.engine.balance.frames import Head
    from fourlane.engine.rank_config import RankConfig
    from fourlane.policy.migration import LayerMoves

EVERY = 31
"""Chunks from one damaged one to the next. A prompt of a page or two has as many chunks as layers."""


def run_with_bad_checksums(config: RankConfig) -> int:
    """Serve as a rank; on prefill ranks every thirty-first chunk's checksum is not that of its bytes."""
    if config.role == "prefill":
        for module in (tcp, shared_memory, offers):
            _damage(module)
    return run_rank(config)


def _damage(module: ModuleType) -> None:
    right: Callable[..., int] = frames.checksum
    sent = 0

    def checksum(parts: list[memoryview]) -> int:
        nonlocal sent
        sent += 1
        return right(parts) ^ (sent % EVERY == 0)

    class Frames:
        """The frames module with another `checksum`."""

        def __getattr__(self, name: str) -> object:
            return checksum if name == "checksum" else getattr(frames, name)

    module.frames = Frames()  # type: ignore[attr-defined]


PIECES = 7
"""Pieces of experts' weights from one damaged one to the next."""


def run_with_damaged_weights(config: RankConfig) -> int:
    """Serve as a rank; every seventh piece of an expert's weights that it sends does not fit its checksum."""
    right, sent = frames_of_weights.pack, 0

    def pack(head: Head, payload: memoryview) -> bytes:
        nonlocal sent
        sent += isinstance(head, frames_of_weights.Piece)
        damaged = isinstance(head, frames_of_weights.Piece) and sent % PIECES == 0
        return right(head, bytes(len(payload)) if damaged else payload)

    mesh.pack = pack
    return run_rank(config)


def run_with_stuck_balancing(config: RankConfig) -> int:
    """Serve as a rank; on the last rank of a group the thread that moves experts hangs in its second migration."""
    right, begun = thread.layer_moves, 0

    def layer_moves(*rows: np.ndarray, ranks: int) -> LayerMoves:
        nonlocal begun
        begun += 1
        if begun == 2:
            time.sleep(3600)
        return right(*rows, ranks=ranks)

    if config.group_rank == config.group_size - 1:
        thread.layer_moves = layer_moves
    return run_rank(config)
