"""The parts of `bench_exchange.py`: exchanges on this host and over links, and the whole engine over them."""

from __future__ import annotations

import asyncio
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from live_service import live_service
from recorded_parts import Bar, Part, Section

from fourlane.gateway.load import Arrivals, Client, Lengths, Load, plan_requests, run_load, summarize
from fourlane.report.tables import byte_text, number, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["PARTS", "run_command"]

Rows = list[dict[str, Any]]

DECODE_SIZES, LARGE = (4 << 10, 16 << 10, 64 << 10), 1 << 20
RANKS = (2, 4, 8)
LATENCY, BANDWIDTH, OF_MEMCPY = 10.0, 3.0, 0.5
LINK, LINK_SIZES, FULL_DUPLEX = "500Mbps", (64 << 10, 256 << 10), {2: 1.9, 4: 1.4}
OVER_IDEAL = 1.05
ENGINE, ROUNDS, REQUESTS, CONCURRENT, LENGTH = 1.2, 3, 32, 16, 64
NAMES = {"torch_all_to_all": "gloo"}


def run_command(*words: str) -> dict[str, Any]:
    """Run a `fourlane bench` command that writes JSON, and return that.

    Raises:
        SystemExit: it failed; its messages are above.
    """
    with tempfile.TemporaryDirectory(prefix="fourlane-bench-") as folder:
        path = Path(folder, "found.json")
        command = [sys.executable, "-m", "fourlane", "bench", *words, "--json", str(path)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            raise SystemExit(f"{' '.join(command)}: failed (its messages are above)")
        return json.loads(path.read_text(encoding="utf-8"))


def here() -> Part:
    """Measure every exchange of this host beside gloo and memcpy."""
    sizes = ",".join(f"{size >> 10}KiB" for size in (*DECODE_SIZES, LARGE))
    ranks = ",".join(map(str, RANKS))
    found: Rows = run_command("exchange", "--ranks", ranks, "--sizes", sizes, "--seconds", "0.2")["summary"]
    bars = []
    for group in RANKS:
        for size in DECODE_SIZES:
            ratio = _of(found, "plain", group, "shared_memory", size)["times_faster_than_gloo"]
            claim = f"shared_memory, all-to-all, {group} ranks, {byte_text(size)} a pair: latency beside gloo"
            bars.append(_at_least(claim, ratio, LATENCY))
    for group in (2, 4):
        ratio = _of(found, "plain", group, "shared_memory", LARGE)["times_faster_than_gloo"]
        bars.append(_at_least(f"shared_memory, {group} ranks, 1 MiB a pair: bandwidth beside gloo", ratio, BANDWIDTH))
    share = _of(found, "plain", 2, "shared_memory", LARGE)["share_of_memcpy"]
    claim = "shared_memory, 2 ranks, 1 MiB a pair: bandwidth beside memcpy of as much by both ranks at once"
    bars.append(Bar(claim, f">= {percent(OF_MEMCPY)}", percent(share), met=share >= OF_MEMCPY))
    text = (
        "Medians of three rounds in which all take turns, on the rank that took longest. All-to-all of equal blocks: "
        "gloo is torch.distributed's `all_to_all_single`. GB/s is what a rank gives away, its own block included, and "
        "memcpy copies as much on all ranks at once."
        " With two ranks, those that share memory are each held on a processor of its own; gloo and tcp are slower so."
    )
    return Part(title="On one host", text=text, sections=list(_sections(found)), bars=bars, figures={"summary": found})


def link(mtu: int = 1500) -> Part:
    """Measure own TCP beside gloo and the line."""
    sizes = ",".join(f"{size >> 10}KiB" for size in LINK_SIZES)
    wanted = ("--link", LINK, "--mtu", str(mtu), "--ranks", "2,4", "--sizes", sizes, "--seconds", "0.5")
    run = run_command("exchange", *wanted)
    found: Rows = run["summary"]
    bars = []
    for group, least in FULL_DUPLEX.items():
        ratio = _of(found, "plain", group, "tcp", 256 << 10)["times_faster_than_gloo"]
        bars.append(
            _at_least(f"tcp, {group} ranks, 256 KiB a pair, {LINK}, packets of {mtu}: beside gloo", ratio, least)
        )
    for group in FULL_DUPLEX:
        for size in LINK_SIZES:
            row = _of(found, "plain", group, "tcp", size)
            over = row["p50_s"] / row["ideal_line_s"]
            claim = f"tcp, {group} ranks, {byte_text(size)} a pair, {LINK}, packets of {mtu}: beside the ideal line"
            bars.append(Bar(claim, f"<= {OVER_IDEAL:.2f}", f"{over:.3f}", met=over <= OVER_IDEAL))
    text = (
        f"Each rank in a host of the lab, behind a link of {LINK} whose packets carry {mtu} bytes; the cores "
        "forward every packet, six times as many between four ranks as between two. The ideal line is how long it is "
        "busy with the bytes alone, headers included. " + " ".join(run["notes"])
    )
    text = text.strip()
    return Part(
        title=f"Over {LINK} links, packets of {mtu}", text=text, sections=list(_sections(found)), bars=bars, figures=run
    )


def engine() -> Part:
    """Measure output tokens a second of the bundled model, 2 + 2 ranks, over each exchange in turns."""
    ways = ("torch_all_to_all", "tcp", "shared_memory")
    found: dict[str, list[float]] = {way: [] for way in ways}
    with ExitStack() as stack:
        urls = {}
        for way in ways:
            overrides = ["prefill.ranks=2", "decode.ranks=2", f"exchange.implementation={way}"]
            urls[way] = stack.enter_context(live_service(overrides)).base_url
        for way in ways:  # unmeasured: what is new is over
            asyncio.run(_output_rate(urls[way], requests=CONCURRENT))
        for _ in range(ROUNDS):
            for way in ways:
                found[way].append(asyncio.run(_output_rate(urls[way], requests=REQUESTS)))
    medians = {way: statistics.median(rates) for way, rates in found.items()}
    rows: list[tuple[str, ...]] = [
        (
            NAMES.get(way, way),
            number(medians[way], 4),
            f"{medians[way] / medians['torch_all_to_all']:.2f}",
            ", ".join(number(rate, 4) for rate in rates),
        )
        for way, rates in found.items()
    ]
    ratio = medians["shared_memory"] / medians["torch_all_to_all"]
    columns = ("over", "output tokens/s, median", "x gloo", "each round")
    return Part(
        title="The whole engine",
        text=(
            f"The bundled model, 2 prefill + 2 decode ranks on this machine's cores, {REQUESTS} requests, {CONCURRENT} "
            f"at a time, {LENGTH} tokens in and {LENGTH} out, greedy. All services are up at once and loaded in turns."
        ),
        sections=[Section("", columns, rows)],
        bars=[_at_least("engine, bundled model, 2 + 2 ranks: output tokens/s beside gloo", ratio, ENGINE)],
        figures={"output_tokens_per_s": found},
    )


PARTS: dict[str, Callable[[], Part]] = {
    "here": here,
    "link": link,
    "link-9000": functools.partial(link, 9000),
    "engine": engine,
}


async def _output_rate(base_url: str, *, requests: int) -> float:
    client = Client(base_url)
    try:
        model = (await client.require())[0]
        lengths = Lengths(kind="fixed", low=LENGTH, high=LENGTH)
        planned = plan_requests(
            Arrivals(concurrency=CONCURRENT),
            requests=requests,
            input_lengths=lengths,
            output_lengths=lengths,
            vocabulary=range(300, 4000),
            seed=0,
        )
        records = await run_load(client, Load(model=model, concurrency=CONCURRENT), planned)
    finally:
        client.close()
    return summarize(records).output_tokens_per_s


def _of(found: Rows, way: str, ranks: int, implementation: str, size: int) -> dict[str, Any]:
    keys = ("way", "ranks", "implementation", "bytes_per_pair")
    return next(row for row in found if [row[key] for key in keys] == [way, ranks, implementation, size])


def _at_least(claim: str, ratio: float, least: float) -> Bar:
    return Bar(claim, f">= {least:g} times", f"{ratio:.2f} times", met=ratio >= least)


def _sections(found: Rows) -> Iterable[Section]:
    titles = {"plain": "All-to-all of equal blocks", "pair": "Dispatch and combine, back to back"}
    for way, title in titles.items():
        for ranks in sorted({row["ranks"] for row in found}):
            rows = [row for row in found if (row["way"], row["ranks"]) == (way, ranks)]
            yield _section(f"{title}, {ranks} ranks", sorted(rows, key=lambda row: row["bytes_per_pair"]))


def _section(title: str, found: Sequence[dict[str, Any]]) -> Section:
    linked = found[0]["ideal_line_s"] is not None
    last = ("ideal line, us", "over ideal") if linked else ("GB/s a rank", "of memcpy")
    rows = []
    for row in found:
        cells = [byte_text(row["bytes_per_pair"]), NAMES.get(row["implementation"], row["implementation"])]
        cells += [number(row[key] * 1e6) for key in ("p50_s", "p90_s", "p99_s")]
        cells.append("" if row["times_faster_than_gloo"] is None else f"{row['times_faster_than_gloo']:.2f}")
        if linked:
            cells += [number(row["ideal_line_s"] * 1e6), f"{row['p50_s'] / row['ideal_line_s']:.3f}"]
        else:
            share = row["share_of_memcpy"]
            cells += [number(row["bytes_per_s"] / 1e9), "" if share is None else percent(share)]
        rows.append(tuple(cells))
    return Section(title, ("a pair", "over", "p50, us", "p90, us", "p99, us", "x gloo", *last), rows)
