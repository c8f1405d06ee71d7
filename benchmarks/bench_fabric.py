"""The packet simulator: rates, instructions, memory, linearity, a cluster of 10,240 GPUs, completion times.

Rates are data packet-hops (a data packet leaving one port; its acknowledgement's hops are not counted, their cost
is) per CPU-second of the run itself, each in a process of its own; medians. Peers' figures are constants, measured
elsewhere (`published_fabric.py`); what is printed beside ours is the ratio to the fastest of them.

    python benchmarks/bench_fabric.py [--repeats 3] [--seeds 10] [--part rates ...] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from published_fabric import COMPLETION_US, INSTRUCTIONS, RATES
from result_page import write_page

from fourlane.report.tables import Table, byte_text, plain_lines
from fourlane.twin.fabric import (
    ExpertRouting,
    LowLatencyKernels,
    Scenario,
    all_to_all,
    expert_flows,
    rail_clos,
    run_many,
)
from fourlane.twin.fabric.expert_routing import count_messages
from fourlane.twin.fabric.named import NAMED, named
from fourlane.twin.fabric.simulator import Simulator
from fourlane.twin.fabric.workloads import permutation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

RATED = ("P1024_2MB", "A128_64K", "P128_2MB", "A64_64K", "I64_1M", "I64_256K", "I64_64K", "A32s_64K", "A16s_64K")
EXACT = {"ONE_4K": 4.1379, "ONE_1M": 25.3539, "I64_64K": 89.2515, "I64_256K": 344.842, "I64_1M": 1367.2}
WANTED_RATE, WANTED_INSTRUCTIONS = 3e6, 600
WANTED_BYTES_A_FLOW, WANTED_PEAK = 300, 1 << 30
WANTED_DISPATCH_S, WANTED_DISPATCH_PEAK = 60.0, 4 << 30


# What is run, each in a process of its own -----------------------------------------------------------


def one_named(name: str, settings: dict[str, Any]) -> Scenario:
    """Return a named scenario."""
    return named(name, **settings)


def sized_permutation(size: str, settings: dict[str, Any]) -> Scenario:
    """Return the permutation over 1,024 hosts with another size."""
    net = NAMED["P1024_2MB"].topology()
    return Scenario(net, permutation(net, size, seed=1), **settings)


def thousand_ranks(size: str, settings: dict[str, Any]) -> Scenario:
    """Return an all-to-all of 1,024 ranks: 1,047,552 flows."""
    net = NAMED["P1024_2MB"].topology()
    return Scenario(net, all_to_all(net, size), **settings)


def decode_dispatch(tokens: str, settings: dict[str, Any]) -> Scenario:
    """Return one decode dispatch of 10,240 GPUs: 32 groups of 320 ranks, an expert each, top 8, 7,408 bytes each."""
    net = rail_clos("h800-10k", nvlink=False)
    draw = np.random.default_rng(1)
    routing = ExpertRouting(tokens=int(tokens), experts=320, top_k=8)
    counts = np.stack([count_messages(routing.draw(draw, 320), ranks=320) for _ in range(32)])
    return Scenario(net, expert_flows(net, LowLatencyKernels().dispatch(counts)), **settings)


CASES: dict[str, Callable[[str, dict[str, Any]], Scenario]] = {
    "named": one_named,
    "permutation": sized_permutation,
    "thousand": thousand_ranks,
    "dispatch": decode_dispatch,
}


def run_here(case: str, argument: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Simulate one case in this process and return what it took."""
    imported = peak_bytes()
    again = settings.pop("again", 0)
    began = time.process_time()
    compiled = CASES[case](argument, settings).compile()
    built = time.process_time()
    wall = time.perf_counter()
    results = Simulator(compiled).run()
    cpu_s, wall_s = time.process_time() - built, time.perf_counter() - wall
    for _ in range(again):
        Simulator(compiled).run()
    return {
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "compile_s": built - began,
        "hops": results.data_hops,
        "events": results.events,
        "flows": results.flows,
        "packets": int(results.raw["data_packets_sent"]),
        "makespan_us": results.makespan_us,
        "p50_us": results.completion_percentile(None, 50),
        "pauses": results.total("pauses"),
        "drops": results.total("drops"),
        "peak": peak_bytes(),
        "imported": imported,
    }


