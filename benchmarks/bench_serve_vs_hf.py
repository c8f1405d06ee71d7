"""Output tokens a second of the service against Hugging Face `generate`, on the same cores, in one run.

Workload: prompts of 128 random tokens, 64 tokens out, greedy, end-of-sequence ignored, on a random Qwen3-MoE of
8 layers, hidden 256, 8/2 heads of 32, 32 experts top-4 of inner size 128, vocabulary 4096. The baseline runs batches
as large as the service has requests under way; it uses the fastest of its expert implementations and of 1 and 2
threads, found in a first round, with idle threads sleeping (OMP_WAIT_POLICY=PASSIVE: on two shared cores spinning
costs it more than half). Baseline and deployments take turns; medians over the repetitions.

    python benchmarks/bench_serve_vs_hf.py [--repetitions 3] [--json FILE] [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from live_service import live_service
from result_page import write_page

from fourlane.gateway.load import Arrivals, Client, Lengths, Load, plan_requests, run_load, summarize
from fourlane.report.tables import Table, milliseconds, number, plain_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.gateway.load import Summary

ROOT = Path(__file__).resolve().parents[1]
INPUT, OUTPUT = 128, 64
CONCURRENCY = (16, 1, 64)
WAVES = {1: 4, 16: 3, 64: 2}
SETUPS = {
    "1 prefill + 1 decode": ("prefill.ranks=1", "decode.ranks=1"),
    "2 prefill + 2 decode": ("prefill.ranks=2", "decode.ranks=2"),
    "unified, 1 rank": ("unified.ranks=1",),
    "unified, 2 ranks": ("unified.ranks=2",),
}
BASELINE = "Hugging Face generate"
SCREENING = {"batch": 16, "input": 32, "output": 8}
HOPELESS = 3.0


class Baseline:
    """The process that runs `generate`."""

    def __init__(self, pipe_in: IO[str], pipe_out: IO[str]) -> None:
        self._in = pipe_in
        self._out = pipe_out
        self.versions = json.loads(pipe_out.readline())
        self.best: dict[str, object] = {}

    def ask(self, **asked: object) -> float:
        """Return the seconds one measurement took."""
        self._in.write(json.dumps(asked) + "\n")
        self._in.flush()
        return json.loads(self._out.readline())["seconds"]

    def find_best(self) -> dict[str, float]:
        """Time every way on a short batch, keep the fastest; return seconds by way."""
        seconds: dict[str, float] = {}
        for experts in ("grouped_mm", "eager", "batched_mm"):
            for threads in (1, 2):
                way: dict[str, object] = {"experts": experts, "threads": threads}
                taken = self.ask(**way, **SCREENING, seed=1)
                if taken < HOPELESS * min(seconds.values(), default=taken):
                    taken = min(taken, self.ask(**way, **SCREENING, seed=2))
                if taken < min(seconds.values(), default=float("inf")):
                    self.best = way
                seconds[f"{experts}, {threads} thread{'s' if threads > 1 else ''}"] = taken
                if taken > HOPELESS * min(seconds.values()):
                    break
        return seconds

    def tokens_per_s(self, concurrency: int, *, seed: int) -> float:
        """Return output tokens a second over as many batches as the service has waves of requests."""
        waves = WAVES[concurrency]
        seconds = sum(
            self.ask(**self.best, batch=concurrency, input=INPUT, output=OUTPUT, seed=seed + wave)
            for wave in range(waves)
        )
        return waves * concurrency * OUTPUT / seconds


@contextmanager
def baseline(folder: Path) -> Iterator[Baseline]:
    """Run the baseline for the time of the block."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "hf_generate.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Baseline(process.stdin, process.stdout)
    finally:
        process.kill()
        process.wait(30)


async def measure(base_url: str, *, seed: int) -> dict[int, Summary]:
    """Return a summary for each concurrency."""
    client = Client(base_url)
    found = {}
    try:
        model = (await client.require())[0]
        await _send(client, model, 8, 16, seed=seed + 500)
        for concurrency in CONCURRENCY:
            found[concurrency] = await _send(client, model, concurrency, concurrency * WAVES[concurrency], seed=seed)
            seed += 1000
    finally:
        client.close()
    return found


