"""Published measurements beside the simulator: expert dispatch and combine, collisions, marks, interference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fabric_validation.page import Claim, Part, Plot, Table
from fourlane.report.plots import BLUE, GREY, ORANGE, figure_of, save_figure
from fourlane.twin.fabric.exchange_validation import Exchange, draws, simulate_exchanges
from fourlane.twin.fabric.expert_kernels import expert_kernels, published_exchanges
from fourlane.twin.fabric.network_validation import observations, published_network, simulate_observation
from fourlane.units import Rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from fourlane.twin.fabric.exchange_validation import SimulatedExchange

__all__ = ["busiest_receiver", "expert_exchange", "networks"]

BOTTLENECKS = {"nic": "NIC", "nvlink": "NVLink"}


def expert_exchange() -> Part:
    """Simulate every published row of dispatch and combine."""
    part = Part("Expert dispatch and combine", _EXCHANGE, against="published")
    found = simulate_exchanges(published_exchanges())
    for each in found:
        unit = "GB/s" if each.row.in_rates else "us"
        name = f"{each.row.name}: {each.operation}"
        named = f"{each.published:g} {unit}, {BOTTLENECKS[each.row.bottleneck]}"
        ours = f"{each.figure:.1f} {unit} ({each.error:+.1%}), {BOTTLENECKS[each.bottleneck]}"
        kind = "fitted" if each.row.was_fitted(each.operation) else "predicted"
        bar = f"within {each.row.tolerance:.0%}, same bottleneck; {kind}"
        part.claims.append(Claim(name, named, ours, bar, each.within))
        part.figures[name] = round(each.figure, 6)
    part.tables += [_made_of(found), _kernels()]
    part.plots.append(Plot("fabric-measurements-exchange", "Published and simulated times and rates", _picture(found)))
    part.remarks.append(_summary(found))
    return part


def _summary(found: Sequence[SimulatedExchange]) -> str:
    lines = []
    for kind, chosen in (("predicted", False), ("fitted", True)):
        errors = np.array([abs(each.error) for each in found if each.row.was_fitted(each.operation) is chosen])
        lines.append(f"{len(errors)} figures are {kind}: mean error {errors.mean():.1%}, largest {errors.max():.1%}.")
    return " ".join(lines)


def _made_of(found: Sequence[SimulatedExchange]) -> Table:
    rows = [
        (
            f"{each.row.name}: {each.operation}",
            f"{each.network_us:.1f}",
            f"{each.beside_us:.1f}",
            f"{each.nic:.0%}",
            f"{each.nvlink:.0%}",
            f"{min(each.figures):.1f} to {max(each.figures):.1f} ({len(each.figures)})",
        )
        for each in found
    ]
    columns = ("row", "packets on ports, us", "beside them, us", "busiest NIC", "busiest NVLink", "draws of routing")
    return Table("What the simulated figures are made of, and how far chance moves them", columns, rows)


def _kernels() -> Table:
    """Return the figures of each generation of kernels, and the rows they were fitted on."""
    rows = []
    for name, kernels in expert_kernels().items():
        for field, value in msgspec.structs.asdict(kernels).items():
            if field in ("fitted", "source") or not value:
                continue
            parts = msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else {"": value}
            text = ", ".join(f"{key} {_text(each)}".strip() for key, each in parts.items())
            rows.append((name, field, text, "; ".join(kernels.fitted.get(field, ())) or "not fitted"))
    return Table("Figures of the kernels and their hardware", ("kernels", "figure", "value", "fitted on"), rows)


def _text(value: object) -> str:
    """Return a quantity; rates in GB/s, as they are written."""
    return f"{int(value) / 8e9:g} GB/s" if isinstance(value, Rate) else str(value)


def _picture(found: Sequence[SimulatedExchange]) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        with figure_of("Expert dispatch and combine: published and simulated", height=4.8) as figure:
            left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
            _draw_times(left, [each for each in found if not each.row.in_rates])
            _draw_errors(right, found)
            save_figure(figure, path)

    return draw


def _draw_times(axes: Axes, found: Sequence[SimulatedExchange]) -> None:
    """Draw simulated over published times on logarithmic axes."""
    ends = np.array([min(each.published for each in found) / 1.3, max(each.published for each in found) * 1.3])
    axes.plot(ends, ends, color=GREY, linewidth=0.8)
    _mark(axes, found, lambda each: (each.published, each.figure))
    axes.set_title("Low-latency kernels: time")
    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        ticks = [20, 40, 80, 160, 320]
        axis.set_ticks(ticks, [str(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set_xlabel("published, us")
    axes.set_ylabel("simulated, us")
    axes.legend(frameon=False, loc="upper left")


def _draw_errors(axes: Axes, found: Sequence[SimulatedExchange]) -> None:
    """Draw each row's errors in its band of tolerance."""
    rows = list(dict.fromkeys(each.row.name for each in found))
    bands = {each.row.name: 100 * each.row.tolerance for each in found}
    axes.barh(rows, [2 * bands[row] for row in rows], left=[-bands[row] for row in rows], color=GREY, alpha=0.15)
    axes.axvline(0, color=GREY, linewidth=0.8)
    _mark(axes, found, lambda each: (100 * each.error, rows.index(each.row.name)))
    axes.invert_yaxis()
    axes.set_title("Error, and what is allowed")
    axes.set_xlabel("simulated above published, %")


