"""`fourlane experts place`: place experts for a load, or repair a placement, and write it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fourlane.cli.experts.inputs import (
    json_option,
    one_phase,
    output_option,
    phase_option,
    placement_of,
    quantity,
    ranks_option,
    seed_option,
    show_json,
    slots_of,
    with_load,
)
from fourlane.errors import CheckFailed, SpecError
from fourlane.units import Size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.policy.placement import Placement

__all__ = ["place"]

EXAMPLES = """\b
Examples:
  fourlane experts place loads.npz --ranks 32 --redundant 32 -o placement.json
  fourlane experts place loads.npz --ranks 64 --redundant 64 --nodes 8 --groups 8 -o in_nodes.json
  fourlane experts place new.npz --ranks 32 --redundant 32 --previous placement.json --moves 32 -o mended.json
  fourlane experts place loads.npz --ranks 144 --redundant 32 --layer-budget -o by_layer.json
  fourlane experts place loads.npz --ranks 32 --redundant 32 --max-balance 1.05 -o placement.json --plot placement.png
"""


@click.command(epilog=EXAMPLES)
@click.argument("loads")
@ranks_option
@click.option(
    "--redundant", type=click.IntRange(0), help="Slots of a layer beyond one an expert  [as few as fill ranks]."
)
@click.option("--slots", type=click.IntRange(1), help="In place of --redundant: all slots of a layer.")
@click.option("--layer-budget", is_flag=True, help="Share the redundant slots of all layers out where they help most.")
@phase_option
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes that the ranks are on.")
@click.option("--groups", type=click.IntRange(1), help="Keep each of so many groups of experts on one node (EPLB).")
@click.option("--top-groups", type=click.IntRange(1), default=4, show_default=True, help="Groups a token chooses from.")
@click.option("--spread-nodes", is_flag=True, help="Put replicas of an expert on different nodes.")
@click.option("--previous", type=click.Path(path_type=Path, dir_okay=False), help="Repair this placement.")
@click.option("--moves", type=click.IntRange(0), help="Experts of a layer that the repair may move  [any number].")
@click.option(
    "--cost", default="tokens", show_default=True, help="tokens, activated (experts), or e.g. tokens=1,activated=40."
)
@click.option(
    "--split-aware/--no-split-aware", default=True, help="Place for batches that are split [default], or not."
)
@click.option("--every-slot", is_flag=True, help="Leave no slot empty, though that helps no balance (vLLM, SGLang).")
@click.option("--expert-bytes", default="44MB", show_default=True, help="Of one expert of one layer.")
@click.option("--max-balance", type=click.FloatRange(1.0), help="Exit with 1 if a layer's max/mean is above this.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw copies and ranks' loads (.png, .svg, .pdf, .html).")
@seed_option
@json_option
@output_option("Write the placement here (.json, .npz or .safetensors).")
def place(**given: Any) -> None:
    """Place the experts that LOADS counts on ranks, and tell how good that is.

    Loads of several windows are placed for together. Balance is max/mean tokens over ranks, replicas of an expert
    sharing its tokens equally; 1 is perfect. The bound says what no placement with so many slots can beat.
    """
    phase, load = one_phase(given["loads"], given["phase"])
    previous = None if given["previous"] is None else placement_of(given["previous"])
    made = _place(load.load_WLE, previous, given)
    figures = _figures(load.load_WLE, made, previous, given)
    if given["output"] is not None:
        from fourlane.spec.expert_files import write_placement

        write_placement(given["output"], made.slot_of_LP, experts=made.experts, ranks=made.ranks)
        click.echo(f"written: {given['output']}", file=sys.stderr)
    if given["plot"] is not None:
        _draw(given["plot"], load.load_WLE, made, f"{Path(given['loads']).name}, {phase}: {made.ranks} ranks")
    if given["as_json"]:
        show_json({"phase": phase, **figures})
    else:
        _print(phase, made, figures)
    _check(figures["layers"]["placed"], with_load(load.load_WLE), given["max_balance"])


def _place(load_WLE: NDArray[Any], previous: Placement | None, given: dict[str, Any]) -> Placement:
    from fourlane.policy.placement import place_experts

    return place_experts(
        load_WLE if len(load_WLE) > 1 else load_WLE[0],
        ranks=given["ranks"],
        slots=_slots(load_WLE.sum(axis=0), given),
        nodes=given["nodes"],
        groups=given["groups"],
        previous=previous,
        moves=given["moves"],
        cost=_cost(given["cost"]),
        split_aware=given["split_aware"],
        spread_nodes=given["spread_nodes"],
        every_slot=given["every_slot"],
        seed=given["seed"],
    )


def _slots(load_LE: NDArray[Any], given: dict[str, Any]) -> int | list[int]:
    """Return the slots of a layer, or of each.

    Raises:
        SpecError: said twice, or in a way that does not give ranks equally many.
    """
    layers, experts = load_LE.shape
    ranks, redundant = given["ranks"], given["redundant"]
    if given["slots"] is not None and redundant is not None:
        raise SpecError("--slots: expected --slots or --redundant, got both")
    least = -(-experts // ranks) * ranks
    slots = given["slots"] or (experts + redundant if redundant is not None else least)
    if given["layer_budget"]:
        from fourlane.policy.placement import redundancy_per_layer

        return [
            int(each) for each in redundancy_per_layer(load_LE, ranks=ranks, extra_slots=layers * (slots - experts))
        ]
    return slots_of(experts, ranks, slots - experts) if given["slots"] is None else slots


def _cost(text: str) -> Any:
    """Read --cost.

    Raises:
        SpecError: it is none.
    """
    from fourlane.policy.expert_cost import ExpertCost

    if text in ("tokens", "activated"):
        return ExpertCost(tokens=float(text == "tokens"), activated=float(text == "activated"))
    try:
        weights = {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
        return ExpertCost(**weights)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f'--cost: expected tokens, activated or weights of both such as "tokens=1,activated=40", got "{text}"'
        ) from error


def _figures(
    load_WLE: NDArray[Any], made: Placement, previous: Placement | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the balance of all loads together, layer by layer and in brief, moves and bytes."""
    from fourlane.policy.placement import linear_placement, lower_bound

    load_LE, counted = load_WLE.sum(axis=0), with_load(load_WLE)
    flat = linear_placement(layers=made.layers, experts=made.experts, ranks=made.ranks)
    slots_L = made.ranks * (made.slot_of_LP.reshape(made.layers, made.ranks, -1) >= 0).sum(axis=2).max(axis=1)
    bound_L = lower_bound(load_LE, ranks=made.ranks, slots=slots_L)
    by_layer = {"linear": flat.balance(load_LE), "bound": bound_L, "placed": made.balance(load_LE)}
    if previous is not None:
        by_layer["before"] = previous.balance(load_LE)
    expert_bytes = quantity(Size, "--expert-bytes", given["expert_bytes"]) or Size(0)
    moves_L = None if previous is None else made.moves_from(previous)
    size = int(expert_bytes) * int(slots_L.sum()) // made.ranks
    return {
        "ranks": made.ranks,
        "experts": made.experts,
        "slots_a_rank": (slots_L // made.ranks).tolist(),
        "balance": {
            name: {"mean": float(each[counted].mean()), "worst": float(each[counted].max())}
            for name, each in by_layer.items()
        },
        "layers": {name: each.tolist() for name, each in by_layer.items()},
        "bytes_a_rank": size,
        "moves": None if moves_L is None else moves_L.tolist(),
        "moved_bytes": None if moves_L is None else int(moves_L.sum()) * int(expert_bytes),
        "nodes_reached": _nodes_reached(load_LE[counted], made.slot_of_LP[counted], made, given),
    }


def _nodes_reached(
    load_LE: NDArray[Any], slot_of_LP: NDArray[Any], made: Placement, given: dict[str, Any]
) -> dict[str, float] | None:
    """Return to how many other nodes a token is sent, here and in global placement; None without groups."""
    if given["groups"] is None:
        return None
    from fourlane.policy.placement import Placement, group_traffic, place_experts

    here = Placement(slot_of_LP, experts=made.experts, ranks=made.ranks)
    anywhere = place_experts(load_LE, ranks=made.ranks, slots=made.slots, split_aware=False)
    asked = {"nodes": given["nodes"], "groups": given["groups"], "top_groups": given["top_groups"]}
    return {
        name: float(group_traffic(plan, load_LE, **asked).mean())
        for name, plan in (("placed", here), ("anywhere", anywhere))
    }


_NAMES = {
    "linear": "linear, no redundancy",
    "before": "the previous placement",
    "placed": "this placement",
    "bound": "bound: none can be better",
}


def _print(phase: str, made: Placement, figures: dict[str, Any]) -> None:
    from fourlane.report.tables import Table, console, print_table

    out = console(width=140)
    fewest, most = min(figures["slots_a_rank"]), max(figures["slots_a_rank"])
    slots = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    out.print(
        f"{made.layers} layers of {made.experts} experts on {made.ranks} ranks, {slots} slots a rank, {phase}: "
        f"{figures['bytes_a_rank'] / 1e9:,.2f} GB of experts a rank",
        markup=False,
        soft_wrap=True,
    )
    rows = tuple(
        (name, f"{found['mean']:.4f}", f"{found['worst']:.4f}")
        for key, name in _NAMES.items()
        if (found := figures["balance"].get(key)) is not None
    )
    print_table(out, Table(title="", columns=("max/mean over ranks", "mean layer", "worst layer"), rows=rows))
    if (reached := figures["nodes_reached"]) is not None:
        saved = 1 - reached["placed"] / (reached["anywhere"] or 1.0)
        text = f"a token is sent to {reached['placed']:.2f} other nodes, {reached['anywhere']:.2f} in global placement"
        out.print(f"{text}: {saved:.0%} of that traffic saved", markup=False, soft_wrap=True)
    if figures["moves"] is not None:
        moved = figures["moves"]
        out.print(
            f"moved: {sum(moved):,} experts, {sum(moved) / len(moved):.1f} a layer (most {max(moved)}), "
            f"{figures['moved_bytes'] / 1e9 / made.ranks:,.2f} GB received by a rank",
            markup=False,
            soft_wrap=True,
        )


def _draw(path: Path, load_WLE: NDArray[Any], made: Placement, title: str) -> None:
    from fourlane.report.expert_plots import PlacementPicture, plot_placement

    counted = with_load(load_WLE)
    rank_load_LG = made.rank_load(load_WLE.sum(axis=0))[counted]
    plot_placement(path, PlacementPicture(made.copies_LE[counted], rank_load_LG), title=title)
    click.echo(f"written: {path}", file=sys.stderr)


def _check(balance_L: list[float], counted_L: NDArray[Any], limit: float | None) -> None:
    """Refuse a balance above the limit.

    Raises:
        CheckFailed: naming the worst layers.
    """
    if limit is None:
        return
    over = [(value, layer) for layer, value in enumerate(balance_L) if counted_L[layer] and value > limit]
    if over:
        worst = ", ".join(f"layer {layer}: {value:.4f}" for value, layer in sorted(over, reverse=True)[:3])
        raise CheckFailed(f"expected max/mean of at most {limit:g} in every layer, got more in {len(over)}: {worst}")
