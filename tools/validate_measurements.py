"""Make `docs/validation/fabric-measurements.md`: the network simulator beside published measurements.

    python tools/validate_measurements.py

Writes the page, its picture and its figures as JSON; about two minutes on two processors. The same code gives the same
page. Ends with status 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fabric_validation import measurements
from fabric_validation.page import render

PAGE = Path(__file__).parents[1] / "docs" / "validation" / "fabric-measurements.md"
PARTS = {
    "exchange": measurements.expert_exchange,
    "busiest": measurements.busiest_receiver,
    "networks": measurements.networks,
}
HEAD = """# Network simulator against measurements

Made by `python tools/validate_measurements.py`, on the native core. What is *fitted* fixed a figure of the kernels;
what is *predicted* did not. A claim that does not hold says **miss**. Latency of an idle path beside published figures:
`fourlane fabric latency --published`.
"""


def main() -> int:
    """Simulate everything, write the page, say what missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=PAGE, help="file to write")
    args = parser.parse_args()
    parts = []
    for name, make in PARTS.items():
        begun = time.perf_counter()
        parts.append(make())
        print(f"{name}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    render(args.to, HEAD, parts)
    failed = [claim for part in parts for claim in part.failed]
    for claim in failed:
        print(f"miss: {claim.what}: {claim.ours}; published {claim.theory}; bar {claim.bar}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
