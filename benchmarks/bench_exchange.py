"""Expert exchange and dual stream, every bar: exchanges beside gloo, memcpy and the line; whole passes; the engine.

Each part prints its tables and bars. With --write a part is recorded in benchmarks/results, in place of its last
record; --page makes the page of results and docs/validation/exchange.md, with its pictures, from what is recorded.
Parts are independent of each other and each takes less than two minutes.

    python benchmarks/bench_exchange.py [--part here ...] [--write] [--page]
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

import exchange_page
import exchange_parts
import overlap_parts
from recorded_parts import plain, record, results_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorded_parts import Part

PARTS: dict[str, Callable[[], Part]] = {**exchange_parts.PARTS, **overlap_parts.PARTS}


def main() -> int:
    """Measure parts, print them, record them; return 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only these")
    parser.add_argument("--write", action="store_true", help="record the parts")
    parser.add_argument("--page", action="store_true", help="make the pages from the records; measures only --part")
    options = parser.parse_args()
    missed = 0
    for name in options.part or (() if options.page else tuple(PARTS)):
        began = time.perf_counter()
        part = PARTS[name]()
        print("\n".join(plain(part)))
        print(f"[{name}: {time.perf_counter() - began:.0f} s]\n", flush=True)
        missed += sum(not bar.met for bar in part.bars)
        if options.write:
            record(name, part, results_file("exchange"), script="bench_exchange.py")
    if options.page:
        for path in exchange_page.write(results_file("exchange"), order=list(PARTS)):
            print("written:", path)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
