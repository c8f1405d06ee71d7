"""CPU share of every process of a service without requests, and right after requests, over 20 s each.

The baseline is the same measurement of a process that only sleeps: it says what the clock's grain adds.

    python benchmarks/bench_idle.py [--seconds 20] [--set prefill.ranks=2 ...]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from live_service import live_service
from result_page import write_page

from fourlane.gateway.load import Arrivals, Client, Lengths, Load, plan_requests, run_load
from fourlane.report.tables import Table, plain_lines

LIMIT = 0.01


def processes_of(root: int) -> dict[int, str]:
    """Return pid and name of a process and all its descendants."""
    parent_of: dict[int, int] = {}
    name_of: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                text = (entry / "stat").read_text(encoding="ascii", errors="replace")
            except OSError:
                continue
            pid = int(entry.name)
            name_of[pid] = text[text.index("(") + 1 : text.rindex(")")]
            parent_of[pid] = int(text[text.rindex(")") + 2 :].split()[1])
    found = {root}
    while more := {pid for pid, parent in parent_of.items() if parent in found} - found:
        found |= more
    return {pid: name_of[pid] for pid in sorted(found)}


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used, all its threads together, to the nanosecond where the kernel says."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    return total


def shares(pids: dict[int, str], seconds: float) -> dict[int, float]:
    """Return each process's share of one core over the next `seconds`."""
    before = {pid: cpu_s(pid) for pid in pids}
    began = time.perf_counter()
    time.sleep(seconds)
    spent = time.perf_counter() - began
    return {pid: (cpu_s(pid) - before[pid]) / spent for pid in pids}


async def some_requests(base_url: str) -> None:
    """Send a few requests, so that every rank has worked."""
    client = Client(base_url)
    try:
        model = (await client.require())[0]
        lengths = Lengths(kind="fixed", low=32, high=32)
        requests = plan_requests(
            Arrivals(concurrency=8),
            requests=16,
            input_lengths=lengths,
            output_lengths=lengths,
            vocabulary=range(300, 4000),
            seed=0,
        )
        await run_load(client, Load(model=model, concurrency=8), requests)
    finally:
        client.close()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/idle_*.md")
    options = parser.parse_args()
    overrides = options.overrides or ["prefill.ranks=2", "decode.ranks=2"]
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with live_service(overrides) as live:
            pids = processes_of(live.pid) | {live.pid: "gateway", sleeper.pid: "asleep (baseline)"}
            fresh = shares(pids, options.seconds)
            asyncio.run(some_requests(live.base_url))
            time.sleep(2)
            after = shares(pids, options.seconds)
    finally:
        sleeper.kill()
        sleeper.wait(10)
    rows = tuple((f"{name}", f"{fresh[pid] * 100:.3f} %", f"{after[pid] * 100:.3f} %") for pid, name in pids.items())
    table = Table(title="", columns=("share of a core, idle", "before requests", "after requests"), rows=rows)
    lines = plain_lines(table)
    print(*lines, sep="\n")
    worst = max(*fresh.values(), *after.values())
    print(f"largest {worst * 100:.3f} %, wanted under {LIMIT * 100:.0f} %: {'yes' if worst < LIMIT else 'NO'}")
    if options.write:
        body = [f"{' '.join(overrides)}; {options.seconds:g} s each. {os.cpu_count()} cores.", ""]
        print("written:", write_page("idle", title="An idle service", lines=body + [f"    {line}" for line in lines]))


if __name__ == "__main__":
    main()
