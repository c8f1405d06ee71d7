"""What a deployment's [balance] means for its pools, in a line each, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.spec.deployment import Balance, Deployment

__all__ = ["balance_lines", "moves_experts"]


def moves_experts(deployment: Deployment) -> bool:
    """Tell whether experts may move between ranks while the service runs."""
    balance = deployment.balance
    return balance is not None and balance.rebalance and any(size > 1 for size in _groups(deployment).values())


def balance_lines(deployment: Deployment, experts: Mapping[str, int]) -> list[str]:
    """Return a line for each pool whose ranks share experts; none without [balance].

    Args:
        deployment: says how.
        experts: logical experts a layer, by pool; 0 where they are not known.
    """
    balance = deployment.balance
    if balance is None:
        return []
    return [
        f"experts of {role}: {_held(balance, size, experts.get(role, 0))}; {_moving(balance)}"
        for role, size in _groups(deployment).items()
        if size > 1
    ]


def _groups(deployment: Deployment) -> dict[str, int]:
    return {role: pool.expert_parallel or pool.ranks for role, pool in deployment.pools().items()}


def _held(balance: Balance, ranks: int, experts: int) -> str:
    how = "split over replicas batch by batch" if balance.split else "spread evenly over replicas"
    if balance.initial is not None:
        return f"placed as {balance.initial} says where it is for {ranks} ranks, tokens {how}"
    slots = -(-(experts + balance.redundant_experts) // ranks)
    if ranks * slots == experts:
        return f"one of each of {experts} a layer on {ranks} ranks"
    return f"{experts} a layer and {ranks * slots - experts} redundant slots on {ranks} ranks, tokens {how}"


def _moving(balance: Balance) -> str:
    if not balance.rebalance:
        return "they stay where they are"
    rate = f" at most {balance.bulk_rate} a rank" if balance.bulk_rate is not None else ""
    return (
        f"every {balance.interval_steps} steps up to {balance.moves} a layer move{rate} where max/mean falls by "
        f"{balance.min_gain:g} or more"
    )
