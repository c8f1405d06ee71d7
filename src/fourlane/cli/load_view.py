"""How a load run looks to a person: a progress bar while it runs, tables and a plot afterwards."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from fourlane.gateway.load import Client, Load, LoadPlan, Record, Summary
    from fourlane.report.tables import Table

__all__ = ["plot_records", "send_with_progress", "summary_tables"]

_ERRORS_SHOWN = 5


async def send_with_progress(
    client: Client, load: Load, plan: LoadPlan, *, label: str = "requests"
) -> tuple[list[Record], bool]:
    """Send a load under a progress bar with an estimate of the time left (no bar off a terminal).

    Ctrl-C ends the load early.

    Returns:
        The records, and whether the load was interrupted.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from fourlane.gateway.load import run_load

    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    stop = asyncio.Event()
    tokens = failed = 0
    began = time.perf_counter()
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as progress:
        task = progress.add_task(label, total=plan.total, note="")

        def show(record: Record) -> None:
            nonlocal tokens, failed
            tokens += record.output_tokens
            failed += record.error is not None
            rate = tokens / (time.perf_counter() - began)
            note = f"{rate:,.0f} tokens/s" + (f", {failed} failed" if failed else "")
            progress.update(task, advance=1, note=note)

        records = await _until_interrupted(
            lambda: run_load(client, load, plan.requests, on_record=show, stop=stop), stop
        )
    return records, stop.is_set()


async def _until_interrupted(work: Callable[[], Awaitable[list[Record]]], stop: asyncio.Event) -> list[Record]:
    """Run `work` with Ctrl-C setting `stop` instead of ending the program."""
    loop = asyncio.get_running_loop()
    previous = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        return await work()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, previous)


def summary_tables(summary: Summary) -> list[Table]:
    """Return the tables of a load run: latencies, then throughput, then errors if there were any."""
    from fourlane.report.tables import Table, milliseconds, number, percent

    latencies = (
        ("time to first token (TTFT)", summary.ttft_s),
        ("time per output token (TPOT)", summary.tpot_s),
        ("gap between events (ITL)", summary.itl_s),
        ("whole request (E2E)", summary.e2e_s),
    )
    rows = tuple(
        (name, *(milliseconds(value) for value in (p.mean, p.p50, p.p90, p.p99, p.max))) for name, p in latencies
    )
    tables = [Table(title="Latency", columns=("", "mean", "p50", "p90", "p99", "max"), rows=rows)]
    figures = [
        ("requests answered", f"{summary.completed} of {summary.requests}"),
        ("duration", f"{number(summary.duration_s)} s"),
        ("requests a second", number(summary.requests_per_s)),
        ("output tokens a second", number(summary.output_tokens_per_s, 4)),
        ("all tokens a second", number(summary.total_tokens_per_s, 4)),
        (
            "prompt / cached / output tokens",
            f"{summary.prompt_tokens:,} / {summary.cached_tokens:,} / {summary.output_tokens:,}",
        ),
    ]
    objectives = summary.objectives
    if objectives.ttft_s is not None or objectives.tpot_s is not None:
        wanted = [
            f"{name} <= {milliseconds(value)}"
            for name, value in (("TTFT", objectives.ttft_s), ("TPOT", objectives.tpot_s))
            if value is not None
        ]
        good = f"{number(summary.goodput_per_s)} a second, {percent(summary.goodput_share)} of requests"
        figures.append((f"goodput ({', '.join(wanted)})", good))
    if summary.lateness_s.p99 > 0.01:
        figures.append(("sent later than planned, p99", milliseconds(summary.lateness_s.p99)))
    figures.append(("CPU of the sending process", f"{number(summary.client_cpu_s)} s"))
    tables.append(Table(title="Throughput", columns=("", "value"), rows=tuple(figures)))
    if summary.errors:
        errors = tuple((text, str(count)) for text, count in list(summary.errors.items())[:_ERRORS_SHOWN])
        tables.append(Table(title="Errors", columns=("what", "requests"), rows=errors))
    return tables


def plot_records(path: Path, records: list[Record], title: str) -> None:
    """Draw the records of a load run."""
    from fourlane.report.plots import RequestTimes, plot_load

    times = []
    for record in records:
        stamps = [record.due_s + record.ttft_s] if record.ttft_s is not None else []
        for gap in record.gaps_s:
            stamps.append(stamps[-1] + gap)
        end_s = record.due_s + (record.e2e_s or 0.0)
        times.append(
            RequestTimes(due_s=record.due_s, event_s=stamps, end_s=end_s, tokens=record.output_tokens or len(stamps))
        )
    plot_load(path, times, title=title)
