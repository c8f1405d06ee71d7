"""What people are told of balancing when a service comes up."""

from __future__ import annotations

import pytest

from fourlane.gateway.balancing import balance_lines, moves_experts
from fourlane.gateway.lanes import lane_states
from fourlane.lanes.marking import default_marks
from fourlane.spec.deployment import Balance, Deployment, Pool
from fourlane.units import Rate

PAIR = {"prefill": Pool(ranks=1), "decode": Pool(ranks=4, expert_parallel=2)}
EXPERTS = {"prefill": 32, "decode": 32}


def test_without_the_table_nothing_is_said() -> None:
    assert balance_lines(Deployment(**PAIR), EXPERTS) == []


def test_a_line_a_pool_that_shares_experts_says_how_many_there_are_and_when_they_move() -> None:
    balance = Balance(redundant_experts=7, bulk_rate=Rate.parse("10Gbps"))
    (line,) = balance_lines(Deployment(**PAIR, balance=balance), EXPERTS)
    assert line == (
        "experts of decode: 32 a layer and 8 redundant slots on 2 ranks, tokens split over replicas batch by batch; "
        "every 2000 steps up to 32 a layer move at most 10Gbps a rank where max/mean falls by 0.02 or more"
    )


@pytest.mark.parametrize(
    ("balance", "said"),
    [
        (Balance(rebalance=False), "one of each of 32 a layer on 2 ranks; they stay where they are"),
        (Balance(redundant_experts=2, split=False), "2 redundant slots on 2 ranks, tokens spread evenly over replicas"),
        (Balance(initial="p.json"), "placed as p.json says where it is for 2 ranks"),
    ],
)
def test_what_is_switched_off_or_given_is_said(balance: Balance, said: str) -> None:
    (line,) = balance_lines(Deployment(unified=Pool(ranks=2), balance=balance), {"unified": 32})
    assert said in line


def test_there_is_a_bulk_lane_only_where_experts_move() -> None:
    def lanes(balance: Balance | None, ranks: int = 2) -> list[str]:
        deployment = Deployment(unified=Pool(ranks=ranks), balance=balance)
        assert moves_experts(deployment) == ("bulk" in lane_states(deployment, default_marks(), [], []))
        return list(lane_states(deployment, default_marks(), [], []))

    assert lanes(None) == lanes(Balance(rebalance=False)) == lanes(Balance(), ranks=1) == ["expert", "kv", "control"]
    assert lanes(Balance()) == ["expert", "kv", "control", "bulk"]
