"""The whole service gives the tokens of Hugging Face, whatever the ranks, chunks and batches."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
import torch
from make_random_checkpoint import Shape, write_checkpoint
from serving import deployment, generate_all, serve_and_generate
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from fourlane.engine.messages import Sampling
from fourlane.engine.model.config import resolve_model_path
from fourlane.gateway.service import running_service

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.distributed

OUTPUT = 24
GREEDY = Sampling(max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)

TEXTS = (
    "In the beginning",
    "And it came to pass",
    "The LORD is my shepherd;",
    "heron, noun:",
    "lighthouse, noun: a tower",
    "Blessed are the",
    "a small animal that",
    "And the angel said unto them, Fear not:",
    "What is a bridge?",
    "the act of",
)


def greedy_by_hugging_face(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    outputs = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=OUTPUT, do_sample=False)
            outputs.append(out[0, len(prompt) :].tolist())
    return outputs


@pytest.fixture(scope="module")
def odd_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Head counts, expert counts and top-k that nothing divides evenly."""
    folder = tmp_path_factory.mktemp("odd")
    shape = Shape(
        vocab=512, hidden=96, layers=3, heads=6, kv_heads=3, head_dim=16, experts=10, top_k=3, expert_dim=40,
        max_positions=256, seed=3,
    )  # fmt: skip
    write_checkpoint(folder, shape)
    return folder


def random_prompts(count: int, *, vocab: int, longest: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(5, vocab) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def test_two_prefill_and_two_decode_ranks_give_the_tokens_of_hugging_face_on_the_bundled_model() -> None:
    folder = resolve_model_path("bundled")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    written = [tokenizer.encode(text).ids for text in TEXTS]
    joined = [[*a, *b] for a in written for b in written][:20]
    prompts = written + joined + random_prompts(20, vocab=4096, longest=90, seed=1)
    assert len(prompts) == 50
    expected = greedy_by_hugging_face(folder, prompts)
    found = asyncio.run(serve_and_generate(deployment("bundled", prefill=2, decode=2), prompts, GREEDY))
    assert found == expected


@pytest.mark.parametrize(
    "pools",
    [
        {"unified": 1},
        {"unified": 3, "chunk_tokens": 7},
        {"prefill": 1, "decode": 1, "chunk_tokens": 16, "transport": "tcp"},
        {"prefill": 2, "decode": 2, "chunk_tokens": 33},
        {"prefill": 2, "decode": 2, "expert_parallel": 1, "transport": "shared_memory"},
        {"prefill": 1, "decode": 4},
        {"prefill": 2, "decode": 2, "exchange": "tcp", "transport": "tcp"},
        {"prefill": 2, "decode": 3, "exchange": "shared_memory", "chunk_tokens": 33},
    ],
    ids=lambda pools: "-".join(f"{key}={value}" for key, value in pools.items()),
)
def test_any_pools_chunks_and_transports_give_the_tokens_of_hugging_face(
    pools: dict[str, int], odd_checkpoint: Path
) -> None:
    prompts = random_prompts(16, vocab=512, longest=70, seed=2)
    prompts += [[*prompts[0][:40], 9, 8, 7], prompts[0]]  # shared prefixes
    expected = greedy_by_hugging_face(odd_checkpoint, prompts)
    found = asyncio.run(serve_and_generate(deployment(odd_checkpoint, **pools), prompts, GREEDY))
    assert found == expected


def test_a_model_with_shared_experts_gives_the_tokens_of_hugging_face(tmp_path: Path) -> None:
    sizes = {"vocab": 512, "hidden": 96, "layers": 3, "heads": 6, "kv_heads": 3, "head_dim": 16, "expert_dim": 40}
    shape = Shape(**sizes, experts=10, top_k=3, shared_expert_dim=72, attention_bias=True, max_positions=256, seed=3)
    write_checkpoint(tmp_path, shape)
    prompts = random_prompts(16, vocab=512, longest=70, seed=2)
    expected = greedy_by_hugging_face(tmp_path, prompts)
    pools = deployment(tmp_path, prefill=2, decode=2, chunk_tokens=33)
    assert asyncio.run(serve_and_generate(pools, prompts, GREEDY)) == expected


def test_a_seed_gives_the_same_text_alone_and_in_any_company(odd_checkpoint: Path) -> None:
    seeded = Sampling(max_tokens=OUTPUT, temperature=0.9, top_p=0.95, seed=1234, ignore_eos=True)
    other = Sampling(max_tokens=OUTPUT, temperature=1.3, seed=77, ignore_eos=True)
    prompts = random_prompts(8, vocab=512, longest=50, seed=4)

    async def ask() -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        async with running_service(deployment(odd_checkpoint, prefill=1, decode=2)) as service:
            alone = await generate_all(service.router, prompts[:1], seeded)
            company, _ = await asyncio.gather(
                generate_all(service.router, prompts[:1] * 3, seeded), generate_all(service.router, prompts, other)
            )
            different = await generate_all(service.router, prompts[:1], other)
            return alone, company, different

    alone, company, different = asyncio.run(ask())
    assert company == alone * 3
    assert different != alone