def peak_bytes() -> int:
    """Return the most memory this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_apart(case: str, argument: str, settings: dict[str, Any], *, under: Iterable[str] = ()) -> dict[str, Any]:
    """Simulate one case in a process of its own."""
    words = [*under, sys.executable, __file__, "--one", case, argument, json.dumps(settings)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=900, env=environment)
    return json.loads(run.stdout.splitlines()[-1])


# Parts -------------------------------------------------------------------------------------------------


def rates(options: argparse.Namespace) -> list[str]:
    """Measure data packet-hops per CPU-second with PFC and per-packet adaptive routing."""
    rows = []
    for name in RATED:
        runs = [run_apart("named", name, {"routing": "adaptive"}) for _ in range(options.repeats)]
        rate = statistics.median(run["hops"] / run["cpu_s"] for run in runs)
        peers = RATES.get(name) or (RATES["small"] if runs[0]["hops"] <= 100_000 else None)
        best = max(peers, key=lambda peer: peers[peer]) if peers else ""
        rows.append(
            (
                name,
                f"{runs[0]['hops']:,}",
                f"{statistics.median(run['cpu_s'] for run in runs):.3f}",
                f"{rate / 1e6:.2f}",
                f"{runs[0]['events'] / runs[0]['hops']:.2f}",
                byte_text(max(run["peak"] for run in runs)),
                f"{rate / peers[best]:.1f} x {best} ({peers[best] / 1e6:.2f})" if peers else "-",
                "-" if name not in ("P1024_2MB", "A128_64K") else ("yes" if rate >= WANTED_RATE else "NO"),
            )
        )
    columns = ("PFC, adaptive per packet", "hops", "CPU s", "M hops / CPU s", "events / hop", "peak memory", "ratio")
    return table((*columns, f"{WANTED_RATE / 1e6:.0f} M"), rows)


def instructions(_: argparse.Namespace) -> list[str]:
    """Count instructions by valgrind: a process that simulates twice less one that simulates once."""
    rows = []
    for name in ("A64_64K", "P128_2MB"):
        try:
            once, twice = (_counted(name, again) for again in (0, 1))
        except FileNotFoundError:
            return ["valgrind is not installed: instructions were not counted", ""]
        each = (twice - once) / NAMED[name].hops
        peers = ", ".join(f"{low / each:.0f} x fewer than {peer}" for peer, (low, _) in INSTRUCTIONS.items())
        met = "yes" if each <= WANTED_INSTRUCTIONS else "NO"
        rows.append((name, f"{NAMED[name].hops:,}", f"{each:,.0f}", peers, met))
    return table(("valgrind", "hops", "instructions / hop", "ratio", f"{WANTED_INSTRUCTIONS}"), rows)


def _counted(name: str, again: int) -> int:
    """Return the instructions of a whole process that simulates a scenario 1 + `again` times."""
    with TemporaryDirectory() as folder:
        under = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        run_apart("named", name, {"routing": "adaptive", "again": again}, under=under)
        text = Path(folder, "out").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
    if found is None:
        raise RuntimeError("callgrind wrote no total")
    return int(found[1])


def linearity(options: argparse.Namespace) -> list[str]:
    """Measure the cost of a hop at four sizes of the same workload."""
    rows: list[tuple[str, ...]] = []
    first = 0.0
    for size in ("250kB", "500kB", "1MB", "2MB"):
        runs = [run_apart("permutation", size, {"routing": "adaptive"}) for _ in range(options.repeats)]
        cost = statistics.median(run["cpu_s"] / run["hops"] for run in runs) * 1e9
        first = first or cost
        rows.append((size, f"{runs[0]['packets']:,}", f"{runs[0]['hops']:,}", f"{cost:.1f}", f"{cost / first:.2f}"))
    return table(("permutation, 1,024 hosts", "packets", "hops", "CPU ns / hop", "of the first"), rows)


def memory(_: argparse.Namespace) -> list[str]:
    """Measure the memory of an all-to-all of 1,024 ranks."""
    found = run_apart("thousand", "4KiB", {"routing": "spray"})
    # What a flow costs: the peak, less that of the same network with hardly any flow.
    alone = run_apart("permutation", "4KiB", {"routing": "spray"})
    each = (found["peak"] - alone["peak"]) / (found["flows"] - alone["flows"])
    row = (
        f"{found['flows']:,}",
        byte_text(found["peak"]),
        byte_text(alone["peak"]),
        f"{each:,.0f}",
        f"{found['cpu_s']:.1f}",
        f"{found['makespan_us']:,.1f}",
        "yes" if each <= WANTED_BYTES_A_FLOW and found["peak"] <= WANTED_PEAK else "NO",
    )
    columns = ("flows", "peak of the process", "with 1,024 flows", "bytes a flow", "CPU s", "done us")
    return table((*columns, f"{WANTED_BYTES_A_FLOW} bytes, {byte_text(WANTED_PEAK)}"), [row])


def dispatch(_: argparse.Namespace) -> list[str]:
    """Simulate one decode dispatch of 10,240 GPUs, packet by packet."""
    found = run_apart("dispatch", "128", {"routing": "adaptive"})
    whole = found["compile_s"] + found["wall_s"]
    row = (
        f"{found['flows']:,}",
        f"{found['packets']:,}",
        f"{found['hops']:,}",
        f"{found['compile_s']:.1f} + {found['wall_s']:.1f}",
        f"{found['hops'] / found['cpu_s'] / 1e6:.2f}",
        byte_text(found["peak"]),
        f"{found['makespan_us']:,.1f}",
        "yes" if whole <= WANTED_DISPATCH_S and found["peak"] <= WANTED_DISPATCH_PEAK else "NO",
    )
    columns = ("flows", "packets", "hops", "building + running s", "M hops / CPU s", "peak memory", "done us")
    return table((*columns, f"{WANTED_DISPATCH_S:.0f} s, {byte_text(WANTED_DISPATCH_PEAK)}"), [row])


def completion(options: argparse.Namespace) -> list[str]:
    """Hold completion times against closed forms and against public simulators."""
    rows = []
    for name, exact in EXACT.items():
        found = named(name).run().makespan_us
        digits = len(f"{exact}".partition(".")[2])
        rows.append((name, f"{found:.{digits}f}", f"{exact}", "yes" if round(found, digits) == exact else "NO"))
    lines = table(("lossless", "us", "closed form", "equal"), rows)
    rows = [row for name in COMPLETION_US for row in _against_public(name, options.seeds)]
    columns = ("last flow done, us", "least", "median", "most", "p50 of flows", "seeds", "public", "ratio to public")
    return lines + table(columns, rows)


def _against_public(name: str, seeds: int) -> list[tuple[str, ...]]:
    public = COMPLETION_US[name]
    rows: list[tuple[str, ...]] = [(f"{name}: bound", *[f"{NAMED[name].bound_us:.1f}"] * 3, "", "", "closed form", "")]
    for routing in ("ecmp", "spray", "spray-random", "adaptive"):
        count = max(1, seeds // 3) if name.startswith("P1024") else seeds
        found = run_many([named(name, routing=routing, seed=seed) for seed in range(1, count + 1)])
        done = [each.makespan_us for each in found]
        middle = statistics.median(done)
        if routing == "ecmp" and public.ecmp:
            low, high = public.ecmp
            beside, ratio = f"{low} to {high}: {public.ecmp_is}", f"{'in' if low <= middle <= high else 'NOT in'} range"
        else:
            beside, ratio = f"{public.best}: {public.best_is}", f"{middle / public.best:.3f}"
        p50 = statistics.median(each.completion_percentile(None, 50) for each in found)
        cells = (f"{min(done):.1f}", f"{middle:.1f}", f"{max(done):.1f}", f"{p50:.1f}", f"{count}", beside, ratio)
        rows.append((f"{name}: {routing}", *cells))
    return rows


PARTS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "rates": rates,
    "instructions": instructions,
    "linearity": linearity,
    "memory": memory,
    "dispatch": dispatch,
    "completion": completion,
}


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a table as lines, a blank one at the end."""
    left = frozenset({"ratio", "public"})
    return [*plain_lines(Table(title="", columns=columns, rows=tuple(rows), left=left)), ""]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; repeatable")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/fabric_*.md")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "ARGUMENT", "SETTINGS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, argument, settings = options.one
        print(json.dumps(run_here(case, argument, json.loads(settings))))
        return
    lines: list[str] = []
    for part in options.part or PARTS:
        found = PARTS[part](options)
        print(*found, sep="\n", flush=True)
        lines += found
    if options.write:
        note = (
            "Peers' figures are not of this run: they were measured on the same definitions, on one core of a like "
            "machine (`benchmarks/published_fabric.py`). A hop is a data packet leaving one port; the cost of its "
            "acknowledgement is included, its hops are not."
        )
        body = [note, "", *(f"    {line}".rstrip() for line in lines)]
        print("written:", write_page("fabric", title="The packet simulator", lines=body))


if __name__ == "__main__":
    main()
