"""How long it takes to simulate a service request by request: a recorded trace on 16 prefill and 8 decode units.

Seconds of one core for growing parts of the trace (wall seconds are more where others compute), beside the same
simulation that takes every decode step on its own. And what KV bandwidth does: latencies over the rate of each NIC,
against what the load needs on the mean.

    python benchmarks/bench_twin_serving.py --trace conversation_trace.jsonl [--repetitions 3] [--knee] [--write]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from result_page import write_page

from fourlane.report.tables import number
from fourlane.spec.load import load_twin
from fourlane.twin.assembly import assemble
from fourlane.twin.serving import decode_unit
from fourlane.twin.serving.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.serving.results import ServingResults

BAR_S = 10.0
TWIN = "deepseek-h800"
SHARES = (1 / 4, 1 / 2, 1)
STEPPED_REQUESTS = 1500
KNEE_RATE, KNEE_INPUT = 60.0, 4096
KNEE = (10.0, 3.0, 1.5, 1.2, 1.0, 0.7, 0.5, 0.35, 0.25)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, help="Mooncake's conversation trace")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--knee", action="store_true", help="sweep KV bandwidth, too")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/twin_serving_*.md")
    options = parser.parse_args()
    lines = times(options.trace, options.repetitions)
    if options.knee:
        lines += ["", *knee()]
    print("\n".join(lines))
    if options.write:
        title = "A service simulated request by request: how long it takes, and where KV bandwidth has its knee"
        print("written:", write_page("twin_serving", title=title, lines=lines))


def times(trace: Path, repetitions: int) -> list[str]:
    """Time growing parts of a trace, and a part of it without leaps; return a table's lines."""
    whole = of_trace(trace)
    requests = len(simulate(whole).requests)  # and modules are loaded, memory is there
    lines = [
        f"{TWIN}: 16 prefill units (EP32) and 8 decode units (EP144), {trace.name}, medians of {repetitions}.",
        "",
        "| requests | seconds of one core | wall seconds | ms a request | steps simulated |",
        "|---:|---:|---:|---:|---:|",
    ]
    for share in SHARES:
        assembly = of_trace(trace, round(requests * share))
        core_s, wall_s, results = timed(lambda assembly=assembly: simulate(assembly), repetitions)
        steps = results.prefill.steps + results.decode.steps
        cells = (len(results.requests), number(core_s), number(wall_s), number(core_s / len(results.requests) * 1e3))
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} | {steps:,} |")
    met = "met" if core_s <= BAR_S else "missed"
    lines += ["", f"Bar: all {requests:,} requests in {BAR_S:g} s of one core: **{met}**, {number(core_s)} s.", ""]
    return [*lines, *leaps(of_trace(trace, STEPPED_REQUESTS), repetitions)]


def leaps(assembly: Assembly, repetitions: int) -> list[str]:
    """Compare leaps with single steps; return lines."""
    leaping, _, leapt = timed(lambda: simulate(assembly), repetitions)
    kept = decode_unit.SHORT_STEPS, decode_unit.GROWTH
    decode_unit.SHORT_STEPS, decode_unit.GROWTH = 1, 0.0
    try:
        stepping, _, stepped = timed(lambda: simulate(assembly), repetitions)
    finally:
        decode_unit.SHORT_STEPS, decode_unit.GROWTH = kept
    differ = abs(leapt.requests.ended / stepped.requests.ended - 1).max()
    text = (
        f"The first {len(leapt.requests):,} requests, every decode step on its own: {number(stepping)} s; leaping: "
        f"{number(leaping)} s, {number(stepping / leaping)} times as fast. Answers end the same to {differ:.1e}."
    )
    return [text]


def knee() -> list[str]:
    """Sweep the rate of NICs for KV; return a table's lines."""
    overrides = [
        "workload.requests=12000", f"workload.rate={KNEE_RATE}", f'workload.input_len="{KNEE_INPUT}"',
        'workload.output_len="64"', "prefill.units=2", "decode.units=1",
    ]  # fmt: skip
    assembly = assemble(load_twin(TWIN, overrides=overrides))
    needed = KNEE_RATE * KNEE_INPUT * assembly.kv_token_bytes / assembly.prefill.ranks
    what = (
        f"KV bandwidth: {KNEE_RATE:g} prompts of {KNEE_INPUT:,} tokens a second for 200 s on 2 prefill units and 1 "
        f"decode unit; on the mean a prefill rank sends {needed / 1e9:.2f} GB/s."
    )
    lines = [
        what,
        "",
        "| NIC, times what is needed | TTFT mean | TTFT p99 | TPOT mean | KV exposed, mean | answered |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for times_needed in KNEE:
        kv = replace(assembly.kv, out_rate=needed * times_needed, in_rate=needed * times_needed)  # type: ignore[type-var]
        results = simulate(replace(assembly, kv=kv))
        ttft, tpot, exposed = results.ttft, results.tpot, results.kv.exposed
        lines.append(
            f"| {times_needed:g} | {number(ttft.mean)} s | {number(ttft.p99)} s | {number(tpot.mean * 1e3)} ms "
            f"| {number(exposed.mean)} s | {int(results.answered.sum()):,} |"
        )
    return lines


def of_trace(trace: Path, requests: int | None = None) -> Assembly:
    """Return the service under a trace's first requests."""
    twin = load_twin(TWIN)
    workload = msgspec.structs.replace(twin.workload, trace=str(trace), rate=None, requests=requests)
    return assemble(msgspec.structs.replace(twin, workload=workload))


def timed(run: Callable[[], ServingResults], repetitions: int) -> tuple[float, float, ServingResults]:
    """Return median processor and wall seconds, and the last results."""
    runs: list[tuple[float, float, ServingResults]] = []
    for _ in range(repetitions):
        began, core_began = time.perf_counter(), time.process_time()
        results = run()
        runs.append((time.process_time() - core_began, time.perf_counter() - began, results))
    return statistics.median(each[0] for each in runs), statistics.median(each[1] for each in runs), runs[-1][2]


if __name__ == "__main__":
    main()
