"""`fourlane bench overlap`: whole forward passes in one stream and in two, over links of several rates."""

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
    from fourlane.engine.measured_passes import MeasuredWay, PassPlan, RankTrace, Way
    from fourlane.engine.measured_ranks import Seats

__all__ = ["overlap"]

_MOST_TOKENS = 4096
_MOST_RANKS = 8
_NO_LINK = "none"

EXAMPLES = """\b
Examples:
  fourlane bench overlap                                             the bundled model, 2 ranks, 500 Mbit/s links
  fourlane bench overlap --phase decode --context 256 --tokens 16,64,128
  fourlane bench overlap --link 200Mbps,1Gbps --json overlap.json --plot overlap.png
  fourlane bench overlap --tokens 256 --trace out.pftrace            then open it in https://ui.perfetto.dev
"""


@click.command(epilog=EXAMPLES)
@click.option("--model", default="bundled", show_default=True, help="A checkpoint folder; random weights will do.")
@click.option("--phase", type=click.Choice(["prefill", "decode"]), default="prefill", show_default=True)
@click.option(
    "--order",
    type=click.Choice(["prefill", "decode", "experts"]),
    help="In which order two streams take turns; by default what ranks on CPUs serve with.",
)
@click.option("--tokens", default="32,128,512", show_default=True, help="Tokens of each rank in a pass.")
@click.option("--context", type=click.IntRange(1), default=128, show_default=True, help="Tokens of a sequence.")
@click.option("--link", default="500Mbps", show_default=True, help='Rates of each rank\'s link; "none": no links.')
@click.option("--mtu", default=ETHERNET_MTU, show_default=True, help="Bytes of a packet on these links.")
@click.option("--ranks", type=click.IntRange(2, _MOST_RANKS), default=2, show_default=True, help="Of the group.")
@click.option("--implementation", default="tcp", show_default=True, help="The exchange that is measured.")
@click.option("--seconds", default=1.0, show_default=True, help="How long each figure is measured in each round.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="In which all take turns.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw gain over communication here.")
@click.option("--trace", "trace_path", type=click.Path(path_type=Path), help="Write a Perfetto trace of a pass here.")
def overlap(  # noqa: PLR0913 - a parameter for each option
    *,
    model: str,
    phase: str,
    order: str | None,
    tokens: str,
    context: int,
    link: str,
    mtu: int,
    ranks: int,
    implementation: str,
    seconds: float,
    rounds: int,
    json_path: Path | None,
    plot_path: Path | None,
    trace_path: Path | None,
) -> None:
    """Run whole forward passes of a model among ranks behind links, in one stream and in two.

    Each rank is in a host of the lab, behind a link of the given rate; where this machine has none, sockets
    are paced to it. Two streams are two micro-batches in turn, the exchange on a thread of its own; "by rule"
    are passes for which a rule decides, one by one, how they run. Beside them: one stream over the same
    exchange, one over gloo, whose all-to-all goes one way at a time, and one of ranks that compute as many
    rows without exchanging any; the rest of a pass is communication. Passes take turns; medians of all
    rounds, of the slowest rank. All that exchange must choose the same tokens.

    Exit codes: 0 all were measured, 1 one failed or chose other tokens, 2 an option is wrong, 3 what was
    asked for is not here, 130 interrupted.
    """
    from fourlane.cli.bench.overlap_tables import cases_of, overlap_table, tracks_of
    from fourlane.report.tables import console, print_table, write_json

    bench = _Bench.read(
        model=model,
        phase=phase,
        order=order or _served_order(model, phase),
        tokens=tokens,
        context=context,
        links=link,
        mtu=mtu,
        ranks=ranks,
        implementation=implementation,
        seconds=seconds,
        rounds=rounds,
        trace=trace_path is not None,
    )
    out = console()
    found = bench.measure()
    cases = [case for measured, rate in found.measured for case in cases_of(measured, rate, implementation)]
    title = f"{phase}, {ranks} ranks, {_name_of(model)}" + (f", order {order}" if order else "")
    print_table(out, overlap_table(cases, title=title, implementation=implementation))
    out.print()
    for note in found.notes:
        out.print(note, markup=False, soft_wrap=True)
    tracks = tracks_of(found.traces)
    if json_path:
        settings = {
            "model": model,
            "phase": phase,
            "order": bench.order,
            "ranks": ranks,
            "context": context,
            "mtu": mtu,
            "notes": found.notes,
        }
        operations = [{"link": str(rate), "passes": measured} for measured, rate in found.measured]
        write_json(
            json_path, {"fourlane": __version__, **settings, "cases": cases, "tracks": tracks, "operations": operations}
        )
        out.print(f"figures: {json_path}", markup=False, soft_wrap=True)
    if plot_path:
        from fourlane.report.overlap_plots import plot_overlap

        plot_overlap(plot_path, cases, title=f"One stream and two: {title}")
        out.print(f"plot: {plot_path}", markup=False, soft_wrap=True)
    if trace_path:
        from fourlane.report.perfetto import write_trace

        write_trace(trace_path, tracks)
        out.print(f"trace: {trace_path} (open it in https://ui.perfetto.dev)", markup=False, soft_wrap=True)


def _served_order(model: str, phase: str) -> str:
    """Return the name of the order in which ranks on CPUs would serve a model."""
    from fourlane.engine.model.config import read_config, resolve_model_path
    from fourlane.policy.overlap_order import order_for

    ratio = read_config(resolve_model_path(model)).experts_to_attention
    return order_for("decode" if phase == "decode" else "prefill", gpu=False, experts_to_attention=ratio).name


class _Found(NamedTuple):
    """What was measured: passes of each link, with its rate; what to know of them; the last link's traces."""

    measured: list[tuple[list[MeasuredWay], Link | None]]
    notes: list[str]
    traces: list[list[RankTrace]]


class _Bench(NamedTuple):
    """What to measure."""

    model: str
    phase: str
    order: str
    tokens: tuple[int, ...]
    context: int
    links: tuple[Link | None, ...]
    ranks: int
    implementation: str
    seconds: float
    rounds: int
    trace: bool

    @classmethod
    def read(cls, *, tokens: str, links: str, mtu: int, implementation: str, seconds: float, **others: Any) -> _Bench:
        """Check the options.

        Raises:
            SpecError: some are wrong; tells all.
        """
        from fourlane.cli.bench.options import read_link, read_numbers
        from fourlane.engine.exchange.measure import IMPLEMENTATIONS, needs_no_link

        faults: list[str] = []
        wanted = [part.strip() for part in links.split(",")]
        rates = tuple(read_link(None if part == _NO_LINK else part, mtu, faults) for part in wanted)
        linked = any(rate is not None for rate in rates)
        known = tuple(name for name in IMPLEMENTATIONS[1:] if not (linked and needs_no_link(name)))
        if implementation not in known:
            faults.append(f'--implementation: expected one of {", ".join(known)}, got "{implementation}"')
        if not 0.01 <= seconds <= 600:
            faults.append(f"--seconds: expected 0.01 to 600, got {seconds:g}")
        counts = read_numbers("--tokens", tokens, range(1, _MOST_TOKENS + 1), faults)
        if faults:
            raise SpecError(*faults)
        return cls(tokens=counts, links=rates, implementation=implementation, seconds=seconds, **others)

    def measure(self) -> _Found:
        """Measure everything under a progress bar (none off a terminal)."""
        from fourlane.cli.bench.groups import seated
        from fourlane.cli.progress_bar import steps_bar
        from fourlane.engine.measured_passes import TARGET, collect, collect_traces
        from fourlane.engine.measured_ranks import Seats

        found = _Found([], [], [])
        total = len(self._plan(Seats(addresses=(), folder=""), None).steps()) * len(self.links)
        with steps_bar() as show:
            done = itertools.count()

            def tell(tokens: int, way: Way, link: Link | None) -> None:
                where = f"over {link}" if link is not None else "here"
                show(next(done), total, f"{where}: {tokens} tokens, {way.mode}, {way.implementation}")

            for link in self.links:
                with seated(self.ranks, link, found.notes) as group:
                    plan = self._plan(group.seats, link)
                    with group.start(TARGET, plan) as sources:
                        measured = collect(plan, sources, functools.partial(tell, link=link))
                        found.measured.append((measured, link))
                        found.traces[:] = collect_traces(plan, sources) or found.traces
        return found

    def _plan(self, seats: Seats, link: Link | None) -> PassPlan:
        from fourlane.engine.measured_passes import ALONE, PassPlan, Way

        ways = (
            Way(implementation="torch_all_to_all", mode="single"),
            Way(implementation=self.implementation, mode="single"),
            Way(implementation=self.implementation, mode="dual"),
            Way(implementation=self.implementation, mode="auto"),
            Way(implementation=ALONE, mode="single"),
        )
        return PassPlan(
            seats=seats,
            model=self.model,
            phase="decode" if self.phase == "decode" else "prefill",
            tokens=self.tokens,
            context=self.context,
            ways=ways,
            order=self.order,
            seconds=self.seconds,
            rounds=self.rounds,
            trace=self.trace and link == self.links[-1],
        )


def _name_of(model: str) -> str:
    return "bundled model" if model == "bundled" else f"model {Path(model).name}"
