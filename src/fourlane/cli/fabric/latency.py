"""`fourlane fabric latency`: where the time goes from memory to memory, hop by hop when idle, and under load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from fourlane.cli.fabric.progress import many_bar
from fourlane.cli.fabric.topologies import USUAL_LATENCY_CLUSTER
from fourlane.units import Duration, Quantity, Size

if TYPE_CHECKING:
    from fourlane.report.tables import Table
    from fourlane.spec.cluster import Cluster
    from fourlane.twin.fabric.latency import PathBudget
    from fourlane.twin.fabric.loaded_latency import LoadedLatency
    from fourlane.twin.fabric.published_latency import Comparison

__all__ = ["latency"]

Q = TypeVar("Q", bound=Quantity)
BUDGET = Duration.parse("4us")
_LOADS = (0.2, 0.4, 0.6, 0.8)

EXAMPLES = """\b
Examples:
  fourlane fabric latency                                  the catalog's low-latency cluster
  fourlane fabric latency --idle --published               no simulation; published measurements beside the budget
  fourlane fabric latency --cluster h800-10k --size 4160B --load 0.6
  fourlane fabric latency --load 0.1 --load 0.3 --load 0.5 --background 0.1 -o latency.png
  fourlane fabric latency --load 0.3 --within 4us          exit code 1 if idle or p99 takes longer
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--cluster",
    default=USUAL_LATENCY_CLUSTER,
    show_default=True,
    metavar="FILE|NAME",
    help="Cluster file, or a name of the catalog.",
)
@click.option(
    "--network", type=click.Choice(["hpn", "dcn"]), default="hpn", show_default=True, help="Of the idle paths."
)
@click.option("--size", default="64B", show_default=True, help="Of the packet on an idle path, on the wire.")
@click.option("--load", "loads", type=float, multiple=True, help="Expert traffic, of NICs' rate  [0.2, 0.4, 0.6, 0.8].")
@click.option("--message", default="7408B", show_default=True, help="Of expert traffic.")
@click.option("--background", type=float, default=0.0, show_default=True, help="Collective traffic beside it.")
@click.option("--plan", type=click.Path(path_type=Path), help="Lane plan  [the cluster's default plan].")
@click.option("--idle", is_flag=True, help="Do not simulate.")
@click.option("--within", metavar="DURATION", help="Exit with 1 if an idle path, or p99 at a load, takes longer.")
@click.option("--published", is_flag=True, help="Hold published measurements against the budget.")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the cluster.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Draw it here (.svg, .png, .pdf, .html).")
def latency(**given: Any) -> None:
    """Show where the time goes on the idle paths of a cluster, hop by hop, and latency under load next to it.

    Every figure has its source. Under load: packets of expert messages between random GPUs, in the plan's lanes,
    simulated packet by packet.
    """
    from fourlane.spec.load import load_cluster
    from fourlane.twin.fabric.latency import latency_budgets
    from fourlane.twin.fabric.published_latency import against_published

    cluster = load_cluster(given["cluster"], overrides=given["overrides"])
    within = _quantity(Duration, "--within", given["within"])
    budgets = latency_budgets(cluster, given["network"], size=_quantity(Size, "--size", given["size"]) or Size(0))
    loaded = [] if given["idle"] else _loaded(cluster, given, within or BUDGET)
    found = _Found(budgets, loaded, against_published() if given["published"] else [])
    if given["output"] is not None:
        _draw(given["output"], cluster, found, _quantity(Size, "--message", given["message"]), within or BUDGET)
    if given["as_json"]:
        _print_json(found)
    else:
        _print(found, within or BUDGET, given["output"])
    if within is not None:
        _check(found, within)


class _Found(NamedTuple):
    budgets: list[PathBudget]
    loaded: list[LoadedLatency]
    published: list[Comparison]


def _loaded(cluster: Cluster, given: dict[str, Any], budget: Duration) -> list[LoadedLatency]:
    from fourlane.lanes.plan import load_plan
    from fourlane.twin.fabric.loaded_latency import Traffic, loaded_latencies

    plan = None if given["plan"] is None else load_plan(given["plan"])
    message = _quantity(Size, "--message", given["message"])
    traffic = Traffic(message=message or Size(0), background=given["background"])
    loads = given["loads"] or _LOADS
    with many_bar() as progress:
        return loaded_latencies(cluster, loads, plan=plan, traffic=traffic, budget=budget, progress=progress)


def _print_json(found: _Found) -> None:
    import msgspec

    paths = [{**msgspec.structs.asdict(budget), "total": budget.total} for budget in found.budgets]
    shown = {"paths": paths, "loaded": found.loaded, "published": found.published}
    click.echo(msgspec.json.format(msgspec.json.encode(shown, enc_hook=str), indent=2))


