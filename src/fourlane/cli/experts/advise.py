"""`fourlane experts advise`: is balancing worth switching on, with how much redundancy, and what it costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fourlane.cli.experts.inputs import (
    json_option,
    one_phase,
    phase_option,
    quantity,
    ranks_option,
    seed_option,
    show_json,
    with_load,
)
from fourlane.units import Rate, Size

if TYPE_CHECKING:
    from fourlane.policy.advice_values import Advice, Balance, Circumstances, Following
    from fourlane.report.tables import Table

__all__ = ["advise"]

EXAMPLES = """\b
Examples:
  fourlane experts advise loads.npz --ranks 32 --phase decode
  fourlane experts advise loads.npz --ranks 64 --redundant 0 --redundant 64 --redundant 128 --plot advice.png
  fourlane experts advise loads.npz --ranks 144 --memory 6GB --batch-tokens 64 --lean-sd 0.3
  fourlane experts advise http://127.0.0.1:8000 --ranks 4 --phase decode --expert-bytes 384KiB
"""


@click.command(epilog=EXAMPLES)
@click.argument("loads")
@ranks_option
@phase_option
@click.option("--redundant", type=click.IntRange(0), multiple=True, help="Redundant slots a layer to try  [a sweep].")
@click.option("--memory", metavar="SIZE", help="Redundancy may take so much of a rank's memory  [any].")
@click.option("--expert-bytes", default="44MB", show_default=True, help="Of one expert of one layer.")
@click.option("--rate", default="100Gbps", show_default=True, help="At which a rank receives weights.")
@click.option("--batch-tokens", type=click.IntRange(1), default=128, show_default=True, help="A rank's, in a batch.")
@click.option("--top-k", type=click.IntRange(1), default=8, show_default=True, help="Experts a token goes to.")
@click.option("--lean-sd", type=click.FloatRange(0), default=0.2, show_default=True, help="How much batches lean.")
@click.option("--moves", type=click.IntRange(0), help="Experts a layer that a repair may move  [as many as ranks].")
@click.option("--least-gain", type=click.FloatRange(0, 1), default=0.03, show_default=True, help="To be worth it.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it here (.png, .svg, .pdf, .html).")
@seed_option
@json_option
def advise(**given: Any) -> None:
    """Say whether balancing is worth it for LOADS, a file or a service's address, with how much redundancy, and why.

    All of it is worked out from the loads: what redundancy can buy, what placements reach, what is left of that a
    window later and in single batches, what following the load moves. Saved time is that of what follows the fullest
    rank: experts' computation and exchange.
    """
    from fourlane.cli.progress_bar import steps_bar
    from fourlane.policy.advice import advise as work_out
    from fourlane.policy.advice_verdict import verdict

    phase, load = one_phase(given["loads"], given["phase"])
    load_WLE = load.load_WLE[:, with_load(load.load_WLE)]
    with steps_bar() as progress:
        found = work_out(load_WLE, ranks=given["ranks"], circumstances=_circumstances(given), progress=progress)
    said = verdict(found)
    if given["plot"] is not None:
        _draw(given["plot"], found, f"{Path(given['loads']).name}, {phase}, {given['ranks']} ranks")
    if given["as_json"]:
        show_json({"phase": phase, "verdict": said, **_figures(found)})
    else:
        _print(found, phase, said)
    if given["plot"] is not None:
        click.echo(f"written: {given['plot']}", file=sys.stderr)


def _circumstances(given: dict[str, Any]) -> Circumstances:
    from fourlane.policy.advice_values import Circumstances

    memory, expert_bytes = (quantity(Size, f"--{name.replace('_', '-')}", given[name]) for name in _SIZES)
    rate = quantity(Rate, "--rate", given["rate"])
    return Circumstances(
        redundant=given["redundant"] or None,
        batch_tokens=given["batch_tokens"],
        top_k=given["top_k"],
        lean_sd=given["lean_sd"],
        moves=given["moves"],
        memory=None if memory is None else int(memory),
        expert_bytes=None if expert_bytes is None else int(expert_bytes),
        rate=None if rate is None else rate.bytes_per_second,
        least_gain=given["least_gain"],
        seed=given["seed"],
    )


_SIZES = ("memory", "expert_bytes")


def _figures(found: Advice) -> dict[str, Any]:
    """Return an advice as plain data."""
    following, budget = found.following, found.layer_budget
    return {
        "worthwhile": found.worthwhile,
        "redundant": found.choice.redundant,
        "layers": found.layers,
        "experts": found.experts,
        "ranks": found.ranks,
        "windows": found.windows,
        "lag_one": found.lag_one,
        "linear": _balance(found.linear),
        "linear_batches": _balance(found.linear_batches),
        "options": [
            {
                "redundant": each.redundant,
                "slots_a_rank": each.slots // found.ranks,
                **{name: _balance(getattr(each, name)) for name in ("bound", "placed", "stale", "equal", "split")},
                "extra_bytes_a_rank": each.extra_bytes,
                "gain": each.gain,
            }
            for each in found.options
        ],
        "needs": [
            {"target": need.target, "least": need.least_L.tolist(), "reached": need.reached_L.tolist()}
            for need in found.needs
        ],
        "following": None
        if following is None
        else {
            "moves_allowed": following.moves,
            "replan": {**_cost(following, "replan"), "balance": _balance(following.replan)},
            "repair": {**_cost(following, "repair"), "balance": _balance(following.repair)},
        },
        "layer_budget": None
        if budget is None
        else {
            "slots": budget.slots_L.tolist(),
            "by_layer": _balance(budget.by_layer),
            "uniform": _balance(budget.uniform),
        },
    }


def _cost(following: Following, how: str) -> dict[str, float | None]:
    return {
        "moves_a_layer": getattr(following, f"{how}_moves"),
        "bytes_a_rank": getattr(following, f"{how}_bytes"),
        "seconds": getattr(following, f"{how}_s"),
    }


def _balance(balance: Balance | None) -> dict[str, Any] | None:
    if balance is None:
        return None
    return {"mean": balance.mean, "worst": balance.worst, "layers": balance.balance_L.tolist()}


def _print(found: Advice, phase: str, said: list[str]) -> None:
    from fourlane.report.tables import console, print_table

    out = console(width=160)
    windows = f"{found.windows} window{'s' if found.windows > 1 else ''}"
    head = f"{found.layers} layers of {found.experts} experts on {found.ranks} ranks, {phase}, {windows}"
    out.print(head, markup=False, soft_wrap=True)
    out.print()
    print_table(out, _options(found))
    out.print()
    print_table(out, _needs(found))
    out.print()
    for sentence in said:
        out.print(f"- {sentence}", markup=False, soft_wrap=True)


def _options(found: Advice) -> Table:
    from fourlane.report.tables import Table

    def pair(balance: Balance | None) -> str:
        return "-" if balance is None else f"{balance.mean:.3f} / {balance.worst:.3f}"

    given = found.circumstances
    first = ("linear", "", "", "", pair(found.linear), "", pair(found.linear_batches), "", "")
    rows = tuple(
        (
            f"R={each.redundant}" + (" *" if place == found.chosen else ""),
            str(each.slots // found.ranks),
            "-" if each.extra_bytes is None else f"{each.extra_bytes / 1e9:+.2f} GB",
            pair(each.bound),
            pair(each.placed),
            pair(each.stale),
            pair(each.equal),
            pair(each.split),
            f"{each.gain:.1%}",
        )
        for place, each in enumerate(found.options)
    )
    title = (
        f"max/mean, mean / worst layer; batches of {given.batch_tokens} tokens a rank that lean by {given.lean_sd:g} "
        "(* advised)"
    )
    columns = ("redundant", "slots a rank", "memory a rank", "bound", "placed", "a window later")
    return Table(title=title, columns=(*columns, "batch, equal", "batch, split", "saved"), rows=(first, *rows))


def _needs(found: Advice) -> Table:
    from fourlane.report.tables import Table

    rows = []
    for need in found.needs:
        met = need.reached_L[need.reached_L >= 0]
        reached = f"{met.mean():.0f} / {met.max()}" if met.size else "-"
        missing = found.layers - met.size
        rows.append(
            (
                f"{need.target:g}",
                f"{need.least_L.mean():.1f} / {need.least_L.max()}",
                reached,
                "all" if not missing else f"{met.size} of {found.layers}",
            )
        )
    columns = ("to hold max/mean", "R at least, mean / worst", "R placed, mean / worst", "layers reached")
    return Table(title="", columns=columns, rows=tuple(rows))


def _draw(path: Path, found: Advice, title: str) -> None:
    import numpy as np

    from fourlane.report.expert_plots import AdvicePicture, BalanceCurve, NeedCurve, plot_advice

    names = {
        "bound": "no placement can be better",
        "placed": "placed",
        "stale": "a window later",
        "equal": "its batches, shared equally",
        "split": "its batches, split by counts",
    }
    curves = []
    for name, label in names.items():
        balances = [getattr(each, name) for each in found.options]
        if balances[0] is not None:
            means, worst = (np.array([getattr(each, kind) for each in balances]) for kind in ("mean", "worst"))
            curves.append(BalanceCurve(label, means, None if name == "bound" else worst))
    sizes = [each.extra_bytes for each in found.options]
    means = [("linear", found.linear_batches.mean)]
    means += [("placed", found.choice.equal.mean), ("placed and split", found.choice.split.mean)]
    picture = AdvicePicture(
        redundant=np.array([each.redundant for each in found.options]),
        extra_bytes=None if None in sizes else np.array(sizes),
        curves=curves,
        needs=[NeedCurve(*need) for need in found.needs],
        means=means,
        chosen=found.choice.redundant,
    )
    plot_advice(path, picture, title=title)
