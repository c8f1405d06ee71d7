"""`fourlane demo`: bring the service up, let it answer, put it under load and show what was measured."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from fourlane.errors import CheckFailed, EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from rich.console import Console

    from fourlane.gateway.load import Client, LoadPlan, PlannedRequest
    from fourlane.gateway.service import Service

__all__ = ["demo", "service_for"]

_POOLS = ("prefill.ranks=2", "decode.ranks=2")
_ANSWER_TIMEOUT_S = 120.0
_VERSES_A_PROMPT = 6
_OUTPUT_TOKENS = 48


@dataclass(frozen=True)
class Prompt:
    """One built-in prompt. `chat`: a question; else the beginning of a text to be continued."""

    text: str
    chat: bool
    max_tokens: int
    seed: int


PROMPTS = (
    Prompt("What is a river?", chat=True, max_tokens=40, seed=1),
    Prompt("What is the opposite of dark?", chat=True, max_tokens=40, seed=1),
    Prompt("bread, noun:", chat=False, max_tokens=32, seed=1),
    Prompt("And it came to pass in those days, that", chat=False, max_tokens=48, seed=1),
)


EXAMPLES = """\b
Examples:
  fourlane demo
  fourlane demo --set prefill.ranks=1 --set decode.ranks=1      the fast way on two cores
  fourlane demo --set model.path=/models/tiny-qwen3-moe --json figures.json
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change a field of the deployment, such as decode.ranks=1.",
)
@click.option("--requests", type=click.IntRange(1), default=32, show_default=True, help="Requests of the load.")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests under way.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
def demo(*, overrides: tuple[str, ...], **options: Any) -> None:
    """Serve the bundled model on this machine, stream a few answers and measure a short load.

    Two prefill and two decode ranks run in pools of their own; KV goes from one to the other layer
    by layer. Answers to the built-in prompts are drawn with a fixed seed: every run prints the same text.
    """
    asyncio.run(_demo((*_POOLS, *overrides), **options))


@contextlib.asynccontextmanager
async def service_for(path: Path | None, overrides: Sequence[str], *, out: Console) -> AsyncIterator[Service]:
    """Bring up a deployment for the time of the block and say how that goes.

    Args:
        path: the deployment's file; None: one prefill and one decode rank of the bundled model, on a free port.
        overrides: "path=value" texts.
        out: gets a moving line on a terminal, and a line once the service can serve.
    """
    from fourlane.gateway.service import running_service
    from fourlane.spec.load import load_deployment

    free_port = () if path is not None else ("gateway.port=0",)
    deployment = load_deployment(path, overrides=[*free_port, *overrides])
    pools = " + ".join(f"{pool.ranks} {role}" for role, pool in deployment.pools().items())
    began = time.perf_counter()
    states: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        line = stack.enter_context(out.status(f"starting {pools}")) if out.is_terminal else None

        def show(name: str, state: str) -> None:
            states[name] = state
            if line is not None:
                line.update(", ".join(f"{each} {what}" for each, what in states.items()))

        async with running_service(deployment, progress=show) as service:
            stack.close()
            seconds = time.perf_counter() - began
            out.print(f"{service.state.model.name}: {pools} ranks serve after {seconds:.1f} s", markup=False)
            yield service


async def _demo(overrides: Sequence[str], *, requests: int, concurrency: int, json_path: Path | None) -> None:
    from fourlane.cli.demo_figures import figures_table, measure
    from fourlane.gateway.load import Client
    from fourlane.report.tables import console, print_table, write_json

    out = console()
    async with service_for(None, overrides, out=out) as service:
        client = Client(service.base_url, api_key=service.api_key)
        try:
            first_token_s = await _answer_prompts(client, out)
            out.print(f"\nLoad: {requests} requests, {concurrency} at a time")
            result = await measure(client, _plan(requests), concurrency=concurrency, first_token_s=first_token_s)
        finally:
            client.close()
    out.print()
    print_table(out, figures_table(result))
    if json_path is not None:
        write_json(json_path, result)
    if result.load.failed:
        raise CheckFailed(f"{result.load.failed} of {result.load.requests} requests failed")


async def _answer_prompts(client: Client, out: Console) -> float:
    """Stream the answers to the built-in prompts; return the process's age in seconds at the first token."""
    first: list[float] = []
    model = (await client.require())[0]
    for prompt in PROMPTS:
        out.print(f"\n> {prompt.text}" if prompt.chat else "", markup=False, soft_wrap=True, style="dim")
        if not prompt.chat:
            out.print(prompt.text, markup=False, end="", style="dim")
        await _stream(client, model, prompt, first)
    return first[0]


async def _stream(client: Client, model: str, prompt: Prompt, first: list[float]) -> None:
    """Write an answer to standard output as it comes."""
    path, body = _request(model, prompt)
    faults: list[str] = []

    def show(_now: float, payload: bytes) -> None:
        event = msgspec.json.decode(payload, type=_Event)
        if event.error is not None:
            faults.append(event.error.message)
        for choice in event.choices:
            text = choice.delta.content or "" if choice.delta is not None else choice.text
            if text and not first:
                first.append(process_age_s())
            sys.stdout.write(text)
        sys.stdout.flush()

    response = await client.post(path, body, timeout=_ANSWER_TIMEOUT_S, on_event=show)
    sys.stdout.write("\n")
    if response.status != 200:
        faults.append(bytes(response.body[:300]).decode(errors="replace"))
    if faults or not first:
        raise EngineError(f"{path}: no whole answer to {prompt.text!r}: {'; '.join(faults) or 'no text came'}")


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str = ""
    delta: _Delta | None = None


class _Fault(msgspec.Struct):
    message: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Fault | None = None


def _request(model: str, prompt: Prompt) -> tuple[str, bytes]:
    asked: dict[str, object] = {"messages": [{"role": "user", "content": prompt.text}]}
    body = {
        "model": model,
        **(asked if prompt.chat else {"prompt": prompt.text}),
        "max_tokens": prompt.max_tokens,
        "temperature": 0.3,
        "top_p": 0.9,
        "seed": prompt.seed,
        "stream": True,
    }
    return f"/v1/{'chat/' if prompt.chat else ''}completions", msgspec.json.encode(body)


def _plan(count: int) -> LoadPlan:
    """Return a load of verses to be continued: text the model knows, so that its experts are used as learnt."""
    from fourlane.gateway.load import LoadPlan, PlannedRequest

    verses = resources.files("fourlane.cli").joinpath("demo_text.txt").read_text(encoding="utf-8").splitlines()

    def planned() -> Iterator[PlannedRequest]:
        for index in range(count):
            start = index * _VERSES_A_PROMPT % len(verses)
            chosen = (verses + verses)[start : start + _VERSES_A_PROMPT]
            yield PlannedRequest(prompt="\n".join(chosen), max_tokens=_OUTPUT_TOKENS)

    return LoadPlan(requests=planned(), total=count, description=f"{count} requests")


def process_age_s() -> float:
    """Return the seconds since this process began, by the kernel's account."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22, counted from 1, of proc_pid_stat(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began
