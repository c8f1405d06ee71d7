"""`fourlane lab run ladder`: the live engine under one load while its network gets better, step by step."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fourlane.errors import CheckFailed, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from fourlane.lab.ladder import LadderSettings
    from fourlane.lab.ladder_results import LadderResult, StepResult
    from fourlane.report.ladder_plots import Panel
    from fourlane.report.tables import Table

__all__ = ["ladder"]

EXAMPLES = """\b
Examples:
  fourlane lab run ladder                          about four minutes
  fourlane lab run ladder --repeats 1 --step 3     one FIFO against lanes, in a minute
  fourlane lab run ladder -o ladder --repeats 7    writes ladder/ladder.png, .html and .json
"""


@click.command(epilog=EXAMPLES)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Write picture and figures.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Times to climb; medians count.")
@click.option("--step", "only", multiple=True, metavar="STEP", help="Take this step (and step 1); again for more.")
@click.option("--requests", type=click.IntRange(1), default=24, show_default=True, help="Requests a step.")
@click.option("--request-rate", type=click.FloatRange(0.1), default=4.0, show_default=True, help="Requests a second.")
@click.option("--rate", default="50Mbps", show_default=True, help="Of every link.")
@click.option("--kv-load", type=click.FloatRange(0.01, 1.0), default=0.6, show_default=True, help="See above.")
def ladder(*, output: Path | None, **options: Any) -> None:
    """Serve the bundled model across network namespaces and improve the network under the same load.

    Two prefill and two decode hosts, two leaves, two spines. Two further prefill hosts send KV objects to decode
    hosts of the other leaf, at random times, --kv-load of a link each on average. Steps: (1) one FIFO a port, flows
    hashed over the spines; (2) packets spread over the spines; (3) the expert lane's own queue, weight and buffer;
    (4a) switches mark ECN on that lane, (4b) and no longer; (5) KV on its own network.

    Each KV object is a connection of its own, so that the hash of step 1 is drawn anew hundreds of times.
    """
    import msgspec

    from fourlane.lab.ladder_run import climb
    from fourlane.report.tables import console, print_table, write_json

    settings = _settings(options)
    if output is not None:
        _make(output)
    signal.signal(signal.SIGTERM, _end)
    with _progress() as show:
        result = climb(settings, progress=show)
    out = console(width=160)
    for table in _tables(result):
        print_table(out, table)
        out.print()
    for line in _notes(result):
        out.print(line, markup=False, soft_wrap=True)
    if output is not None:
        write_json(output / "ladder.json", msgspec.to_builtins(result, enc_hook=str))  # rates and sizes as text
        _draw(output, result)
        out.print(f"picture and figures: {output}/ladder.png, ladder.html, ladder.json", markup=False, soft_wrap=True)
    if not result.valid:
        raise CheckFailed("the run is invalid: the machine was measured, not the network")


def _end(number: int, frame: object) -> NoReturn:
    """End as Ctrl-C does: services, lab and folder go first."""
    del frame
    sys.exit(128 + number)


def _settings(options: dict[str, Any]) -> LadderSettings:
    from fourlane.lab.ladder import LadderSettings, ladder_steps
    from fourlane.units import Rate

    try:
        rate = Rate.parse(options.pop("rate"))
    except ValueError as error:
        raise SpecError(f"--rate: {error}") from error
    settings = LadderSettings(rate=rate, **options)
    names = [step.name for step in ladder_steps(settings)]
    if unknown := sorted(set(settings.only) - set(names)):
        raise SpecError(f"--step: expected one of {', '.join(names)}, got {', '.join(unknown)}")
    return settings


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--output {folder}: cannot be made: {error.strerror}") from error


def _progress() -> AbstractContextManager[Callable[[str, int, int], None]]:
    """Show a bar with an estimate of the time left on a terminal, a line for each measurement elsewhere."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown() -> Iterator[Callable[[str, int, int], None]]:
        errors = Console(stderr=True)
        text = TextColumn("{task.description}")
        columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn(), text)
        with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as progress:
            task = progress.add_task("bringing up", total=None)
            said: list[str] = []

            def show(text: str, done: int, total: int) -> None:
                progress.update(task, description=text, completed=done, total=total)
                if not errors.is_terminal and [text] != said:
                    said[:] = [text]
                    click.echo(f"{done}/{total} {text}", file=sys.stderr)

            yield show

    return shown()


