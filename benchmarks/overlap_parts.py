"""The parts of `bench_exchange.py` about dual stream: whole passes in one stream and in two."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from exchange_parts import run_command
from recorded_parts import Bar, Part, Section

from fourlane.report.overlap_plots import Case
from fourlane.report.tables import number, percent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PARTS"]

GAIN, LEAST, MOST, NEVER_BELOW = 1.3, 0.4, 0.6, 0.98
SHAPE = {"layers": 4, "hidden": 256, "experts": 32, "top-k": 8, "expert-dim": 1024, "vocab": 1024}
"""About as much computing as 500 Mbit/s links carry meanwhile, spread over enough experts that both ranks have about
as much of it: waiting for the fuller one is not communication, and nothing hides it."""
TOOL = Path(__file__).parents[1] / "tools" / "make_random_checkpoint.py"


def prefill() -> Part:
    """Measure prefill passes."""
    return _passes("prefill", "--tokens", "64,256", "--link", "500Mbps,1Gbps", mtu=9000)


def decode() -> Part:
    """Measure decode passes."""
    return _passes("decode", "--context", "64", "--tokens", "64,256", "--link", "500Mbps,1Gbps", mtu=9000)


def decode_small_packets() -> Part:
    """Measure decode passes over links whose packets take more of the processors."""
    return _passes("decode", "--context", "64", "--tokens", "64,256", "--link", "200Mbps,500Mbps", mtu=1500)


PARTS: dict[str, Callable[[], Part]] = {"prefill": prefill, "decode": decode, "decode-1500": decode_small_packets}


def _passes(phase: str, *wanted: str, mtu: int) -> Part:
    with tempfile.TemporaryDirectory(prefix="fourlane-bench-") as folder:
        model = Path(folder, "random")
        shape = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, str(TOOL), str(model), *shape], check=True, stdout=subprocess.DEVNULL)
        run = run_command(
            "overlap",
            *("--model", str(model), "--phase", phase, *wanted, "--mtu", str(mtu)),
            *("--seconds", "1.6", "--rounds", "3", "--trace", str(Path(folder, "pass.pftrace"))),
        )
    cases = msgspec.convert(run["cases"], list[Case])
    bars = []
    for case in cases:
        if LEAST <= case.communication <= MOST:
            claim = f"two streams, {phase}, {_place(case)}, {percent(case.communication)} communication: beside one"
            bars.append(Bar(claim, f">= {GAIN} times", f"{case.gain:.2f} times", met=case.gain >= GAIN))
    if not bars:
        claim = f"two streams, {phase}: cases with 40 to 60 % communication"
        bars.append(Bar(claim, ">= 1", "0", met=False))
    worst = min(cases, key=lambda case: case.by_rule)
    claim = f"rule on, {phase}, the worst of {len(cases)} cases ({_place(worst)}): beside one stream"
    bars.append(Bar(claim, f">= {NEVER_BELOW} times", f"{worst.by_rule:.2f} times", met=worst.by_rule >= NEVER_BELOW))
    columns = (
        "link",
        "tokens a rank",
        "gloo, ms",
        "tcp, ms",
        "computing alone, ms",
        "communication",
        "two streams, ms",
        "gain",
        "at most",
        "x gloo",
        "by rule",
        "in two",
        "predicted",
    )
    text = (
        "A random model: {layers} layers, hidden {hidden}, {experts} experts of inner size {expert-dim}, top {top-k}; "
        "two ranks, each in a host of the lab, packets of {mtu} bytes. Computing alone is as many rows on each rank, "
        "none exchanged. Medians of three rounds in turns; all that exchange choose the same tokens. By rule: how many "
        "times faster passes are of which a rule decides each; how many of them ran in two streams; the gain it "
        "predicts. "
    ).format(**SHAPE, mtu=mtu)
    return Part(
        title=f"Two streams: {phase}, packets of {mtu}",
        text=(text + " ".join(run["notes"])).strip(),
        sections=[Section("", columns, [_row(case) for case in cases])],
        bars=bars,
        figures={"cases": cases, "tracks": [track for track in run["tracks"] if "rank 0" in track["process"]]},
    )


def _place(case: Case) -> str:
    return f"{case.link}, {case.tokens} tokens a rank"


def _row(case: Case) -> tuple[str, ...]:
    return (
        case.link,
        f"{case.tokens:,}",
        *(number(seconds * 1e3) for seconds in (case.gloo_s, case.single_s, case.alone_s)),
        percent(case.communication),
        number(case.dual_s * 1e3),
        f"{case.gain:.2f}",
        f"{case.most:.2f}",
        f"{case.gloo_s / case.dual_s:.2f}",
        f"{case.by_rule:.2f}",
        f"{case.dual_share:.0%}",
        "" if case.predicted is None else f"{case.predicted:.2f}",
    )
