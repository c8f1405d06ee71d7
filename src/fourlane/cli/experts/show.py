"""`fourlane experts show`: a load or a placement at a glance - summary, heat map, balance over time."""

from __future__ import annotations

import sys
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fourlane.cli.experts.inputs import (
    json_option,
    loads_of,
    output_option,
    phase_option,
    placement_of,
    show_json,
    slots_of,
    with_load,
)
from fourlane.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.policy.expert_statistics import LoadHistory
    from fourlane.policy.placement import Placement
    from fourlane.report.expert_plots import BalanceCurve
    from fourlane.report.tables import Table

__all__ = ["show"]

FORMS = ("fourlane", "sglang", "vllm")
_SHADES = " ·░▒▓█"
_STEPS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Loads over the mean at which the terminal's heat map takes the next shade."""
_WIDE, _HIGH = 64, 15
_LINES = 12
EXAMPLES = """\b
Examples:
  fourlane experts show loads.npz --plot loads.png
  fourlane experts show loads.npz --ranks 32 --redundant 32               balance over time, linear and placed
  fourlane experts show loads.npz --placement placement.json --phase decode
  fourlane experts show http://127.0.0.1:8000 --ranks 4                   what a running service has seen
  fourlane experts show http://127.0.0.1:8000 -o loads.npz                keep it; .json and .safetensors as well
  fourlane experts show loads.npz --phase decode --form sglang -o logical_count.json
  fourlane experts show placement.json --plot placement.png
"""


@click.command(epilog=EXAMPLES)
@click.argument("source")
@click.option("--ranks", type=click.IntRange(1), help="Tell balance over time in linear placement on so many ranks.")
@click.option("--redundant", type=click.IntRange(0), help="And in one made, with so many copies, a window before.")
@click.option("--placement", type=click.Path(path_type=Path, dir_okay=False), help="Tell balance in this one too.")
@phase_option
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it here (.png, .svg, .pdf, .html).")
@output_option("Write the loads here (.json, .npz, .safetensors).")
@click.option(
    "--form", type=click.Choice(FORMS), default=FORMS[0], show_default=True, help="Of the loads written, one phase's."
)
@json_option
def show(*, source: str, plot: Path | None, as_json: bool, output: Path | None, form: str, **given: Any) -> None:
    """Show SOURCE: a load file, a placement file, or the loads of the service at an http address."""
    if _is_placement(source):
        if output is not None:
            raise SpecError("--output: expected a SOURCE that holds loads; `fourlane experts export` writes placements")
        _show_placement(Path(source), plot=plot, as_json=as_json)
        return
    loads = _histories(source, given["phase"])
    views = [_view(name, history, _placements(history, given)) for name, history in loads.items()]
    if plot is not None:
        _draw(plot, views, title=_title(source, views))
        click.echo(f"written: {plot}", file=sys.stderr)
    if output is not None:
        from fourlane.spec.expert_files import write_loads

        write_loads(output, loads, source=source, form=form)
        click.echo(f"written: {output}", file=sys.stderr)
    if as_json:
        show_json({"source": source, "phases": {view.phase: view.figures() for view in views}})
    else:
        _print(source, views)


class _View(NamedTuple):
    """One phase: its history over the layers that got tokens, and balance over its windows by placement."""

    phase: str
    history: LoadHistory
    left_out: int
    over_time: dict[str, NDArray[Any]]

    @property
    def share_LE(self) -> NDArray[Any]:  # noqa: N802 - a shape suffix
        load_LE = self.history.load_LE
        return load_LE / load_LE.mean(axis=1, keepdims=True)

    def figures(self) -> dict[str, Any]:
        import numpy as np

        share_LE, history = self.share_LE, self.history
        lag_one, drift = history.lag_one_L, history.drift_L
        return {
            "layers": history.layers,
            "layers_without_load": self.left_out,
            "experts": history.experts,
            "windows": history.windows,
            "window_steps": history.window_steps,
            "tokens": float(history.load_WLE.sum()),
            "variation": _spread(share_LE.std(axis=1)),
            "hottest": _spread(share_LE.max(axis=1)),
            "coldest": _spread(share_LE.min(axis=1), worst=np.min),
            "lag_one": _spread(lag_one, worst=np.min),
            "drift": _spread(drift),
            "balance_over_time": {
                name: {"mean": each.mean(axis=1).tolist(), "worst": each.max(axis=1).tolist()}
                for name, each in self.over_time.items()
            },
        }


def _spread(value_L: NDArray[Any], worst: Any = None) -> dict[str, float] | None:
    """Return the mean and the worst of layers; None where it is known of none."""
    import numpy as np

    known = value_L[~np.isnan(value_L)]
    return {"mean": float(known.mean()), "worst": float((worst or np.max)(known))} if known.size else None


