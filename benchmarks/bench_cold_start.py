"""Seconds from the start of `fourlane demo` to its first token, against importing torch alone.

Both in fresh processes, taking turns, medians. The page cache is warm unless --drop-caches (needs root) empties it
before each start.

    python benchmarks/bench_cold_start.py [--repetitions 5] [--drop-caches]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from result_page import write_page

from fourlane.report.tables import number

LIMIT_S = 25.0


def import_torch_s() -> float:
    """Return the wall seconds a process takes that imports torch and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def demo_s(folder: Path, pools: tuple[str, ...]) -> tuple[float, float]:
    """Run the demo; return seconds to its first token and of the whole run."""
    path = folder / "demo.json"
    began = time.perf_counter()
    command = [sys.executable, "-m", "fourlane", "demo", *pools, "--requests", "4", "--json", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(path.read_text())["first_token_s"], time.perf_counter() - began


def drop_caches() -> None:
    """Have the kernel forget cached files."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--prefill", default="2")
    parser.add_argument("--decode", default="2")
    parser.add_argument("--drop-caches", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/cold_start_*.md")
    options = parser.parse_args()
    pools = ("--set", f"prefill.ranks={options.prefill}", "--set", f"decode.ranks={options.decode}")
    torch_s: list[float] = []
    first_s: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        for repetition in range(options.repetitions):
            if options.drop_caches:
                drop_caches()
            torch_s.append(import_torch_s())
            if options.drop_caches:
                drop_caches()
            first, whole = demo_s(Path(temporary), pools)
            first_s.append(first)
            print(f"{repetition + 1}. import torch {torch_s[-1]:.2f} s, first token {first:.2f} s, whole {whole:.1f} s")
    base, first = statistics.median(torch_s), statistics.median(first_s)
    lines = [
        f"import torch alone:        {number(base)} s",
        f"demo to its first token:   {number(first)} s, {first / base:.2f}x",
        f"slowest {number(max(first_s))} s, wanted under {LIMIT_S:g} s: {'yes' if max(first_s) < LIMIT_S else 'NO'}",
    ]
    print(*lines, sep="\n")
    if options.write:
        cache = "page cache dropped before each start" if options.drop_caches else "page cache warm"
        what = f"{options.prefill} prefill + {options.decode} decode ranks, bundled model; {cache};"
        body = [f"{what} medians of {options.repetitions}.", "", *(f"    {line}" for line in lines)]
        print("written:", write_page("cold_start", title="From nothing to the first token", lines=body))


if __name__ == "__main__":
    main()
