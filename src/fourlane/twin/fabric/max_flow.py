"""Maximum flow through a network of capacities.

Dinic's algorithm: levels by breadth-first search, then a blocking flow along them, until the sink is out of reach.
Exact in integers. For bisection bandwidths; a few ten thousand edges take a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["max_flow"]


def max_flow(nodes: int, edges: Iterable[tuple[int, int, int]], source: int, sink: int) -> int:
    """Return the greatest flow from source to sink; `edges` are (from, to, capacity), of one direction each."""
    leaving: list[list[int]] = [[] for _ in range(nodes)]
    ends: list[int] = []
    left: list[int] = []
    for one, other, capacity in edges:
        for here, there, room in ((one, other, capacity), (other, one, 0)):  # edge e and its reverse e ^ 1
            leaving[here].append(len(ends))
            ends.append(there)
            left.append(room)
    total = 0
    while (level := _levels(leaving, ends, left, source))[sink] >= 0:
        total += _blocking_flow(leaving, ends, left, level, (source, sink))
    return total


def _levels(leaving: list[list[int]], ends: list[int], left: list[int], source: int) -> list[int]:
    level = [-1] * len(leaving)
    level[source] = 0
    front = [source]
    while front:
        found: list[int] = []
        for node in front:
            for edge in leaving[node]:
                if left[edge] and level[ends[edge]] < 0:
                    level[ends[edge]] = level[node] + 1
                    found.append(ends[edge])
        front = found
    return level


def _blocking_flow(
    leaving: list[list[int]], ends: list[int], left: list[int], level: list[int], poles: tuple[int, int]
) -> int:
    """Send all that fits along paths of rising level; each node's dead edges are passed once."""
    source, sink = poles
    untried = [list(edges) for edges in leaving]
    total = 0
    path: list[int] = []
    node = source
    while True:
        if node == sink:
            amount = min(left[edge] for edge in path)
            for edge in path:
                left[edge] -= amount
                left[edge ^ 1] += amount
            total += amount
            node = source
            path.clear()
        elif untried[node]:
            edge = untried[node][-1]
            if left[edge] and level[ends[edge]] == level[node] + 1:
                path.append(edge)
                node = ends[edge]
            else:
                untried[node].pop()
        elif path:
            node = ends[path.pop() ^ 1]
            untried[node].pop()
        else:
            return total
