"""Make the pages of `docs/validation` that show the network simulator right, by running every experiment on them.

    python tools/validate_fabric.py theory

The same code gives the same page: all draws have seeds, and no figure is a time of this machine's clock. Ends with
status 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fabric_validation import buffers, collisions, congestion, routing, sharing, waiting
from fabric_validation.page import render

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabric_validation.page import Part

PAGES = Path(__file__).parents[1] / "docs" / "validation"
THEORY: dict[str, Callable[[], Part]] = {
    "closed": routing.closed_forms,
    "waiting": lambda: waiting.one_link(packets=1_000_000, runs={0.5: 1, 0.8: 1, 0.9: 12, 0.95: 24}),
    "spray": lambda: waiting.sprayed(packets=1_000_000),
    "collisions": lambda: collisions.balls_in_bins(trials=3_000),
    "polarised": collisions.polarised,
    "max-min": lambda: sharing.max_min(cases=6, duration_us=10_000),
    "weighted": lambda: sharing.weighted(duration_us=4_000),
    "lossless": buffers.lossless,
    "thresholds": buffers.dynamic_threshold,
    "dcqcn": congestion.dcqcn_fixed_point,
    "incast": congestion.dcqcn_incast,
    "loads": lambda: routing.full_load(seeds={"A64_64K": 20, "A128_64K": 8, "P128_2MB": 20, "P1024_2MB": 8}),
    "adaptive": routing.adaptive_rate,
    "herding": routing.herding,
    "linear": routing.linear_cost,
}
THEORY_HEAD = """# Network simulator against theory

Made by `python tools/validate_fabric.py theory`. Every figure below comes from that run on the native core (which
equals `fourlane.twin.fabric.reference` bit for bit); theory is `fourlane.twin.fabric.theory` and `dcqcn_theory`, with
sources there. A claim that does not hold says **miss**.
"""


def main() -> int:
    """Run the experiments of a page, or some of them, and write the page if all were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=["theory"])
    parser.add_argument("parts", nargs="*", help=f"only these, printed and not written: {', '.join(THEORY)}")
    parser.add_argument("--to", type=Path, default=PAGES, help="folder to write to")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in THEORY]
    if unknown:
        parser.error(f"unknown parts {', '.join(unknown)}; known: {', '.join(THEORY)}")
    parts = []
    for name in args.parts or THEORY:
        begun = time.perf_counter()
        parts.append(THEORY[name]())
        print(f"{name}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    if args.parts:
        show(parts)
    else:
        args.to.mkdir(parents=True, exist_ok=True)
        render(args.to / "fabric-theory.md", THEORY_HEAD, parts)
    failed = [claim for part in parts for claim in part.failed]
    for claim in failed:
        print(f"miss: {claim.what}: {claim.ours}; theory {claim.theory}; bar {claim.bar}", file=sys.stderr)
    return 1 if failed else 0


def show(parts: list[Part]) -> None:
    """Print claims and tables."""
    for part in parts:
        print(f"\n{part.title}")
        for claim in part.claims:
            print(f"  {'pass' if claim.passed else 'MISS'}  {claim.what}: {claim.ours}  [{claim.theory}; {claim.bar}]")
        for table in part.tables:
            print(
                f"  {table.caption}", " | ".join(table.columns), *(" | ".join(row) for row in table.rows), sep="\n    "
            )


if __name__ == "__main__":
    sys.exit(main())