def _mark(
    axes: Axes, found: Sequence[SimulatedExchange], place: Callable[[SimulatedExchange], tuple[float, float]]
) -> None:
    for operation, marker in (("dispatch", "o"), ("combine", "s")):
        for fitted, colour in ((False, BLUE), (True, ORANGE)):
            chosen = [e for e in found if e.operation == operation and e.row.was_fitted(e.operation) is fitted]
            label = f"{operation}, {'fitted' if fitted else 'predicted'}"
            across, up = zip(*(place(each) for each in chosen), strict=True)
            axes.plot(across, up, marker, color=colour, markersize=5, alpha=0.85, linestyle="none", label=label)


def busiest_receiver() -> Part:
    """Show how unequal balanced random routing leaves ranks: it explains what a doubling of ranks costs."""
    part = Part("Balanced routing is not equal: the busiest receiver", _BUSIEST, against="published")
    rows = []
    for row in published_exchanges():
        if row.kernels != "h800" or row.mode != "low-latency" or row.nvlink:
            continue
        drawn = [Exchange(row, "dispatch", seed).traffic for seed in range(1, draws(row) + 1)]
        into = np.array([traffic.bytes_into(nvlink=False) / traffic.message for traffic in drawn])
        mean, most = into.mean(), into.max(axis=1).mean()
        rows.append(
            (f"EP{row.ranks}", f"{mean:.0f}", f"{most:.0f}", f"{most / mean:.3f}", f"{row.published('dispatch'):g}")
        )
    columns = ("ranks", "messages into a rank, mean", "into the busiest", "ratio", "published dispatch, us")
    part.tables.append(Table("Messages that 128 tokens a rank, top-8, bring by NIC", columns, rows))
    return part


def networks() -> Part:
    """Simulate every published observation of networks."""
    part = Part("Collisions, marks, interference", _NETWORKS, against="published")
    done: set[str] = set()
    apart, assumed = [], []
    for name in observations():
        for found in [] if name in done else simulate_observation(name):
            done.add(found.name)
            row = found.row
            shown = f"{found.figure:.3g} {row.unit}"
            part.figures[found.name] = round(found.figure, 6)
            assumed.append((found.name, found.scenario, row.source))
            if row.differs:
                apart.append((row.what, row.shown, shown, row.differs))
            else:
                bar = f"{row.least:g} to {row.most:g}: {row.why}"
                part.claims.append(Claim(row.what, row.shown, shown, bar, found.within))
    part.tables.append(Table("Not reproduced", ("published", "figure", "simulated", "why it differs"), apart))
    part.tables.append(Table("Scenarios and what they assume", ("observation", "scenario", "source"), assumed))
    assert done == set(published_network())
    return part


_EXCHANGE = """
Each row is run as it was measured: so many ranks, eight to a server, a 400 Gbit/s NIC each, on a rail-optimised cluster
with InfiniBand's latencies and adaptive routing; 128, 64, 16 or 4,096 tokens a rank routed at random over balanced
experts; every message cut into packets. An operation ends when the last rank has all it is sent. Times beside the
network's - launching kernels, closing the stream to each expert by an atomic, reading what combine sums - come from
`src/fourlane/twin/fabric/published/expert_kernels.toml`; all rows were in sight when the kinds of figures there, and
the rows to fit them on, were chosen. NICs run at their line rate, 50 GB/s with packet headers and acknowledgements;
only kernels that forward feed them more slowly. The bottleneck is the kind of port that was busiest in the
simulation.

Rates are as published, "logical": copies that stay in their own node are counted (on one node: on their own GPU).
DeepEP wants as many experts on each rank, which 288 at EP64 and EP256 do not give; 256 are taken there. That the H100
rows' bottleneck is the NIC on several nodes and NVLink on one is not part of what was published.
"""
_BUSIEST = """
What is published grows by some 6 us with each doubling of ranks. Latency has little part in it: less of a rank's
messages stays at home, and the busiest of more receivers is further above the mean. The bytes into that one, at line
rate, are what an operation waits for.
"""
_NETWORKS = """
Each observation is simulated by a scenario as small as shows it. Most sources do not say all that a simulation needs;
what was assumed instead stands below. InfiniBand's 58 and 57 GB/s on four nodes are of kernels four months younger than
those whose forwarding was fitted at EP64; these give less, so that only ratios are held to what was published.
"""
