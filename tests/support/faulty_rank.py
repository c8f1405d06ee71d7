"""Ranks whose KV sender damages what it sends, now and then; the rest is the real thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.engine.kv_transfer import frames, offers, shared_memory, tcp
from fourlane.engine.worker import run_rank

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from fourlane.engine.rank_config import RankConfig

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
