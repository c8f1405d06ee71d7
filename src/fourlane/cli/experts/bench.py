"""`fourlane experts bench`: placements and ways to choose replicas, side by side in one run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fourlane.cli.experts.generate import MODELS, drawn_loads
from fourlane.cli.experts.inputs import (
    json_option,
    one_phase,
    phase_option,
    placement_of,
    seed_option,
    show_json,
    slots_of,
    with_load,
)
from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fourlane.policy.placement import Placement
    from fourlane.report.tables import Table

    Choice = Callable[[NDArray[Any], Placement, int], NDArray[Any]]

__all__ = ["bench"]

OWN = "own counts"
"""The choice that each rank makes for itself; the others are made for all ranks."""
EXAMPLES = """\b
Examples:
  fourlane experts bench                                        loads like those of decoding, 32 ranks, 32 copies
  fourlane experts bench --model zipf --ranks 64 --redundant 64 --nodes 8 --groups 8
  fourlane experts bench loads.npz --phase decode --ranks 144 --redundant 32 --batch-tokens 64
  fourlane experts bench loads.npz --phase decode --placement mine.json --plot bench.png --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("loads", required=False)
@click.option("--model", type=click.Choice(MODELS), default="decode", show_default=True, help="Loads, without a file.")
@click.option("--exponent", type=click.FloatRange(0), default=1.0, show_default=True, help="Of zipf.")
@click.option("--sigma", type=click.FloatRange(0), default=0.75, show_default=True, help="Of lognormal.")
@click.option("--rho", type=click.FloatRange(0, 1), default=0.98, show_default=True, help="Of successive windows.")
@click.option("--layers", type=click.IntRange(1), default=16, show_default=True, help="Drawn, without a file.")
@click.option("--experts", type=click.IntRange(1), default=256, show_default=True, help="Drawn, without a file.")
@phase_option
@click.option("--ranks", type=click.IntRange(2), default=32, show_default=True, help="Ranks that share the experts.")
@click.option("--redundant", type=click.IntRange(0), help="Copies of a layer  [as many as ranks].")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes that the ranks are on.")
@click.option("--groups", type=click.IntRange(1), help="Compare placement by groups of experts in nodes too.")
@click.option(
    "--moves", type=click.IntRange(0), help="Experts of a layer that the repair may move  [as many as ranks]."
)
@click.option("--placement", "files", multiple=True, type=click.Path(path_type=Path, dir_okay=False), help="This too.")
@click.option("--batches", type=click.IntRange(1), default=2, show_default=True, help="Of each layer.")
@click.option("--batch-tokens", type=click.IntRange(1), default=128, show_default=True, help="A rank's, in a batch.")
@click.option("--top-k", type=click.IntRange(1), default=8, show_default=True, help="Experts a token goes to.")
@click.option("--lean-sd", type=click.FloatRange(0), default=0.2, show_default=True, help="How much batches lean.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it here (.png, .svg, .pdf, .html).")
@seed_option
@json_option
def bench(**given: Any) -> None:
    """Compare placements for LOADS, and ways to choose among replicas, in one run; without LOADS, for drawn ones.

    Placements are made from the window before the last, and meet the last: its load as a whole, and batches drawn from
    it that lean. Batches are split in every way over every placement. All figures are max/mean tokens over ranks.
    """
    phase, load_WLE = _loads(given)
    given["redundant"] = given["ranks"] if given["redundant"] is None else given["redundant"]
    found = _measure(load_WLE, given)
    if given["plot"] is not None:
        _draw(given["plot"], found, _title(phase, load_WLE, given))
        click.echo(f"written: {given['plot']}", file=sys.stderr)
    if given["as_json"]:
        show_json({"phase": phase, "placements": [each.figures(found[0]) for each in found]})
    else:
        _print(found, _title(phase, load_WLE, given))


class _Measured(NamedTuple):
    """One placement: what it took to make it, its balance of the load it was made from and of the next, and batches.

    Units:
        choices: by how replicas are chosen, max/mean of batches [layers]. choice_us: what choosing takes a batch.
    """

    name: str
    made_s: float
    own_L: NDArray[Any]
    next_L: NDArray[Any]
    choices: dict[str, NDArray[Any]]
    choice_us: dict[str, float]

    @property
    def best(self) -> float:
        return float(self.choices["all counts"].mean())

    def figures(self, first: _Measured) -> dict[str, Any]:
        def pair(balance_L: NDArray[Any]) -> dict[str, float]:
            return {"mean": float(balance_L.mean()), "worst": float(balance_L.max())}

        return {
            "placement": self.name,
            "made_ms": self.made_s * 1e3,
            "own": pair(self.own_L),
            "next": pair(self.next_L),
            "batches": {name: pair(balance_L) for name, balance_L in self.choices.items()},
            "choice_us": self.choice_us,
            "ratio": self.best / first.best,
        }


