"""Every KV transport of this machine beside plain sockets and a plain copy, as a page of results.

    python benchmarks/bench_kv_transfer.py [--repeats 15] [--write]

The figures are those of `fourlane bench kv` (see `fourlane.engine.kv_transfer.measure`), with what
`send` costs the computing thread. Medians; warm connections.
"""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING

from result_page import write_page

from fourlane.engine.kv_transfer.installed import TRANSPORTS, absent
from fourlane.engine.kv_transfer.measure import Sending, time_memcpy
from fourlane.spec.deployment import KvTransfer

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.measure import Series

SIZES = (1 << 16, 1 << 20, 16 << 20, 64 << 20)


def measure(repeats: int) -> tuple[list[Series], dict[str, tuple[float, float]]]:
    """Return every series, and the CPU that both ends of each transport use at rest."""
    found = [time_memcpy(size, repeats) for size in SIZES]
    idle: dict[str, tuple[float, float]] = {}
    with Sending(KvTransfer(), largest=max(SIZES)) as sending:
        found += [sending.time_line(size, repeats) for size in SIZES]
        for transport in TRANSPORTS:
            if transport in absent():
                continue
            with sending.open(transport) as time_kv:
                found += [time_kv(size, repeats) for size in SIZES]
                idle[transport] = sending.idle_cpu()
    return found, idle


def lines_of(found: list[Series], idle: dict[str, tuple[float, float]]) -> list[str]:
    """Return the table in Markdown."""
    line = {series.size: statistics.median(series.seconds) for series in found if series.way == "line"}
    lines = [
        "| way | size | GB/s | x line | a `send`, computing thread | CPU at rest, receiver + sender |",
        "|---|---|---|---|---|---|",
    ]
    for series in found:
        seconds = statistics.median(series.seconds)
        rate, ratio = series.size / seconds / 1e9, line[series.size] / seconds
        send = f"{statistics.median(series.send_s) * 1e6:.0f} us" if series.send_s else ""
        rest = " + ".join(f"{share:.2%}" for share in idle.get(series.way, ()))
        lines.append(f"| {series.way} | {series.size >> 10} KiB | {rate:.3g} | {ratio:.2f} | {send} | {rest} |")
    return lines


def main() -> None:
    """Measure, print, and write a page if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write a page of results")
    options = parser.parse_args()
    lines = lines_of(*measure(options.repeats))
    print("\n".join(lines))
    if options.write:
        title = "KV transports between two processes of one machine"
        print(write_page("kv_transfer", title=title, lines=lines))


if __name__ == "__main__":
    main()
