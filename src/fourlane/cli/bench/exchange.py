"""`fourlane bench exchange`: every expert exchange of this machine beside gloo, memcpy and the line, in one run."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fourlane import __version__
from fourlane.cli.bench.options import ETHERNET_MTU
from fourlane.errors import SpecError

if TYPE_CHECKING:
    from fourlane.cli.bench.options import Link
    from fourlane.engine.exchange.measure import Dispatch, ExchangePlan, Measured, Step
    from fourlane.engine.measured_ranks import Seats

__all__ = ["exchange"]

_MOST_BYTES = 64 << 20
_MOST_RANKS = 16

EXAMPLES = """\b
Examples:
  fourlane bench exchange                                        2, 4 and 8 ranks, 4 KiB to 1 MiB a pair
  fourlane bench exchange --implementation tcp --ranks 4 --sizes 64KiB --seconds 2
  fourlane bench exchange --link 500Mbps --ranks 2,4 --sizes 64KiB,256KiB,1MiB
  fourlane bench exchange --link 500Mbps --mtu 9000 --ranks 4      larger packets, fewer to forward
  fourlane bench exchange --json exchange.json --plot exchange.png
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--implementation",
    "implementations",
    multiple=True,
    metavar="NAME",
    help="Measure only this one, beside torch_all_to_all; repeatable.",
)
@click.option("--ranks", default="2,4,8", show_default=True, help="Ranks of the groups.")
@click.option("--sizes", default="4KiB,64KiB,1MiB", show_default=True, help="Bytes a pair of ranks.")
@click.option(
    "--dispatch",
    type=click.Choice(["activations", "float8"]),
    default="activations",
    show_default=True,
    help="As what tokens travel to experts.",
)
@click.option("--link", metavar="RATE", help="Put each rank in a host of its own, behind a link of this rate.")
@click.option("--mtu", default=ETHERNET_MTU, show_default=True, help="Bytes of a packet on these links.")
@click.option("--seconds", default=0.3, show_default=True, help="How long each figure is measured in each round.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="In which all take turns.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw time over size here.")
def exchange(  # noqa: PLR0913 - a parameter for each option
    *,
    implementations: tuple[str, ...],
    ranks: str,
    sizes: str,
    dispatch: Dispatch,
    link: str | None,
    mtu: int,
    seconds: float,
    rounds: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Exchange blocks, and tokens with experts, among ranks of this machine, over each implementation.

    First all-to-alls of equal blocks, beside torch.distributed's all_to_all_single over gloo, memcpy, and
    with --link what the line takes. Then dispatch and combine, back to back, each on what the last one
    returned; a row that had not been at its expert would show. Medians of all rounds, of the slowest rank.

    With --link ranks are in namespaces of the lab; where this machine has none, their sockets are paced.

    Exit codes: 0 all were measured, 1 one failed, 2 an option is wrong, 3 one that was asked for is
    not here, 130 interrupted.
    """
    from fourlane.cli.bench.exchange_tables import exchange_tables, figures_of
    from fourlane.report.tables import console, print_table, write_json

    bench = _Bench.read(
        implementations=implementations,
        ranks=ranks,
        sizes=sizes,
        link=link,
        mtu=mtu,
        seconds=seconds,
        rounds=rounds,
        dispatch=dispatch,
    )
    out = console()
    found, notes = bench.measure()
    for table in exchange_tables(found, link=bench.link):
        print_table(out, table)
        out.print()
    for note in notes:
        out.print(note, markup=False, soft_wrap=True)
    if json_path:
        figures = figures_of(found, link=bench.link)
        write_json(
            json_path,
            {"fourlane": __version__, "link": link, "mtu": mtu, "dispatch": dispatch, "notes": notes, **figures},
        )
        out.print(f"figures: {json_path}", markup=False, soft_wrap=True)
    if plot_path:
        from fourlane.cli.bench.exchange_tables import lines_of
        from fourlane.report.exchange_plots import plot_exchange

        where = f"over links of {bench.link}" if bench.link else "on this machine"
        plot_exchange(plot_path, lines_of(found, link=bench.link), title=f"All-to-all {where}, medians")
        out.print(f"plot: {plot_path}", markup=False, soft_wrap=True)


class _Bench(NamedTuple):
    """What to measure."""

    implementations: tuple[str, ...]
    ranks: tuple[int, ...]
    sizes: tuple[int, ...]
    link: Link | None
    seconds: float
    rounds: int
    dispatch: Dispatch

    @classmethod
    def read(
        cls,
        *,
        implementations: tuple[str, ...],
        ranks: str,
        sizes: str,
        link: str | None,
        mtu: int,
        seconds: float,
        **others: Any,
    ) -> _Bench:
        """Check the options.

        Raises:
            SpecError: some are wrong; tells all.
        """
        from fourlane.cli.bench.options import read_link, read_numbers
        from fourlane.engine.exchange.measure import IMPLEMENTATIONS, needs_no_link

        faults: list[str] = []
        known = tuple(name for name in IMPLEMENTATIONS if link is None or not needs_no_link(name))
        unknown = [name for name in implementations if name not in known]
        faults += [f'--implementation: expected one of {", ".join(known)}, got "{name}"' for name in unknown]
        wanted = tuple(name for name in known if not implementations or name in (*implementations, known[0]))
        read_ranks, read_sizes, rate = (
            read_numbers("--ranks", ranks, range(2, _MOST_RANKS + 1), faults),
            _sizes(sizes, faults),
            read_link(link, mtu, faults),
        )
        if not 0.01 <= seconds <= 600:
            faults.append(f"--seconds: expected 0.01 to 600, got {seconds:g}")
        if faults:
            raise SpecError(*faults)
        return cls(implementations=wanted, ranks=read_ranks, sizes=read_sizes, link=rate, seconds=seconds, **others)

    def measure(self) -> tuple[list[Measured], list[str]]:
        """Measure everything under a progress bar (none off a terminal); return it, and what is to be known of it."""
        from fourlane.cli.bench.groups import seated
        from fourlane.cli.progress_bar import steps_bar
        from fourlane.engine.exchange.measure import TARGET, collect
        from fourlane.engine.measured_ranks import Seats

        found: list[Measured] = []
        notes: list[str] = []
        steps = self._plan(Seats(addresses=(), folder="", linked=self.link is not None)).steps()
        total = len(steps) * len(self.ranks)
        with steps_bar() as show:
            done = itertools.count()

            def tell(step: Step, ranks: int) -> None:
                show(next(done), total, f"{ranks} ranks: {step.way}, {step.implementation}")

            for ranks in self.ranks:
                with seated(ranks, self.link, notes) as group:
                    plan = self._plan(group.seats)
                    with group.start(TARGET, plan) as sources:
                        found += collect(plan, sources, functools.partial(tell, ranks=ranks))
        return found, notes

    def _plan(self, seats: Seats) -> ExchangePlan:
        from fourlane.engine.exchange.measure import ExchangePlan

        return ExchangePlan(
            seats=seats,
            implementations=self.implementations,
            sizes=self.sizes,
            seconds=self.seconds,
            rounds=self.rounds,
            dispatch=self.dispatch,
        )


def _sizes(text: str, faults: list[str]) -> tuple[int, ...]:
    from fourlane.engine.exchange.measure import ROW_BYTES
    from fourlane.units import Size

    found: list[int] = []
    for part in text.split(","):
        try:
            size = int(Size.parse(part.strip()))
        except ValueError as error:
            faults.append(f"--sizes: {error}")
            continue
        if size % ROW_BYTES or not ROW_BYTES <= size <= _MOST_BYTES:
            faults.append(f"--sizes: expected multiples of 2KiB up to 64MiB, got {part.strip()}")
        found.append(size)
    return tuple(sorted(set(found)))