def _loads(given: dict[str, Any]) -> tuple[str, NDArray[Any]]:
    """Return the phase and its windows over layers with load: of the file, or drawn."""
    if given["loads"] is not None:
        phase, load = one_phase(given["loads"], given["phase"])
        return phase, load.load_WLE[:, with_load(load.load_WLE)]
    import numpy as np

    settings = {**given, "windows": 3, "groups": min(8, given["experts"]), "correlation": 0.8, "tokens": 1 << 20}
    drawn = drawn_loads(np.random.default_rng(given["seed"]), settings)
    phase = given["phase"] or next(reversed(drawn))
    if phase not in drawn:
        raise SpecError(f"--phase: expected one of {', '.join(drawn)} with --model {given['model']}, got {phase}")
    return phase, drawn[phase].load_WLE


def _measure(load_WLE: NDArray[Any], given: dict[str, Any]) -> list[_Measured]:
    from fourlane.cli.progress_bar import steps_bar

    layers = load_WLE.shape[1]
    with steps_bar() as progress:
        batches = []
        for layer in range(layers):
            progress(layer, 3 * layers, "drawing batches")
            batches.append(_batches(load_WLE[-1, layer], layer, given))
        made = _placements(load_WLE, given)
        found = []
        for done, (name, (plan, made_s)) in enumerate(made.items()):
            progress(layers + 2 * layers * done // len(made), 3 * layers, name)
            choices, choice_us = _split(batches, plan)
            own_L, next_L = plan.balance(load_WLE[-2:][0]), plan.balance(load_WLE[-1])
            found.append(_Measured(name, made_s, own_L, next_L, choices, choice_us))
    return found


def _batches(load_E: NDArray[Any], layer: int, given: dict[str, Any]) -> list[NDArray[Any]]:
    import numpy as np

    from fourlane.policy.load_generator import leaning_batch

    rng = np.random.default_rng((given["seed"], layer))
    return [
        leaning_batch(
            load_E,
            rng,
            ranks=given["ranks"],
            tokens=given["batch_tokens"],
            lean_sd=given["lean_sd"],
            top_k=given["top_k"],
        )
        for _ in range(given["batches"])
    ]


def _placements(load_WLE: NDArray[Any], given: dict[str, Any]) -> dict[str, tuple[Placement, float]]:
    """Make the placements, and measure how long each took."""
    from fourlane.policy.placement import linear_placement, place_experts

    layers, experts = load_WLE.shape[1:]
    ranks, redundant = given["ranks"], given["redundant"]
    slots = slots_of(experts, ranks, redundant)
    load_LE = load_WLE[-2:][0]

    def placed(**how: Any) -> Callable[[], Placement]:
        return lambda: place_experts(load_LE, ranks=ranks, slots=slots, nodes=given["nodes"], seed=given["seed"], **how)

    makers: dict[str, Callable[[], Placement]] = {
        "linear": lambda: linear_placement(layers=layers, experts=experts, ranks=ranks),
        "linear, with copies": lambda: linear_placement(
            layers=layers, experts=experts, ranks=ranks, redundant=redundant
        ),
    }
    if given["groups"] is not None:
        makers["by groups in nodes"] = placed(groups=given["groups"])
    makers["placed"] = placed(split_aware=False)
    if len(load_WLE) > 2:
        old = place_experts(load_WLE[-3], ranks=ranks, slots=slots, nodes=given["nodes"], seed=given["seed"])
        moves = ranks if given["moves"] is None else given["moves"]
        makers[f"repaired, {moves} moves"] = placed(previous=old, moves=moves)
    makers["placed to be split"] = placed()
    for file in given["files"]:
        makers[file.name] = _reader(file, load_WLE, ranks)
    return {name: _timed(make) for name, make in makers.items()}


def _timed(make: Callable[[], Placement]) -> tuple[Placement, float]:
    began = time.perf_counter()
    made = make()
    return made, time.perf_counter() - began


def _reader(file: Path, load_WLE: NDArray[Any], ranks: int) -> Callable[[], Placement]:
    """Return what reads a placement file.

    Raises:
        SpecError: it is of another shape.
    """
    made = placement_of(file)
    wanted = (*load_WLE.shape[1:], ranks)
    if (found := (made.layers, made.experts, made.ranks)) != wanted:
        told = ["{} layers of {} experts on {} ranks".format(*shape) for shape in (wanted, found)]
        raise SpecError(f"--placement {file}: expected {told[0]}, got {told[1]}")
    return lambda: made


def _choices() -> dict[str, Choice]:
    """Return the ways to choose replicas: each says how many of each rank's tokens go to each slot."""
    from fourlane.policy.token_split import split_equally, split_tokens

    return {
        "equally": lambda count_GE, plan, layer: split_equally(count_GE, plan, layer).quota_GP,
        OWN: _split_locally,
        "all counts": lambda count_GE, plan, layer: split_tokens(count_GE, plan, layer).quota_GP,
    }


def _split_locally(count_GE: NDArray[Any], plan: Placement, layer: int) -> NDArray[Any]:
    import numpy as np

    from fourlane.policy.token_split import split_local_tokens

    return np.stack([split_local_tokens(count_E, plan, layer, rank=rank) for rank, count_E in enumerate(count_GE)])


def _split(batches: list[list[NDArray[Any]]], plan: Placement) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Return the balance of the batches for each way to choose replicas, and what that took."""
    import numpy as np

    from fourlane.policy.token_split import rank_tokens

    found: dict[str, NDArray[Any]] = {}
    took: dict[str, float] = {}
    for name, choose in _choices().items():
        times: list[float] = []
        balance_L = np.zeros(len(batches))
        for layer, drawn in enumerate(batches):
            for count_GE in drawn:
                began = time.perf_counter()
                quota_GP = choose(count_GE, plan, layer)
                times.append(time.perf_counter() - began)
                tokens_G = rank_tokens(quota_GP, plan.ranks)
                balance_L[layer] += tokens_G.max() / tokens_G.mean() / len(drawn)
        found[name], took[name] = balance_L, float(np.median(times)) * 1e6 / (plan.ranks if name == OWN else 1)
    return found, took


def _title(phase: str, load_WLE: NDArray[Any], given: dict[str, Any]) -> str:
    layers, experts = load_WLE.shape[1:]
    source = "drawn" if given["loads"] is None else Path(given["loads"]).name
    return (
        f"{source}, {phase}: {layers} layers of {experts} experts on {given['ranks']} ranks, R={given['redundant']}; "
        f"batches of {given['batch_tokens']} tokens a rank, leaning by {given['lean_sd']:g}"
    )


def _print(found: list[_Measured], title: str) -> None:
    from fourlane.report.tables import console, print_table

    out = console(width=180)
    out.print(title, markup=False, soft_wrap=True)
    out.print()
    for table in (_loads_table(found), _batches_table(found)):
        print_table(out, table)
        out.print()
    times = ", ".join(f"{name} {value:,.0f} us" for name, value in found[-1].choice_us.items())
    out.print(f"choosing replicas for a batch takes: {times} (median)", markup=False, soft_wrap=True)


def _loads_table(found: list[_Measured]) -> Table:
    from fourlane.report.tables import Table, number

    rows = tuple(
        (
            each.name,
            f"{number(each.made_s * 1e3)} ms",
            f"{each.own_L.mean():.3f} / {each.own_L.max():.3f}",
            f"{each.next_L.mean():.3f} / {each.next_L.max():.3f}",
            f"x{each.next_L.mean() / found[0].next_L.mean():.3f}",
        )
        for each in found
    )
    columns = ("load as a whole, mean / worst layer", "made in", "window it is from", "the next", "of linear")
    return Table(title="", columns=columns, rows=rows)


def _batches_table(found: list[_Measured]) -> Table:
    from fourlane.report.tables import Table

    names = list(found[0].choices)
    rows = tuple(
        (
            each.name,
            *(f"{each.choices[name].mean():.3f} / {each.choices[name].max():.3f}" for name in names),
            f"x{each.best / found[0].best:.3f}",
        )
        for each in found
    )
    columns = ("batches, replicas chosen", *names, "of linear")
    return Table(title="", columns=columns, rows=rows)


def _draw(path: Path, found: list[_Measured], title: str) -> None:
    from fourlane.report.expert_plots import plot_choices

    panels = [("next window", [float(each.next_L.mean()) for each in found])]
    panels += [(f"batch: {name}", [float(each.choices[name].mean()) for each in found]) for name in found[0].choices]
    plot_choices(path, panels, names=[each.name for each in found], title=title)
