"""Which ranks a choice goes to, by the gateway's books."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fourlane.engine.messages import Sampling
from fourlane.gateway.generation import Choice, ChoiceSpec
from fourlane.gateway.placing import place
from fourlane.gateway.ranks import RankView, expected_ranks
from fourlane.spec.deployment import Deployment, Pool


def ranks_of(prefill: Pool) -> dict[str, RankView]:
    """Return ranks that are up, with 64 pages each."""
    ranks = expected_ranks(Deployment(prefill=prefill, decode=Pool(ranks=2)))
    said: Any = SimpleNamespace(kv_blocks=64, pid=1)
    for rank in ranks.values():
        rank.up(said)
    return ranks


def prefill_rank(ranks: dict[str, RankView]) -> str:
    generation: Any = None
    choice = Choice(generation, 0, ChoiceSpec(list(range(40)), Sampling(max_tokens=4, temperature=0)))
    placing = place(choice, ranks.values(), block_size=16, now=0.0)
    assert placing is not None
    return placing.prefill.name


@pytest.mark.parametrize(
    ("expert_parallel", "chosen"),
    [(None, "prefill/1"), (2, "prefill/2"), (1, "prefill/1")],
    ids=["one group", "two groups", "no groups"],
)
def test_a_prompt_goes_to_an_idle_group_before_an_idle_rank_of_a_group_at_work(
    expert_parallel: int | None, chosen: str
) -> None:
    ranks = ranks_of(Pool(ranks=4, expert_parallel=expert_parallel, chunk_tokens=512))
    ranks["prefill/0"].queued_tokens = 300
    assert prefill_rank(ranks) == chosen


def test_a_long_queue_is_worse_than_waiting_for_another_ranks_step() -> None:
    ranks = ranks_of(Pool(ranks=4, expert_parallel=2, chunk_tokens=256))
    ranks["prefill/0"].queued_tokens = 1000
    ranks["prefill/2"].queued_tokens = ranks["prefill/3"].queued_tokens = 400
    # joining group 0 means waiting for a chunk of 256, joining group 1 for 256 and then 400
    assert prefill_rank(ranks) == "prefill/1"
