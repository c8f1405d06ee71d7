"""A service whose ranks compute on a GPU: the very tokens that CPUs give."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import msgspec
import pytest
from make_random_checkpoint import Shape, write_checkpoint
from serving import deployment, serve_and_generate

from fourlane.engine.messages import Sampling

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.spec.deployment import Pool

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.distributed,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)


def on_gpu(pool: Pool | None) -> Pool | None:
    return None if pool is None else msgspec.structs.replace(pool, device="cuda")


@pytest.mark.parametrize("pools", [{"unified": 1}, {"prefill": 1, "decode": 1}])
def test_tokens_are_those_of_a_cpu(tmp_path: Path, pools: dict[str, int]) -> None:
    shape = Shape(
        vocab=512, hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, experts=8, top_k=2, expert_dim=32, seed=6
    )
    write_checkpoint(tmp_path, shape)
    draw = random.Random(5)
    prompts = [[draw.randrange(5, 512) for _ in range(draw.randint(3, 90))] for _ in range(12)]
    on_cpu = deployment(tmp_path, **pools)
    wanted = msgspec.structs.replace(
        on_cpu, prefill=on_gpu(on_cpu.prefill), decode=on_gpu(on_cpu.decode), unified=on_gpu(on_cpu.unified)
    )
    expected = asyncio.run(serve_and_generate(on_cpu, prompts, GREEDY))
    assert asyncio.run(serve_and_generate(wanted, prompts, GREEDY)) == expected
