"""What the supervisor needs of others, and what it shows of a rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fourlane.engine.messages import Hello, ToRank

__all__ = ["ControlLink", "RankEvents", "RankRow"]


class RankEvents(Protocol):
    """Who is told what becomes of ranks; names are those of `RankConfig`."""

    def rank_ready(self, name: str, hello: Hello) -> None:
        """Take note that a rank can serve."""
        ...

    def rank_lost(self, name: str, reason: str) -> None:
        """Take note that a rank and its sequences are gone."""
        ...

    def rank_paused(self, name: str, reason: str) -> None:
        """Take note that a rank waits for its group to be rebuilt."""
        ...

    def rank_resumed(self, name: str) -> None:
        """Take note that a paused rank goes on."""
        ...

    def pool_failed(self, role: str, reason: str) -> None:
        """Take note that a pool is given up."""
        ...


class ControlLink(Protocol):
    """The part of the hub the supervisor uses."""

    def send(self, identity: str, message: ToRank) -> None:
        """Queue a message to a rank; raise RankDied if it is not connected."""
        ...

    def retire(self, identity: str) -> None:
        """Forget a rank known to be dead."""
        ...


@dataclass(frozen=True, slots=True)
class RankRow:
    """What is known of one rank, to be shown.

    Units:
        load_s: seconds.
    """

    name: str
    role: str
    group: int
    phase: str
    pid: int | None
    host: str | None
    memory_bytes: int | None
    kv_blocks: int | None
    load_s: float | None
    restarts: int
