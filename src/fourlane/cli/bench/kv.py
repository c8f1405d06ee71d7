"""`fourlane bench kv`: every KV transport of this machine beside line rate and memcpy, in one run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from fourlane import __version__
from fourlane.errors import CheckFailed, EnvironmentMissing, FourlaneError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.kv_transfer.measure import Sending, Series
    from fourlane.report.tables import Table
    from fourlane.spec.deployment import KvTransfer

__all__ = ["kv"]

_MOST_BYTES = 4 << 30
_NAMES = {
    "memcpy": "memcpy",
    "line": "line: plain TCP",
    "shared_memory": "shared_memory",
    "tcp": "tcp",
    "nixl": "nixl",
    "mooncake": "mooncake",
}

EXAMPLES = """\b
Examples:
  fourlane bench kv                                              all transports, 64 KiB to 64 MiB
  fourlane bench kv --transport tcp --transport nixl --sizes 1MiB,256MiB
  fourlane bench kv deployment.toml --repeats 31 --json kv.json --plot kv.png
  fourlane bench kv --set kv_transfer.streams=4                  TCP striped over four connections
"""


@click.command(epilog=EXAMPLES)
@click.argument("deployment", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the deployment.")
@click.option("--transport", "transports", multiple=True, metavar="NAME", help="Measure only this one; repeatable.")
@click.option("--sizes", default="64KiB,1MiB,16MiB,64MiB", show_default=True, help="Bytes a sequence.")
@click.option("--repeats", type=click.IntRange(1), default=15, show_default=True, help="Sequences of each size.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw rate over size here.")
def kv(
    *,
    deployment: Path | None,
    overrides: tuple[str, ...],
    transports: tuple[str, ...],
    sizes: str,
    repeats: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Send KV from one process of this machine to another, over each transport it has; print medians.

    Addresses, streams and devices come from [kv_transfer] of DEPLOYMENT. A sequence of 8 layers goes
    into shuffled pages, checksums and acknowledgement included. Beside the transports, in the same
    run and with the same bytes: plain TCP between the same addresses (the line), one memcpy.

    Exit codes: 0 every transport was measured, 1 one failed, 2 an option or file is wrong, 3 one that
    was asked for is not here, 130 interrupted.
    """
    from fourlane.report.tables import console, print_table, write_json
    from fourlane.spec.load import load_deployment

    settings = load_deployment(deployment, overrides=overrides).kv_transfer
    plan = _Plan.read(transports, sizes, repeats)
    found = plan.measure(settings)
    out = console()
    for table in found.tables():
        print_table(out, table)
        out.print()
    for way, reason in {**plan.absent, **found.failures}.items():
        out.print(f"{way}: {reason}", markup=False, soft_wrap=True)
    if json_path:
        write_json(json_path, {"fourlane": __version__, "address": settings.address, **found.figures()})
        out.print(f"figures: {json_path}", markup=False, soft_wrap=True)
    if plot_path:
        from fourlane.report.rate_plots import plot_rates

        plot_rates(plot_path, found.rates(), title=f"KV between two processes of this machine, median of {repeats}")
        out.print(f"plot: {plot_path}", markup=False, soft_wrap=True)
    if found.failures:
        raise CheckFailed(f"{len(found.failures)} transports failed: {', '.join(found.failures)}")


