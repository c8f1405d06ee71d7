"""Ask a running service for token ids, past HTTP and text: what parity tests compare."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from fourlane.gateway.generation import ChoiceSpec, GenerationRequest
from fourlane.gateway.service import running_service
from fourlane.spec.deployment import Deployment, Exchange, Gateway, KvTransfer, Model, Pool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fourlane.engine.messages import Sampling
    from fourlane.gateway.router import Router
    from fourlane.spec.deployment import KvTransport

__all__ = ["deployment", "generate_all", "serve_and_generate"]

ROUND_TIMEOUT_S = 90.0


def deployment(  # noqa: PLR0913 - what the tests vary
    model: Path | str,
    *,
    prefill: int = 0,
    decode: int = 0,
    unified: int = 0,
    chunk_tokens: int = 512,
    expert_parallel: int | None = None,
    transport: KvTransport = "auto",
    exchange: Literal["torch_all_to_all", "tcp", "shared_memory"] = "torch_all_to_all",
) -> Deployment:
    """Return a deployment of so many ranks a pool, weights float32, any free port."""

    def pool(ranks: int) -> Pool | None:
        return Pool(ranks=ranks, chunk_tokens=chunk_tokens, expert_parallel=expert_parallel) if ranks else None

    return Deployment(
        model=Model(path=str(model), weights="float32"),
        gateway=Gateway(port=0),
        prefill=pool(prefill),
        decode=pool(decode),
        unified=pool(unified),
        kv_transfer=KvTransfer(transport=transport),
        exchange=Exchange(implementation=exchange),
    )


async def generate(router: Router, prompt: list[int], sampling: Sampling, *, name: str = "test") -> list[int]:
    """Return the tokens of one completion."""
    request = GenerationRequest(request_id=name, choices=[ChoiceSpec(prompt, sampling)])
    tokens: list[int] = []
    async for deltas in router.submit(request):
        tokens += [event.token_id for delta in deltas for event in delta.events]
    return tokens


async def generate_all(router: Router, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[int]]:
    """Return the tokens of every prompt's completion, all asked for at once."""
    async with asyncio.timeout(ROUND_TIMEOUT_S):
        return list(await asyncio.gather(*(generate(router, prompt, sampling) for prompt in prompts)))


async def serve_and_generate(wanted: Deployment, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[int]]:
    """Bring a service up, ask it for all completions at once, take it down."""
    async with running_service(wanted) as service:
        return await generate_all(service.router, prompts, sampling)
