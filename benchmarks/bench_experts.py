"""Experts in balance: our placement, repair and splitting beside EPLB's algorithm, in one run, with every bar.

Each part prints its tables and bars. With --write a part is recorded in benchmarks/results, in place of its last
record; --page makes the page of results and docs/validation/experts.md, with its pictures, from what is recorded.
Parts are independent of each other and each takes less than two minutes.

    python benchmarks/bench_experts.py [--part balance ...] [--quick] [--write] [--page]
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

import expert_page
import expert_placement_bench
import expert_repair_bench
import expert_split_bench
from recorded_parts import plain, record, results_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded_parts import Part

PARTS: dict[str, Callable[[int], Part]] = {
    **expert_placement_bench.PARTS,
    **expert_repair_bench.PARTS,
    **expert_split_bench.PARTS,
}
QUICK_LAYERS = 4
QUICK = ("balance", "repair", "split-32", "split-times")


def main() -> int:
    """Measure parts, print them, record them; return 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only these")
    parser.add_argument("--quick", action="store_true", help=f"a few parts on {QUICK_LAYERS} layers")
    parser.add_argument("--write", action="store_true", help="record the parts")
    parser.add_argument("--page", action="store_true", help="make the pages from the records; measures only --part")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick: its figures are not worth recording")
    names = options.part or (QUICK if options.quick else () if options.page else tuple(PARTS))
    missed = 0
    for name in names:
        began = time.perf_counter()
        part = PARTS[name](QUICK_LAYERS if options.quick else 58)
        print("\n".join(plain(part)))
        print(f"[{name}: {time.perf_counter() - began:.0f} s]\n", flush=True)
        missed += sum(not bar.met for bar in part.bars)
        if options.write:
            record(name, part, results_file())
    if options.page:
        for path in expert_page.write(results_file(), order=list(PARTS)):
            print("written:", path)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