def _is_placement(source: str) -> bool:
    if source.startswith(("http://", "https://")) or source.endswith(".pt"):
        return False
    from fourlane.spec.expert_containers import read_container
    from fourlane.spec.expert_files import PLACEMENT_FORMAT

    held = read_container(Path(source))
    return isinstance(held, dict) and held.get("format") == PLACEMENT_FORMAT


def _histories(source: str, phase: str | None) -> dict[str, LoadHistory]:
    from typing import cast

    from fourlane.policy.expert_statistics import LoadHistory, Phase

    found = loads_of(source)
    if phase is not None and phase not in found:
        raise SpecError(f"--phase: expected one of {source}'s phases ({', '.join(found)}), got {phase}")
    return {
        name: LoadHistory(each.load_WLE, phase=cast("Phase", name), window_steps=each.window_steps, source=source)
        for name, each in found.items()
        if phase in (None, name)
    }


def _placements(history: LoadHistory, given: dict[str, Any]) -> dict[str, list[Placement | None]]:
    """Return the placements whose balance is told, by name: one a window, None where there is none yet.

    Raises:
        SpecError: the placement is of other layers or experts than the load.
    """
    from fourlane.policy.placement import linear_placement

    made = None if given["placement"] is None else placement_of(given["placement"])
    ranks = given["ranks"] or (None if made is None else made.ranks)
    if ranks is None:
        if given["redundant"] is not None:
            raise SpecError("--redundant: expected with --ranks, which says where the copies go")
        return {}
    flat = linear_placement(layers=history.layers, experts=history.experts, ranks=ranks)
    found: dict[str, list[Placement | None]] = {"linear": [flat] * history.windows}
    if made is not None:
        if (made.layers, made.experts) != (history.layers, history.experts):
            raise SpecError(
                f"--placement: expected {history.layers} layers of {history.experts} experts as the load has, "
                f"got {made.layers} of {made.experts}"
            )
        found["placement"] = [made] * history.windows
    if given["redundant"] is not None:
        found["placed a window before"] = _placed_before(history, ranks, given["redundant"])
    return found


def _placed_before(history: LoadHistory, ranks: int, redundant: int) -> list[Placement | None]:
    from fourlane.cli.progress_bar import steps_bar
    from fourlane.policy.placement import place_experts

    slots = slots_of(history.experts, ranks, redundant)
    found: list[Placement | None] = [None]
    with steps_bar() as progress:
        for window in range(history.windows - 1):
            progress(window, history.windows, f"window {window}")
            found.append(place_experts(history.load_WLE[window], ranks=ranks, slots=slots, split_aware=False))
    return found


def _view(phase: str, history: LoadHistory, placements: dict[str, list[Placement | None]]) -> _View:
    import numpy as np

    from fourlane.policy.expert_statistics import LoadHistory

    counted = with_load(history.load_WLE)
    if not counted.any():
        raise SpecError(f"{history.source}: {phase}: expected tokens, got none in any layer")
    unknown_L = np.full(history.layers, np.nan)
    over_time = {
        name: np.stack(
            [
                unknown_L if plan is None else plan.balance(load_LE)
                for plan, load_LE in zip(plans, history.load_WLE, strict=True)
            ]
        )[:, counted]
        for name, plans in placements.items()
    }
    kept = LoadHistory(history.load_WLE[:, counted], phase=history.phase, window_steps=history.window_steps)
    return _View(phase, kept, int((~counted).sum()), over_time)


def _title(source: str, views: list[_View]) -> str:
    history = views[0].history
    name = source if source.startswith("http") else Path(source).name
    return f"{name}: {history.layers} layers of {history.experts} experts"


def _print(source: str, views: list[_View]) -> None:
    from fourlane.report.tables import console, print_table

    out = console(width=140)
    out.print(_title(source, views), markup=False, soft_wrap=True)
    out.print()
    print_table(out, _summary(views))
    for view in views:
        out.print()
        for line in _heat(view):
            out.print(line, markup=False, no_wrap=True, overflow="ignore", crop=False)
        if view.over_time:
            out.print()
            print_table(out, _windows(view))


