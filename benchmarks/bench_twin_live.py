"""How near the twin of this machine comes to the live service, the bundled model on 2 + 2 ranks, load by load.

    python benchmarks/bench_twin_live.py                    measures machine and loads, and writes the page
    python benchmarks/bench_twin_live.py --profile mine.toml --records FOLDER      takes what is there already
    python benchmarks/bench_twin_live.py --device cuda --ranks 1                   on a GPU: 1 + 1 ranks

Each load is sent by `fourlane bench serve` to a service of its own, several times, in turn with the others; the median
run counts. The twin is `fourlane twin run --deployment two_by_two` on the profile. Bars: TPOT within 10 %, TTFT within
15 %, means of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from result_page import write_page

from fourlane.spec.hardware_profile import load_profile
from fourlane.spec.load import load_deployment
from fourlane.spec.twin import Workload
from fourlane.twin.assembly import assemble
from fourlane.twin.of_deployment import twin_of
from fourlane.twin.serving.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

BARS = {"tpot_s": 0.10, "ttft_s": 0.15}
_FOURLANE = [sys.executable, "-m", "fourlane"]


@dataclass(frozen=True)
class Load:
    """A load, in the words of both: `fourlane bench serve` and a twin's workload."""

    name: str
    concurrency: int | None
    rate: float | None
    requests: int
    input_len: str
    output_len: str

    @property
    def options(self) -> list[str]:
        """Return it as options of `fourlane bench serve`."""
        when = ["--rate", f"{self.rate:g}"] if self.rate is not None else ["--concurrency", str(self.concurrency)]
        lengths = ["--input-len", self.input_len, "--output-len", self.output_len]
        return [*when, "--requests", str(self.requests), *lengths]

    @property
    def workload(self) -> Workload:
        """Return it as a twin's workload."""
        return Workload(
            concurrency=self.concurrency,
            rate=self.rate,
            requests=self.requests,
            input_len=self.input_len,
            output_len=self.output_len,
        )


LOADS = (
    Load("one at a time, 128 in, 64 out", 1, None, 16, "128", "64"),
    Load("4 at a time, 128 in, 64 out", 4, None, 32, "128", "64"),
    Load("16 at a time, 128 in, 64 out", 16, None, 128, "128", "64"),
    Load("4 at a time, 64..192 in, 32..96 out", 4, None, 48, "64..192", "32..96"),
    Load("16 at a time, 64..192 in, 32..96 out", 16, None, 128, "64..192", "32..96"),
    Load("2 a second, 64..192 in, 32..96 out", None, 2.0, 20, "64..192", "32..96"),
    Load("6 a second, 64..192 in, 32..96 out", None, 6.0, 48, "64..192", "32..96"),
)


def main() -> None:
    """Measure, simulate, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="a hardware profile that is there already")
    parser.add_argument("--records", type=Path, help="folder of measured loads: what is there is not measured again")
    parser.add_argument("--device", default="cpu", help="where ranks compute [cpu]")
    parser.add_argument("--ranks", type=int, default=2, help="of each pool [2]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each load [3]")
    parser.add_argument("--no-page", action="store_true", help="print only")
    options = parser.parse_args()
    pools = [
        word
        for phase in ("prefill", "decode")
        for word in ("--set", f"{phase}.ranks={options.ranks}", "--set", f"{phase}.device={options.device}")
    ]
    with tempfile.TemporaryDirectory() as made:
        records = options.records or Path(made)
        records.mkdir(exist_ok=True)
        profile = options.profile or _calibrated(Path(made), pools)
        served = measured(records, options.rounds, pools)
        lines = page(profile, served, pools[1::2])
        label = load_profile(profile).machine
    print("\n".join(lines))
    if not options.no_page:
        title = f"The twin of {label} beside the live service: bundled model, {options.ranks} + {options.ranks} ranks"
        hardware = None if options.device == "cpu" else "-".join(label.lower().split())
        print(write_page("twin_live", title=title, lines=lines, hardware=hardware))


def _calibrated(folder: Path, pools: list[str]) -> Path:
    path = folder / "profile.toml"
    subprocess.run([*_FOURLANE, "twin", "calibrate", *pools, "-o", str(path)], check=True)
    return path


def measured(folder: Path, rounds: int, pools: list[str]) -> dict[Load, list[dict[str, Any]]]:
    """Return summaries of `fourlane bench serve` of each load, measuring those that are missing; loads take turns."""
    found: dict[Load, list[dict[str, Any]]] = {load: [] for load in LOADS}
    for turn in range(rounds):
        for number, load in enumerate(LOADS):
            path = folder / f"load{number}-{turn}.json"
            if not path.exists():
                command = [*_FOURLANE, "bench", "serve", *pools, *load.options, "--json", str(path)]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found[load].append(json.loads(path.read_text(encoding="utf-8"))["summary"])
    return found


def page(profile: Path, served: dict[Load, list[dict[str, Any]]], changes: list[str]) -> list[str]:
    """Return the comparison as lines of Markdown."""
    deployment = load_deployment(None, overrides=changes)
    rows, within = list[str](), 0
    for load, summaries in served.items():
        twin = simulate(assemble(twin_of(deployment, profile, workload=load.workload))).summary()
        cells = [_cell(figure, twin, summaries) for figure in BARS]
        within += all(met for _, met in cells)
        rows.append(f"| {load.name} | {' | '.join(text for text, _ in cells)} |")
    found = load_profile(profile)
    runs = max(len(summaries) for summaries in served.values())
    says = (
        f"Means over requests; of the live service the median of {runs} runs, and their range. Bars: TPOT within 10 %, "
        f"TTFT within 15 %. Within both: {within} of {len(served)} loads."
    )
    profiled = (
        f"The profile: {found.label}, by {found.source}. {found.fitted[:1].upper()}{found.fitted[1:]}; none of the "
        "loads above is among them."
    )
    return [
        says,
        "",
        "| load | TPOT live | TPOT twin | apart | TTFT live | TTFT twin | apart |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        profiled,
    ]


def _cell(figure: str, twin: dict[str, Any], summaries: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """Return a figure of both, and how far apart they are; and whether that is within its bar."""
    runs = sorted(summary[figure]["mean"] for summary in summaries)
    live, simulated = statistics.median(runs), twin[figure]["mean"]
    apart = simulated / live - 1
    met = abs(apart) <= BARS[figure]
    ranged = f"{live * 1e3:.2f} ms ({runs[0] * 1e3:.2f} to {runs[-1] * 1e3:.2f})"
    return f"{ranged} | {simulated * 1e3:.2f} ms | {apart:+.1%}{'' if met else ' **out**'}", met


if __name__ == "__main__":
    main()
