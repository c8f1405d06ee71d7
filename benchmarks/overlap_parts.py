"""The parts of `bench_exchange.py` about dual stream: whole passes in one stream and in two."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exchange_parts import run_command
from recorded_parts import Bar, Part, Section

from fourlane.report.tables import number, percent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PARTS"]

Case = dict[str, Any]

GAIN, LEAST, MOST = 1.3, 0.4, 0.6
SHAPE = {"layers": 4, "hidden": 256, "experts": 32, "top-k": 4, "expert-dim": 512, "vocab": 1024}
"""Experts four times as wide as the benchmark model's: as much computing as 500 Mbit/s links carry."""
TOOL = Path(__file__).parents[1] / "tools" / "make_random_checkpoint.py"


def prefill() -> Part:
    """Measure prefill passes."""
    return _passes("prefill", "--tokens", "32,128,256", "--link", "500Mbps,1Gbps")


def decode() -> Part:
    """Measure decode passes."""
    return _passes("decode", "--context", "64", "--tokens", "32,128,256", "--link", "500Mbps,1Gbps")


PARTS: dict[str, Callable[[], Part]] = {"prefill": prefill, "decode": decode}


def _passes(phase: str, *wanted: str) -> Part:
    with tempfile.TemporaryDirectory(prefix="fourlane-bench-") as folder:
        model = Path(folder, "random")
        shape = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, str(TOOL), str(model), *shape], check=True, stdout=subprocess.DEVNULL)
        run = run_command("overlap", "--model", str(model), "--phase", phase, *wanted, "--seconds", "0.5")
    cases: list[Case] = run["cases"]
    bars = []
    for case in cases:
        gain, waiting = case["single_s"] / case["dual_s"], case["waiting"]
        if LEAST <= waiting <= MOST:
            claim = f"two streams, {phase}, {_place(case)}, {percent(waiting)} communication: beside one"
            bars.append(Bar(claim, f">= {GAIN} times", f"{gain:.2f} times", met=gain >= GAIN))
    if not bars:
        claim = f"two streams, {phase}: cases with 40 to 60 % communication"
        bars.append(Bar(claim, ">= 1", "0", met=False))
    columns = (
        "link",
        "tokens a rank",
        "gloo, ms",
        "tcp, ms",
        "of it waiting",
        "two streams, ms",
        "gain",
        "at most",
        "x gloo",
    )
    text = (
        "A random model: {layers} layers, hidden {hidden}, {experts} experts of inner size {expert-dim}, top {top-k}; "
        "two ranks, each in a host of the lab. Waiting is that of the rank that waits least. Medians of three rounds "
        "in turns; all ways choose the same tokens. "
    ).format(**SHAPE)
    return Part(
        title=f"Two streams: {phase}",
        text=(text + " ".join(run["notes"])).strip(),
        sections=[Section("", columns, [_row(case) for case in cases])],
        bars=bars,
        figures={"cases": cases},
    )


def _place(case: Case) -> str:
    return f"{case['link']}, {case['tokens']} tokens a rank"


def _row(case: Case) -> tuple[str, ...]:
    gloo, single, dual, waiting = case["gloo_s"], case["single_s"], case["dual_s"], case["waiting"]
    return (
        case["link"],
        f"{case['tokens']:,}",
        *(number(seconds * 1e3) for seconds in (gloo, single)),
        percent(waiting),
        number(dual * 1e3),
        f"{single / dual:.2f}",
        f"{1 / max(waiting, 1 - waiting):.2f}",
        f"{gloo / dual:.2f}",
    )
