"""Experts move between ranks while the service answers: same tokens, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import faulty_rank
import pytest
from make_random_checkpoint import Shape, write_checkpoint
from msgspec.structs import replace
from serving import deployment, generate_all

from fourlane.engine.messages import Sampling
from fourlane.gateway.service import running_service
from fourlane.spec.deployment import Balance
from fourlane.units import Duration, Rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.messages import BalanceStats
    from fourlane.gateway.service import Service
    from fourlane.spec.deployment import Deployment

pytestmark = pytest.mark.distributed

PATIENCE_S = 60.0
GREEDY = Sampling(max_tokens=60, temperature=0.0, ignore_eos=True)
RESTLESS = Balance(interval_steps=6, window_steps=3, min_gain=0.0, moves=8)
"""Looks for something to move every few steps, and takes any gain."""


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
    return [[draw.randrange(5, 512) for _ in range(draw.randint(20, 60))] for _ in range(8)]


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> list[list[int]]:
    """What one rank without any balancing answers."""

    async def run() -> list[list[int]]:
        async with running_service(deployment(checkpoint, unified=1)) as service:
            return await generate_all(service.router, prompts(), GREEDY)

    return asyncio.run(run())


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ranks run what is in `faulty_rank`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(faulty_rank.__file__).parent))


def balanced(wanted: Deployment, balance: Balance = RESTLESS) -> Deployment:
    return replace(wanted, balance=balance)


def known(service: Service) -> dict[str, BalanceStats]:
    """Return what each rank last told of migrations."""
    ranks = service.router.ranks.values()
    return {rank.name: rank.stats.balance for rank in ranks if rank.stats is not None}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "pools",
    [{"unified": 3, "exchange": "tcp"}, {"prefill": 2, "decode": 2, "exchange": "torch_all_to_all"}],
    ids=["unified", "prefill-decode"],
)
def test_tokens_are_the_same_while_experts_move_every_few_steps(
    pools: dict[str, int], checkpoint: Path, plain: list[list[int]]
) -> None:
    async def run() -> None:
        async with running_service(balanced(deployment(checkpoint, **pools))) as service:
            for _ in range(2):
                assert await generate_all(service.router, prompts(), GREEDY) == plain
            decoding = [name for name in service.router.ranks if not name.startswith("prefill")]
            await until(lambda: len({known(service)[name].placement_version for name in decoding}) == 1)
            for name in decoding:
                stats = known(service)[name]
                assert stats.layers_migrated > 3
                assert stats.layers_migrated == stats.placement_version
                assert stats.migrations_failed == 0
            assert sum(known(service)[name].experts_moved for name in decoding) > 0
            lanes = service.router.ranks[decoding[0]].lane_bytes()
            assert lanes["bulk"] >= max(known(service)[name].migration_bytes for name in decoding) / 2

    asyncio.run(run())


async def failing(service: Service, plain: list[list[int]], *, at_least: int) -> str:
    """Ask until so many migrations have failed on every rank; return what the ranks wrote."""
    for _ in range(40):
        assert await generate_all(service.router, prompts(), GREEDY) == plain
        if min(stats.migrations_failed for stats in known(service).values()) >= at_least:
            break
    else:
        raise AssertionError(f"too few failures: {known(service)}")
    logs = sorted((service.run_dir.path / "logs").glob("unified-*.log"))
    return "\n".join(log.read_text() for log in logs)


@pytest.mark.usefixtures("faults")
def test_damaged_weights_are_refused_by_all_and_the_next_layers_still_move(
    checkpoint: Path, plain: list[list[int]]
) -> None:
    async def run() -> None:
        wanted = balanced(deployment(checkpoint, unified=2, exchange="tcp"))
        async with running_service(wanted, target="faulty_rank:run_with_damaged_weights") as service:
            said = await failing(service, plain, at_least=2)
            assert "were damaged on the way" in said
            assert "they stay where they are" in said
            assert all(stats.layers_migrated for stats in known(service).values())

    asyncio.run(run())


@pytest.mark.usefixtures("faults")
def test_a_migration_that_hangs_is_given_up_by_all_and_serving_goes_on(
    checkpoint: Path, plain: list[list[int]]
) -> None:
    async def run() -> None:
        balance = replace(RESTLESS, migration_timeout=Duration.parse("300ms"))
        wanted = balanced(deployment(checkpoint, unified=2, exchange="tcp"), balance)
        async with running_service(wanted, target="faulty_rank:run_with_stuck_balancing") as service:
            said = await failing(service, plain, at_least=3)
            assert "it took longer than 0.3 s" in said
            assert "waiting for rank 1" in said
            assert "3 migrations failed in a row" in said
            assert {stats.layers_migrated for stats in known(service).values()} == {1}
            assert await generate_all(service.router, prompts(), GREEDY) == plain

    asyncio.run(run())


def test_a_rank_killed_while_experts_move_is_replaced_and_takes_the_groups_placement(
    checkpoint: Path, plain: list[list[int]]
) -> None:
    async def run() -> None:
        balance = replace(RESTLESS, bulk_rate=Rate.parse("2Mbps"))  # some layer is always on its way
        async with running_service(balanced(deployment(checkpoint, unified=2, exchange="tcp"), balance)) as service:
            while min((stats.placement_version for stats in known(service).values()), default=0) < 3:
                assert await generate_all(service.router, prompts(), GREEDY) == plain
            load = asyncio.create_task(generate_all(service.router, prompts(), GREEDY))
            await asyncio.sleep(0.1)
            pid = next(row.pid for row in service.rows if row.name == "unified-1")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert await load == plain
            await until(lambda: [(row.phase, row.restarts) for row in service.rows] == [("ready", 0), ("ready", 1)])
            assert await generate_all(service.router, prompts(), GREEDY) == plain
            newcomer = service.run_dir.path / "logs" / "unified-1.log"
            assert "the group's placement is newer; reading experts of" in newcomer.read_text()
            assert min(stats.placement_version for stats in known(service).values()) >= 3
            before = max(stats.layers_migrated for stats in known(service).values())
            while max(stats.layers_migrated for stats in known(service).values()) <= before:
                assert await generate_all(service.router, prompts(), GREEDY) == plain

    asyncio.run(run())
