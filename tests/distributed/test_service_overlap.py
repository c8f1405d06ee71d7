"""A whole service in one stream and in two: the same tokens, whatever dies or moves meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from typing import TYPE_CHECKING, Literal

import pytest
from make_random_checkpoint import Shape, write_checkpoint
from msgspec.structs import replace
from serving import deployment, generate_all

from fourlane.engine.messages import Sampling
from fourlane.gateway.service import running_service
from fourlane.spec.deployment import Balance, Overlap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fourlane.engine.messages import OverlapStats
    from fourlane.gateway.service import Service
    from fourlane.spec.deployment import Deployment

pytestmark = pytest.mark.distributed

PATIENCE_S = 60.0
GREEDY = Sampling(max_tokens=40, temperature=0.0, ignore_eos=True)
ALWAYS = Overlap(mode="always")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    shape = Shape(
        vocab=512, hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, experts=8, top_k=2, expert_dim=32,
        max_positions=512, seed=5,
    )  # fmt: skip
    write_checkpoint(folder, shape)
    return folder


def prompts() -> list[list[int]]:
    draw = random.Random(11)
    return [[draw.randrange(5, 512) for _ in range(draw.randint(20, 60))] for _ in range(9)]


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> list[list[int]]:
    """What one rank answers."""

    async def run() -> list[list[int]]:
        async with running_service(deployment(checkpoint, unified=1)) as service:
            return await generate_all(service.router, prompts(), GREEDY)

    return asyncio.run(run())


def known(service: Service) -> dict[str, OverlapStats]:
    ranks = service.router.ranks.values()
    return {rank.name: rank.stats.overlap for rank in ranks if rank.stats is not None}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


def dual_steps(service: Service, role: str) -> list[int]:
    return [stats.steps["dual"] for name, stats in known(service).items() if name.startswith(role)]


def served(
    wanted: Deployment, expected: list[list[int]], *, roles: tuple[str, ...], check: Callable[[Service], object]
) -> None:
    async def run() -> None:
        async with running_service(wanted) as service:
            assert await generate_all(service.router, prompts(), GREEDY) == expected
            await until(lambda: all(dual_steps(service, role) for role in roles) and check(service))

    asyncio.run(run())


@pytest.mark.parametrize("exchange", ["tcp", "torch_all_to_all", "auto"])
def test_tokens_are_the_same_in_two_streams_with_prefill_and_decode_apart(
    exchange: Literal["tcp", "torch_all_to_all", "auto"], checkpoint: Path, plain: list[list[int]]
) -> None:
    wanted = deployment(checkpoint, prefill=2, decode=2, chunk_tokens=48, exchange=exchange)
    roles = ("prefill", "decode")
    served(
        replace(wanted, overlap=ALWAYS),
        plain,
        roles=roles,
        check=lambda service: all(min(dual_steps(service, role)) > 2 for role in roles),
    )


def test_tokens_are_the_same_in_two_streams_with_both_phases_in_one_step(
    checkpoint: Path, plain: list[list[int]]
) -> None:
    wanted = deployment(checkpoint, unified=3, chunk_tokens=11, exchange="tcp")
    served(
        replace(wanted, overlap=ALWAYS),
        plain,
        roles=("unified",),
        check=lambda service: min(dual_steps(service, "unified")) > 10,
    )


def test_tokens_are_the_same_when_the_rule_decides_and_it_says_why(checkpoint: Path, plain: list[list[int]]) -> None:
    wanted = deployment(checkpoint, unified=2, chunk_tokens=24, exchange="tcp")

    def decided(service: Service) -> bool:
        stats = known(service).values()
        return all(each.predicted_gain is not None and sum(each.steps.values()) > 20 for each in stats)

    served(replace(wanted, overlap=Overlap(min_tokens=2)), plain, roles=("unified",), check=decided)


def test_a_rank_alone_never_runs_two_streams(checkpoint: Path, plain: list[list[int]]) -> None:
    served(
        replace(deployment(checkpoint, unified=1), overlap=ALWAYS),
        plain,
        roles=("unified",),
        check=lambda service: known(service)["unified/0"].why == "one rank" and dual_steps(service, "unified") == [0],
    )


def test_tokens_are_the_same_in_two_streams_while_experts_move(checkpoint: Path, plain: list[list[int]]) -> None:
    restless = Balance(interval_steps=6, window_steps=3, min_gain=0.0, moves=8)
    wanted = replace(deployment(checkpoint, unified=2, exchange="tcp"), balance=restless, overlap=ALWAYS)

    def moved(service: Service) -> bool:
        ranks = [rank.stats for rank in service.router.ranks.values() if rank.stats is not None]
        return all(stats.balance.layers_migrated > 0 and stats.overlap.steps["dual"] > 10 for stats in ranks)

    async def run() -> None:
        async with running_service(wanted) as service:
            for _ in range(2):
                assert await generate_all(service.router, prompts(), GREEDY) == plain
            await until(lambda: moved(service))

    asyncio.run(run())


@pytest.mark.parametrize("victim", ["prefill-0", "decode-1"])
def test_a_rank_killed_in_a_step_of_two_streams_costs_nobody_a_token(checkpoint: Path, victim: str) -> None:
    long = Sampling(max_tokens=150, temperature=0.0, ignore_eos=True)
    wanted = deployment(checkpoint, prefill=2, decode=2, chunk_tokens=32, exchange="tcp")

    async def run() -> None:
        async with running_service(replace(wanted, overlap=ALWAYS)) as service:
            calm = await generate_all(service.router, prompts(), long)
            pid = next(row.pid for row in service.rows if row.name == victim)
            assert pid is not None
            before = service.state.metrics.generated_tokens
            load = asyncio.create_task(generate_all(service.router, prompts() + prompts(), long))
            await until(lambda: service.state.metrics.generated_tokens > before + 100)
            assert not load.done(), "the load must last until the rank is struck"
            os.kill(pid, signal.SIGKILL)
            assert await load == calm + calm
            await until(lambda: all(row.phase == "ready" for row in service.rows))
            await until(lambda: all(dual_steps(service, role) for role in ("prefill", "decode")))

    asyncio.run(run())


def test_tokens_that_travel_as_float8_are_the_same_for_any_number_of_ranks_and_streams(
    checkpoint: Path, plain: list[list[int]]
) -> None:
    async def answers(wanted: Deployment) -> list[list[int]]:
        rounded = replace(wanted, exchange=replace(wanted.exchange, dispatch="float8"))
        async with running_service(rounded) as service:
            return await generate_all(service.router, prompts(), GREEDY)

    alone = asyncio.run(answers(deployment(checkpoint, unified=1)))
    assert alone != plain, "rounding shows"
    assert asyncio.run(answers(deployment(checkpoint, unified=3, exchange="shared_memory"))) == alone
    apart = deployment(checkpoint, prefill=2, decode=2, exchange="tcp")
    assert asyncio.run(answers(replace(apart, overlap=ALWAYS))) == alone
