"""KV that is damaged on its way, and clients that go away: the whole service, real ranks."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

import faulty_rank
import httpx
import pytest
from make_random_checkpoint import Shape, write_checkpoint
from serving import deployment, generate_all

from fourlane.engine.kv_transfer.installed import absent
from fourlane.engine.messages import Sampling
from fourlane.gateway.service import running_service

if TYPE_CHECKING:
    from fourlane.gateway.service import Service
    from fourlane.spec.deployment import KvTransport

pytestmark = pytest.mark.distributed

PATIENCE_S = 30.0
GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    shape = Shape(
        vocab=512, hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, experts=8, top_k=2, expert_dim=32, seed=6
    )
    write_checkpoint(folder, shape)
    return folder


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(5, 512) for _ in range(draw.randint(3, 40))] for _ in range(count)]


def metric(service: Service, name: str) -> float:
    found = re.search(rf"^{name} (\S+)".encode(), service.state.metrics.render(), re.MULTILINE)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("transport", ["tcp", "shared_memory", "nixl", "mooncake"])
def test_damaged_kv_is_noticed_and_sent_again_and_no_token_changes(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, transport: KvTransport
) -> None:
    if transport in absent():
        pytest.skip(absent()[transport])
    monkeypatch.setenv("PYTHONPATH", str(Path(faulty_rank.__file__).parent))
    wanted = deployment(checkpoint, prefill=1, decode=2, expert_parallel=1, transport=transport)

    async def tokens(target: str) -> tuple[list[list[int]], float]:
        async with running_service(wanted, target=target) as service:
            return await generate_all(service.router, prompts(14), GREEDY), metric(service, "fourlane_retries_total")

    right, no_retries = asyncio.run(tokens("fourlane.engine.worker:run_rank"))
    found, retries = asyncio.run(tokens("faulty_rank:run_with_bad_checksums"))
    assert found == right
    assert no_retries == 0
    assert retries > 0, "some chunk was damaged, or this tests nothing"


def test_a_client_that_goes_away_frees_every_page_everywhere(checkpoint: Path) -> None:
    async def run() -> None:
        async with running_service(deployment(checkpoint, prefill=1, decode=1)) as service:
            body = {"model": service.state.model.name, "prompt": [7] * 30, "max_tokens": 3000, "stream": True}
            async with httpx.AsyncClient(base_url=service.base_url, timeout=PATIENCE_S) as client:
                for _ in range(3):
                    async with client.stream("POST", "/v1/completions", json={**body, "ignore_eos": True}) as answer:
                        assert answer.status_code == 200
                        lines = answer.aiter_lines()
                        for _ in range(5):
                            await anext(lines)
            await idle_and_free(service)

    asyncio.run(run())


async def idle_and_free(service: Service) -> None:
    """Wait until no rank runs anything and every page is free; fail with what is not."""
    ranks = service.router.ranks.values()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not all(
                rank.stats is not None
                and rank.stats.free_blocks == rank.stats.total_blocks
                and rank.stats.running == rank.stats.waiting == rank.stats.reserved == 0
                for rank in ranks
            ):
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"still busy: {[(rank.name, rank.stats) for rank in ranks]}")