def _print(found: _Found, budget: Duration, output: Path | None) -> None:
    from fourlane.report.tables import console, print_table

    out = console(width=200)
    notes: dict[str, int] = {}
    for each in found.budgets:
        print_table(out, _budget(each, notes))
        out.print()
    for source, number in notes.items():
        out.print(f"[{number}] {source}", markup=False, soft_wrap=True)
    tables = [_under_load(found.loaded, budget)] if found.loaded else []
    for table in [*tables, *([_published(found.published)] if found.published else [])]:
        out.print()
        print_table(out, table)
    if output is not None:
        out.print(f"\npicture: {output}", markup=False, soft_wrap=True)


def _check(found: _Found, within: Duration) -> None:
    """Refuse what takes longer.

    Raises:
        CheckFailed: naming it.
    """
    from fourlane.errors import CheckFailed

    late = [f"{each.name}, idle: {int(each.total) / 1e6:.3f} us" for each in found.budgets if each.total > within]
    late += [f"p99 at load {each.load:g}: {each.p99_us:.3f} us" for each in found.loaded if each.p99_us * 1e6 > within]
    if late:
        raise CheckFailed(f"expected at most {within}, got " + "; ".join(late))


def _quantity(kind: type[Q], option: str, text: str | None) -> Q | None:
    from fourlane.errors import SpecError

    try:
        return None if text is None else kind.parse(text)
    except ValueError as error:
        raise SpecError(f"{option}: {error}") from error


def _under_load(loaded: list[LoadedLatency], budget: Duration) -> Table:
    from fourlane.report.tables import Table, percent

    rows = tuple(
        (
            percent(each.load),
            f"{each.p50_us:.3f}",
            f"{each.p99_us:.3f}",
            f"{each.p999_us:.3f}",
            percent(each.within),
            f"{each.packets:,}",
            f"{each.dropped:,}",
            f"{each.marked:,}",
            f"{each.pauses:,}",
        )
        for each in loaded
    )
    columns = ("load", "p50 us", "p99 us", "p99.9 us", f"below {budget}", "packets", "dropped", "marked", "pauses")
    return Table(title="Expert packets under load, in the plan's lanes", columns=columns, rows=rows)


_PIECES = (("NIC", "NIC"), ("PCIe", "PCIe"), ("error", "error correction"))


def _draw(path: Path, cluster: Cluster, found: _Found, message: Size | None, budget: Duration) -> None:
    from fourlane.report.fabric_latency_plot import IdlePath, LoadCurve, plot_latency
    from fourlane.twin.fabric.loaded_latency import idle_packet

    idle = [IdlePath(f"{each.name}\n{each.size}", _parts(each)) for each in found.budgets]
    curve = None
    if found.loaded:
        rows = sorted(found.loaded, key=lambda each: each.load)
        curves = {
            "p50": [each.p50_us for each in rows],
            "p99": [each.p99_us for each in rows],
            "p99.9": [each.p999_us for each in rows],
        }
        alone = int(idle_packet(cluster, message or Size(0))) / 1e6
        curve = LoadCurve([each.load for each in rows], curves, alone)
    plot_latency(path, idle, curve, title=f"Latency of cluster {cluster.name}", budget_us=int(budget) / 1e6)


def _parts(budget: PathBudget) -> dict[str, float]:
    """Return the us of a path by kind of piece."""
    found: dict[str, float] = {}
    for row in budget.rows:
        named = [kind for begin, kind in _PIECES if row.what.startswith(begin)]
        other = "cable" if row.where == "cable" else "bytes on the wire" if " bytes at " in row.what else "switch"
        kind = named[0] if named else other
        found[kind] = found.get(kind, 0.0) + int(row.time) / 1e6
    return found


def _budget(budget: PathBudget, notes: dict[str, int]) -> Table:
    """Return the table of a path; `notes` gets the number of each source."""
    from fourlane.report.tables import Table

    rows: list[tuple[str, ...]] = []
    passed = 0
    for row in budget.rows:
        passed += int(row.time)
        number = notes.setdefault(row.source, len(notes) + 1)
        rows.append((row.where, row.what, nanoseconds(row.time), nanoseconds(Duration(passed)), f"[{number}]"))
    total = f"{int(budget.total) / 1e6:.3f} us"
    title = f"{budget.name}, {budget.source} to {budget.destination}, {budget.size}: {total}"
    return Table(title=title, columns=("where", "what", "ns", "so far", "source"), rows=tuple(rows), left=_LEFT)


_LEFT = frozenset({"what"})


def nanoseconds(time: Duration) -> str:
    """Write a duration in ns with two decimals."""
    return f"{int(time) / 1e3:,.2f}"


def _published(compared: list[Comparison]) -> Table:
    from fourlane.report.tables import Table

    rows = tuple(
        (
            row.network,
            row.path,
            f"{row.published_us:.1f}",
            f"{row.budget_us:.2f}",
            f"{row.error:+.1%}",
            row.assumed,
            row.source,
        )
        for row in compared
    )
    columns = ("published", "path", "us", "budget", "off", "assumed", "source")
    return Table(title="", columns=columns, rows=rows, left=frozenset({"path", "assumed", "source"}))