class _Found:
    """What was measured."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self.idle: dict[str, tuple[float, float]] = {}
        self.failures: dict[str, str] = {}

    def rates(self) -> dict[str, list[tuple[int, float]]]:
        """Return (size, bytes a second) by way, medians."""
        found: dict[str, list[tuple[int, float]]] = {}
        for series in self.series:
            rate = series.size / statistics.median(series.seconds)
            found.setdefault(_NAMES[series.way], []).append((series.size, rate))
        return found

    def figures(self) -> dict[str, object]:
        """Return everything, for JSON."""
        return {
            "series": self.series,
            "median_bytes_per_s": {way: dict(rates) for way, rates in self.rates().items()},
            "idle_cpu_cores": {way: {"receiver": ours, "sender": theirs} for way, (ours, theirs) in self.idle.items()},
            "failures": self.failures,
        }

    def tables(self) -> list[Table]:
        """Return rates, then each transport beside its yardstick."""
        from fourlane.report.tables import Table, byte_text, number, percent

        rates = {way: dict(found) for way, found in self.rates().items()}
        sizes = sorted({size for found in rates.values() for size in found})
        columns = tuple(byte_text(size) for size in sizes)
        rows = tuple(
            (way, *(f"{number(found[size] / 1e9)} GB/s" if size in found else "-" for size in sizes))
            for way, found in rates.items()
        )
        beside = []
        for way, (ours, theirs) in self.idle.items():
            yardstick = rates["memcpy" if way == "shared_memory" else _NAMES["line"]]
            cells = [f"{rates[way][size] / yardstick[size]:.2f}" if size in rates[way] else "-" for size in sizes]
            name = f"{way} / {'memcpy' if way == 'shared_memory' else 'line'}"
            beside.append((name, *cells, f"{percent(ours)} + {percent(theirs)}"))
        return [
            Table(title="KV, median rate", columns=("", *columns), rows=rows),
            Table(title="Beside its yardstick", columns=("", *columns, "CPU at rest, both ends"), rows=tuple(beside)),
        ]


class _Plan(NamedTuple):
    """What to measure, and what cannot be."""

    transports: tuple[str, ...]
    absent: dict[str, str]
    sizes: tuple[int, ...]
    repeats: int

    @classmethod
    def read(cls, transports: tuple[str, ...], sizes: str, repeats: int) -> _Plan:
        """Check the options.

        Raises:
            SpecError: one is wrong.
            EnvironmentMissing: a transport asked for is not here.
        """
        read_sizes = _sizes(sizes)
        from fourlane.engine.kv_transfer.installed import TRANSPORTS, absent

        unknown = [name for name in transports if name not in TRANSPORTS]
        if unknown:
            raise SpecError(
                *(f'--transport: expected one of {", ".join(TRANSPORTS)}, got "{name}"' for name in unknown)
            )
        missing = absent()
        wanted = [f"--transport {name}: {missing[name]}" for name in transports if name in missing]
        if wanted:
            raise EnvironmentMissing("\n".join(wanted))
        here = tuple(name for name in TRANSPORTS if name in (transports or TRANSPORTS) and name not in missing)
        return cls(here, {} if transports else missing, read_sizes, repeats)

    def measure(self, settings: KvTransfer) -> _Found:
        """Measure everything under a progress bar (none off a terminal)."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from fourlane.engine.kv_transfer.measure import Sending

        errors = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TimeRemainingColumn())
        # Drawn when something has been measured, not by a thread of its own, which would show as load at rest.
        bar = Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True, auto_refresh=False)
        with bar, Sending(settings, largest=max(self.sizes)) as sending:
            total = sum(map(_weight, self.sizes)) * (len(self.transports) + 2)
            task = bar.add_task("starting the sending process", total=total)

            def show(way: str, size: int = 0) -> None:
                bar.update(task, advance=_weight(size) if size else 0, description=_NAMES[way], refresh=True)

            return self._measure_all(sending, show)

    def _measure_all(self, sending: Sending, show: Callable[..., None]) -> _Found:
        from fourlane.engine.kv_transfer.measure import time_memcpy

        found = _Found()
        for way, time_it in (("memcpy", time_memcpy), ("line", sending.time_line)):
            show(way)
            for size in self.sizes:
                found.series.append(time_it(size, self.repeats))
                show(way, size)
        for transport in self.transports:
            show(transport)
            try:
                with sending.open(transport) as time_kv:
                    for size in self.sizes:
                        found.series.append(time_kv(size, self.repeats))
                        show(transport, size)
                    found.idle[transport] = sending.idle_cpu()
            except FourlaneError as error:
                found.failures[transport] = str(error)
        return found


def _weight(size: int) -> float:
    """Return how long a size takes, roughly, for the estimate of the time left."""
    return size + (1 << 20)


def _sizes(text: str) -> tuple[int, ...]:
    from fourlane.units import Size

    grain = 1 << 14
    found: list[int] = []
    faults: list[str] = []
    for part in text.split(","):
        try:
            size = int(Size.parse(part.strip()))
        except ValueError as error:
            faults.append(f"--sizes: {error}")
            continue
        if size % grain or not grain <= size <= _MOST_BYTES:
            faults.append(f"--sizes: expected multiples of 16KiB up to 4GiB, got {part.strip()}")
        found.append(size)
    if faults:
        raise SpecError(*faults)
    return tuple(sorted(set(found)))
