"""Place experts for a skewed load, split a batch over their replicas, follow a change of the load, ask for advice."""

from __future__ import annotations

import numpy as np

from fourlane.policy.advice import Circumstances, advise, least_redundancy
from fourlane.policy.advice_verdict import verdict
from fourlane.policy.placement import linear_placement, lower_bound, place_experts
from fourlane.policy.token_split import split_equally, split_tokens

LAYERS, EXPERTS, RANKS, REDUNDANT = 4, 64, 16, 16


def main() -> None:
    """Print max/mean tokens over the ranks at every step."""
    rng = np.random.default_rng(7)
    popularity_E = 100_000 // np.arange(3, EXPERTS + 3)
    load_LE = np.stack([rng.permutation(popularity_E) for _ in range(LAYERS)])

    flat = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=RANKS)
    placed = place_experts(load_LE, ranks=RANKS, slots=EXPERTS + REDUNDANT)
    bound_L = lower_bound(load_LE, ranks=RANKS, slots=EXPERTS + REDUNDANT)
    print(f"{EXPERTS} experts on {RANKS} ranks, {REDUNDANT} slots redundant; max/mean tokens over ranks, worst layer")
    print(f"  linear                    {flat.balance(load_LE).max():.2f}")
    print(f"  placed                    {placed.balance(load_LE).max():.2f}")
    print(f"  no placement is below     {bound_L.max():.2f}")
    print(f"  1.05 takes at least R =   {least_redundancy(load_LE, ranks=RANKS, target=1.05).max()}")

    count_GE = rng.multinomial(512, load_LE[0] / load_LE[0].sum(), size=RANKS)
    count_GE[:, :8] *= 2  # a batch that leans towards some experts
    mean = count_GE.sum() / RANKS
    equal, split = split_equally(count_GE, placed, 0), split_tokens(count_GE, placed, 0)
    print("a batch that leans, layer 0")
    print(f"  replicas share equally    {equal.tokens_G.max() / mean:.2f}")
    print(f"  split by its counts       {split.tokens_G.max() / mean:.2f}")
    print(f"  no split is below         {split.lower_bound / mean:.2f}")

    later_LE = load_LE + np.roll(load_LE, 1, axis=1) // 4  # popularity moves on
    again = place_experts(later_LE, ranks=RANKS, slots=EXPERTS + REDUNDANT)
    mended = place_experts(later_LE, ranks=RANKS, slots=EXPERTS + REDUNDANT, previous=placed, moves=12)
    print("the load changes; worst layer, and experts moved a layer")
    print(f"  the old placement         {placed.balance(later_LE).max():.2f}")
    print(f"  placed from nothing       {again.balance(later_LE).max():.2f}   {again.moves_from(placed).max():3}")
    print(f"  repaired, 12 moves        {mended.balance(later_LE).max():.2f}   {mended.moves_from(placed).max():3}")

    given = Circumstances(top_k=4, batch_tokens=128, lean_sd=0.2, expert_bytes=44_000_000)
    said = verdict(advise(np.stack([load_LE, later_LE]), ranks=RANKS, circumstances=given))
    print(said[0])


if __name__ == "__main__":
    main()