def _tables(result: LadderResult) -> list[Table]:
    from fourlane.report.tables import Table, milliseconds, number

    columns = ("step", "", "TTFT p50", "p99", "TPOT p50", "p99 ", "exchange p50", " p99", "KV, of line")
    names = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "exchange_p50_s", "exchange_p99_s")

    def rows(cells: Callable[[StepResult], list[str]]) -> tuple[tuple[str, ...], ...]:
        return tuple((step.name, step.change, *cells(step)) for step in result.steps)

    values = rows(lambda s: [*(milliseconds(s.figures[name]) for name in names), number(s.figures["kv_share"], 2)])
    ratios = rows(lambda s: [f"{number(s.ratios[name], 2)}x" for name in (*names, "kv_share")])
    left = frozenset({""})
    return [
        Table(title=f"Medians of {result.settings.repeats} repetitions", columns=columns, rows=values, left=left),
        Table(title="Ratios to step 1", columns=columns, rows=ratios, left=left),
    ]


def _notes(result: LadderResult) -> list[str]:
    from fourlane.report.tables import percent

    settings, machine, first = result.settings, result.machine, result.steps[0]
    load = (
        f"{settings.requests} requests a step, {settings.request_rate:g} a second, {settings.prompt} tokens in, "
        f"{settings.output} out; links of {settings.rate}; KV objects of {settings.kv_object} at {settings.kv_load:g} "
        "of a link from each of two hosts. Exchange: how long a decode step waits for it. KV: the median object."
    )
    hashed = f"Hash: in step 1 the two leaves drew it {first.draws} times in all, and each KV object drew its own path."
    marks = [
        f"Step {step.name}: {percent(step.marked)} of the expert lane's packets were marked."
        for step in result.steps
        if step.marked is not None
    ]
    notes = [load, hashed, *marks]
    notes += [f"Step {name} was left out: {reason}" for name, reason in result.skipped.items()]
    notes.append(f"{machine.date}, {machine.processors} processors ({machine.model}), Linux {machine.kernel}")
    verdict = f"valid (a KV object alone takes {result.stretch:.2f} of its ideal time)"
    notes.append(f"verdict: {verdict if result.valid else 'invalid: ' + '; '.join(result.doubts)}")
    return notes


def _draw(output: Path, result: LadderResult) -> None:
    from textwrap import fill

    from fourlane.report.ladder_plots import plot_ladder

    settings = result.settings
    title = (
        f"Live engine on 2 + 2 hosts, links of {settings.rate}, KV load {settings.kv_load:g} of a link a host; "
        f"medians of {settings.repeats}, ratios to step 1; {result.machine.date}, {result.machine.processors} cores"
    )
    steps = [fill(f"{step.name}: {step.title}", 10) for step in result.steps]
    plot_ladder([output / "ladder.png", output / "ladder.html"], _panels(result), steps=steps, title=title)


def _panels(result: LadderResult) -> list[Panel]:
    from fourlane.report.ladder_plots import Bar, Panel

    def bars(name: str, *, scale: float = 1.0, ratio: bool = True) -> list[Bar]:
        return [
            Bar(
                value=step.figures[name] * scale,
                lowest=step.lowest[name] * scale,
                highest=step.highest[name] * scale,
                ratio=step.ratios[name] if ratio else None,
            )
            for step in result.steps
        ]

    def latency(title: str, name: str) -> Panel:
        p50, p99 = bars(f"{name}_p50_s", scale=1e3, ratio=False), bars(f"{name}_p99_s", scale=1e3)
        return Panel(title=title, unit="ms", bars={"p50": p50, "p99": p99})

    return [
        latency("Time per output token", "tpot"),
        latency("A decode step's wait for the exchange", "exchange"),
        latency("Time to first token", "ttft"),
        Panel(title="KV bandwidth, fraction of the line", unit="", bars={"median object": bars("kv_share")}, limit=1.0),
    ]
