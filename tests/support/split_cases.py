"""Random replicated layers and batches, and the least maximum a batch can have, by maximum flow."""

from __future__ import annotations

from fractions import Fraction

import networkx as nx
import numpy as np

from fourlane.policy.placement import Placement


def random_placement(rng: np.random.Generator, *, ranks: int, experts: int, held: int, empty: int = 0) -> Placement:
    """Return one layer of `held` slots a rank, some of them empty, every expert somewhere and replicas apart.

    Some experts get many replicas, most one. Needs ranks * held - empty >= experts and held <= experts.
    """
    rows: list[set[int]] = [set() for _ in range(ranks)]
    for expert in rng.permutation(experts):
        rows[rng.choice([rank for rank in range(ranks) if len(rows[rank]) < held])].add(int(expert))
    weight = rng.exponential(size=experts) ** 2 + 1e-9
    for _ in range(ranks * held - experts - empty):
        rank = int(rng.choice([rank for rank in range(ranks) if len(rows[rank]) < held]))
        others = [expert for expert in range(experts) if expert not in rows[rank]]
        rows[rank].add(int(rng.choice(others, p=weight[others] / weight[others].sum())))
    table = np.full((ranks, held), -1, dtype=np.int32)
    for rank, row in enumerate(rows):
        table[rank, rng.permutation(held)[: len(row)]] = rng.permutation(sorted(row))
    return Placement(table.reshape(1, -1), experts=experts, ranks=ranks)


def random_counts(rng: np.random.Generator, *, ranks: int, experts: int, tokens: int) -> np.ndarray:
    """Return each rank's tokens for each expert, [ranks, experts]; popularity is skewed and some ranks have none."""
    popularity = rng.exponential(size=experts) ** 2 + 1e-9
    counts = rng.multinomial(tokens, popularity / popularity.sum(), size=ranks)
    return counts * (rng.random(ranks) < 0.9)[:, None]


def least_maximum(total_E: np.ndarray, placement: Placement, layer: int = 0) -> Fraction:
    """Return the least maximum over ranks of any split of these totals in fractions of tokens, exactly.

    If a maximum is too small for a flow of all tokens, the cut names ranks that cannot have less than a mean which is
    greater; that mean is tried next, until all tokens flow.
    """
    maximum = Fraction(int(total_E.sum()), placement.ranks)
    while True:
        graph = nx.DiGraph()
        for expert, total in enumerate(total_E.tolist()):
            graph.add_edge("tokens", ("expert", expert), capacity=total * maximum.denominator)
        for slot, expert in enumerate(placement.slot_of_LP[layer].tolist()):
            if expert >= 0:
                graph.add_edge(("expert", expert), ("rank", slot // placement.slots_per_rank))
        for rank in range(placement.ranks):
            graph.add_edge(("rank", rank), "done", capacity=maximum.numerator)
        flow, (source_side, _) = nx.minimum_cut(graph, "tokens", "done")
        if flow == int(total_E.sum()) * maximum.denominator:
            return maximum
        confined = sum(int(total_E[node[1]]) for node in source_side if node[0] == "expert")
        maximum = Fraction(confined, sum(node[0] == "rank" for node in source_side))