async def _send(client: Client, model: str, concurrency: int, count: int, *, seed: int) -> Summary:
    requests = plan_requests(
        Arrivals(concurrency=concurrency),
        requests=count,
        input_lengths=Lengths(kind="fixed", low=INPUT, high=INPUT),
        output_lengths=Lengths(kind="fixed", low=OUTPUT, high=OUTPUT),
        vocabulary=range(300, 4000),
        seed=seed,
    )
    summary = summarize(await run_load(client, Load(model=model, concurrency=concurrency), requests))
    if summary.failed:
        raise SystemExit(f"{summary.failed} of {summary.requests} requests failed: {summary.errors}")
    return summary


def results_table(tokens: dict[str, dict[int, list[float]]], latencies: dict[str, list[Summary]]) -> Table:
    """Return medians, and the median of the ratios to the baseline of the same repetition and concurrency."""
    rows = []
    for name, by_concurrency in tokens.items():
        cells = [name]
        for concurrency in CONCURRENCY:
            values, base = by_concurrency[concurrency], tokens[BASELINE][concurrency]
            ratio = statistics.median(mine / theirs for mine, theirs in zip(values, base, strict=True))
            cells.append(f"{statistics.median(values):,.0f}" + (f" ({ratio:.2f}x)" if name != BASELINE else ""))
        summaries = latencies.get(name, [])
        for pick in ("ttft_s", "tpot_s"):
            medians = [getattr(summary, pick).p50 for summary in summaries]
            cells.append(milliseconds(statistics.median(medians)) if medians else "-")
        rows.append(tuple(cells))
    columns = ("output tokens a second", *(f"{c} concurrent" for c in CONCURRENCY), "TTFT p50 (16)", "TPOT p50 (16)")
    return Table(title="", columns=columns, rows=tuple(rows))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, help="made in a temporary folder where not given")
    parser.add_argument("--only", choices=[*SETUPS], action="append", help="measure only these deployments")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/serve_vs_hf_*.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.checkpoint or Path(temporary) / "checkpoint"
        if options.checkpoint is None:
            subprocess.run([sys.executable, str(ROOT / "tools" / "make_random_checkpoint.py"), str(folder)], check=True)
        run(folder, options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Measure on a checkpoint, print and write what was found."""
    setups = {name: SETUPS[name] for name in options.only or SETUPS}
    tokens: dict[str, dict[int, list[float]]] = {name: {c: [] for c in CONCURRENCY} for name in (BASELINE, *setups)}
    latencies: dict[str, list[Summary]] = {name: [] for name in setups}
    with baseline(folder) as hf:
        screened = hf.find_best()
        print("baseline, seconds for 16 x (32 in, 8 out):", flush=True)
        for way, seconds in screened.items():
            print(f"  {way}: {number(seconds)}")
        for repetition in range(options.repetitions):
            for concurrency in CONCURRENCY:
                tokens[BASELINE][concurrency].append(hf.tokens_per_s(concurrency, seed=100 * repetition))
            _report(repetition, BASELINE, tokens[BASELINE])
            for name, overrides in setups.items():
                with live_service([f"model.path={folder}", *overrides]) as live:
                    found = asyncio.run(measure(live.base_url, seed=10_000 * repetition))
                for concurrency, summary in found.items():
                    tokens[name][concurrency].append(summary.output_tokens_per_s)
                latencies[name].append(found[16])
                _report(repetition, name, tokens[name])
    way = f"{hf.best['experts']}, {hf.best['threads']} thread(s)"
    lines = plain_lines(results_table(tokens, latencies))
    print("", *lines, f"baseline: best of its ways, {way}; medians of {options.repetitions}", sep="\n")
    if options.json:
        data = {"baseline": hf.best, "screened_s": screened, "versions": hf.versions, "tokens_per_s": tokens}
        options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if options.write:
        body = [
            "128 tokens in, 64 out, greedy, random Qwen3-MoE of 28.6 M parameters (8 layers, 32 experts top-4).",
            f"Baseline: `generate` in float32 on batches of the same size, {way}, its fastest way.",
            f"Medians of {options.repetitions} repetitions, taking turns; in brackets the median ratio to it.",
            "",
            *(f"    {line}" for line in lines),
        ]
        print("written:", write_page("serve_vs_hf", title="The service against Hugging Face generate", lines=body))


def _report(repetition: int, name: str, tokens: dict[int, list[float]]) -> None:
    latest = ", ".join(f"{concurrency}: {values[-1]:,.0f}" for concurrency, values in tokens.items())
    print(f"{repetition + 1}. {name}: {latest} tokens/s", flush=True)


if __name__ == "__main__":
    main()
