"""The queue in front of the ranks: oldest request first, whatever was tried with it before."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.gateway.generation import Choice, Generation

__all__ = ["WaitingLine"]


class WaitingLine:
    """Choices that wait for room, by the age of their request.

    A choice that comes back (evicted, retried) stands where its request's age puts it: in front
    of those that came later.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Choice]] = []
        self._waiting: dict[Generation, int] = {}

    def __len__(self) -> int:
        """Return the number of requests with a choice in the line."""
        return len(self._waiting)

    def requests(self) -> list[Generation]:
        """Return the requests with a choice in the line."""
        return list(self._waiting)

    def add(self, choice: Choice) -> None:
        """Put a choice in the line."""
        heapq.heappush(self._heap, (choice.generation.arrival, choice.index, choice))
        self._waiting[choice.generation] = self._waiting.get(choice.generation, 0) + 1

    def first(self) -> Choice | None:
        """Return the choice whose turn it is, None if none waits."""
        while self._heap and self._heap[0][2].finished:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def take(self) -> None:
        """Take the first choice out of the line."""
        generation = heapq.heappop(self._heap)[2].generation
        left = self._waiting[generation] - 1
        if left:
            self._waiting[generation] = left
        else:
            del self._waiting[generation]

    def drop(self, generation: Generation) -> None:
        """Take all choices of an ended request out of the line; they must be marked finished."""
        if self._waiting.pop(generation, None) is not None:
            self._heap = [entry for entry in self._heap if not entry[2].finished]
            heapq.heapify(self._heap)
