"""A whole service tells which experts its tokens went to, prefill and decode apart."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import pytest
from make_random_checkpoint import Shape, write_checkpoint
from serving import deployment, generate_all

from fourlane.engine.messages import Sampling
from fourlane.gateway.service import running_service

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.gateway.service import Service

LAYERS, EXPERTS, TOP_K, OUTPUT = 3, 10, 3, 6
PATIENCE_S = 20.0


@pytest.mark.distributed
@pytest.mark.parametrize("pools", [{"unified": 2, "chunk_tokens": 7, "exchange": "tcp"}, {"prefill": 1, "decode": 2}])
def test_each_token_is_counted_once_a_layer_and_choice_in_its_phase(pools: dict[str, int], tmp_path: Path) -> None:
    shape = Shape(
        vocab=512, hidden=64, layers=LAYERS, heads=2, kv_heads=1, head_dim=16, experts=EXPERTS, top_k=TOP_K,
        expert_dim=32, max_positions=128, seed=3,
    )  # fmt: skip
    write_checkpoint(tmp_path, shape)
    draw = random.Random(5)
    prompts = [[draw.randrange(5, 512) for _ in range(draw.randint(1, 30))] for _ in range(12)]
    expected = {"prefill": sum(map(len, prompts)), "decode": len(prompts) * (OUTPUT - 1)}

    sampling = Sampling(max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)

    async def serve() -> dict[str, list[int]]:
        async with running_service(deployment(tmp_path, **pools)) as service:
            await generate_all(service.router, prompts, sampling)
            return await told(service, expected)

    assert asyncio.run(serve()) == {phase: [TOP_K * tokens] * LAYERS for phase, tokens in expected.items()}


async def told(service: Service, tokens: dict[str, int]) -> dict[str, list[int]]:
    """Return by phase the choices counted in each layer, as soon as they are not fewer than those of so many tokens."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        loads = service.router.expert_loads.by_phase()
        found = {phase: windows.load_WLE.sum(axis=(0, 2)).tolist() for phase, windows in loads.items()}
        if all(sum(found.get(phase, [])) >= LAYERS * TOP_K * count for phase, count in tokens.items()):
            return found
        assert time.monotonic() < deadline, f"expected {tokens}, told {found}"
        await asyncio.sleep(0.1)