def _summary(views: list[_View]) -> Table:
    from fourlane.report.tables import Table, number

    def pair(found: dict[str, float] | None, form: str = ".3f") -> str:
        return "-" if found is None else f"{found['mean']:{form}} / {found['worst']:{form}}"

    rows = []
    for view in views:
        found = view.figures()
        steps = "" if found["window_steps"] is None else f" of {found['window_steps']} steps"
        layers = f"{found['layers']}" + (f" + {view.left_out} without load" if view.left_out else "")
        rows.append(
            (
                view.phase,
                layers,
                f"{found['windows']}{steps}",
                number(found["tokens"], 4),
                pair(found["variation"], ".2f"),
                pair(found["hottest"], ".1f"),
                pair(found["lag_one"]),
                pair(found["drift"]),
            )
        )
    columns = ("mean / worst layer", "layers", "windows", "tokens x experts", "variation", "hottest / mean")
    return Table(title="", columns=(*columns, "lag-one", "load moved"), rows=tuple(rows))


def _heat(view: _View) -> list[str]:
    """Return a heat map in shades: layers down, experts across; the hottest of those that share a cell."""
    import numpy as np

    share_LE = view.share_LE
    rows, columns = (_cut(count, most) for count, most in zip(share_LE.shape, (_HIGH, _WIDE), strict=True))
    cells = np.maximum.reduceat(share_LE, columns[:-1], axis=1)
    cells = np.maximum.reduceat(cells, rows[:-1], axis=0)
    shades = np.searchsorted(_STEPS, cells, side="right")
    lines = [f"{view.phase}: hottest expert of each cell over the mean"]
    for row, first in zip(shades, rows, strict=False):
        lines.append(f"layer {first:3}  {''.join(_SHADES[shade] for shade in row)}")
    legend = "  ".join(f"{shade} {step:g}" for shade, step in zip(_SHADES[1:], _STEPS, strict=True))
    return [*lines, f"           experts 0 to {share_LE.shape[1] - 1} across; from: {legend}"]


def _cut(count: int, most: int) -> list[int]:
    """Return where `count` things are cut into at most `most` runs."""
    runs = min(count, most)
    return [run * count // runs for run in range(runs + 1)]


def _windows(view: _View) -> Table:
    from fourlane.report.tables import Table

    windows = view.history.windows
    shown = sorted({place * (windows - 1) // max(min(windows, _LINES) - 1, 1) for place in range(min(windows, _LINES))})
    rows = tuple((f"{window}", *(_pair(each[window]) for each in view.over_time.values())) for window in shown)
    title = f"{view.phase}: max/mean over ranks, mean / worst layer"
    return Table(title=title, columns=("window", *view.over_time), rows=rows)


def _pair(balance_L: NDArray[Any]) -> str:
    mean = float(balance_L.mean())
    return "-" if isnan(mean) else f"{mean:.3f} / {balance_L.max():.3f}"


def _draw(path: Path, views: list[_View], *, title: str) -> None:
    from fourlane.report.expert_plots import BalanceCurve, PhasePicture, plot_loads

    pictures = []
    for view in views:
        curves: list[BalanceCurve] = []
        if view.history.windows > 1:
            curves = [BalanceCurve(name, each.mean(axis=1), each.max(axis=1)) for name, each in view.over_time.items()]
        pictures.append(PhasePicture(view.phase, view.history.load_LE, curves))
    plot_loads(path, pictures, title=title)


def _show_placement(path: Path, *, plot: Path | None, as_json: bool) -> None:
    """Show what a placement file holds."""
    from fourlane.report.tables import Table, console, print_table

    made = placement_of(path)
    if plot is not None:
        from fourlane.report.expert_plots import PlacementPicture, plot_placement

        plot_placement(plot, PlacementPicture(made.copies_LE, None), title=f"{path.name}: {made.ranks} ranks")
        click.echo(f"written: {plot}", file=sys.stderr)
    held_L = made.copies_LE.sum(axis=1)
    most_L, several_L = made.copies_LE.max(axis=1), (made.copies_LE > 1).sum(axis=1)
    if as_json:
        figures = {"held_slots": held_L, "most_copies": most_L, "replicated_experts": several_L}
        show_json({"layers": made.layers, "experts": made.experts, "ranks": made.ranks, "slots": made.slots, **figures})
        return
    out = console(width=120)
    rows = (
        ("experts", f"{made.experts:,}"),
        ("ranks", f"{made.ranks:,}"),
        ("slots a rank", f"{made.slots_per_rank:,}"),
        ("redundant replicas a layer", _range(held_L - made.experts)),
        ("empty slots a layer", _range(made.slots - held_L)),
        ("experts with several replicas", _range(several_L)),
        ("most replicas of an expert", _range(most_L)),
    )
    print_table(out, Table(title="", columns=(path.name, f"{made.layers:,} layers"), rows=rows))


def _range(value_L: NDArray[Any]) -> str:
    low, high = int(value_L.min()), int(value_L.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
