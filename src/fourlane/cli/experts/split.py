"""`fourlane experts split`: split batches over replicas by their counts, and tell what that is worth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fourlane.cli.experts.inputs import json_option, output_option, placement_of, show_json
from fourlane.errors import CheckFailed, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.policy.placement import Placement
    from fourlane.report.tables import Table

__all__ = ["split"]

EXAMPLES = """\b
Examples:
  fourlane experts generate --batches 4 --ranks 32 --phase decode -o counts.npz    batches to try it on
  fourlane experts split counts.npz --placement placement.json --layer 3
  fourlane experts split counts.npz --placement placement.json --layer 3 --plot split.png -o quotas.npz
  fourlane experts split counts.npz --placement placement.json --local --max-balance 1.1
"""


@click.command(epilog=EXAMPLES)
@click.argument("counts", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--placement", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Where experts live.")
@click.option("--layer", type=click.IntRange(0), default=0, show_default=True, help="Of the placement.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Tokens rather stay on their node.")
@click.option("--local", is_flag=True, help="Each rank from its own counts alone, without those of the others.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw ranks before and after (.png, .svg, .pdf, .html).")
@click.option("--max-balance", type=click.FloatRange(1.0), help="Exit with 1 if a batch's max/mean is above this.")
@json_option
@output_option("Write the quotas here: of each rank's tokens, how many go to each slot (.npz or .json).")
def split(**given: Any) -> None:
    """Split the batches of COUNTS, [ranks, experts] or [batches, ranks, experts], over the replicas of a placement.

    Before: each rank spreads each expert's tokens equally over its replicas. After: shared out by the counts, so that
    the fullest rank gets as few as the placement allows. The bound: no split can have a lower maximum.
    """
    from fourlane.spec.expert_files import read_counts

    placement = placement_of(given["placement"])
    counts = read_counts(given["counts"])
    batches = counts if counts.ndim == 3 else counts[None]
    found = [_split(count_GE, placement, given) for count_GE in batches]
    if given["output"] is not None:
        _write(given["output"], found)
    if given["plot"] is not None:
        _draw(given["plot"], found, given)
    if given["as_json"]:
        show_json({"layer": given["layer"], "batches": [each.figures() for each in found]})
    else:
        _print(found, given)
    over = [(each.balance, place) for place, each in enumerate(found) if each.balance > (given["max_balance"] or 1e9)]
    if over:
        worst = ", ".join(f"batch {place}: {value:.4f}" for value, place in sorted(over, reverse=True)[:3])
        raise CheckFailed(f"expected max/mean of at most {given['max_balance']:g}, got more in {len(over)}: {worst}")


class _Split(NamedTuple):
    """One batch: tokens of each rank before and after, the bound, and the quotas."""

    before_G: NDArray[Any]
    after_G: NDArray[Any]
    lower_bound: float
    quota_GP: NDArray[Any]

    @property
    def mean(self) -> float:
        return float(self.after_G.mean()) or 1.0

    @property
    def balance(self) -> float:
        return float(self.after_G.max() / self.mean)

    def figures(self) -> dict[str, Any]:
        return {
            "tokens_before": self.before_G.tolist(),
            "tokens_after": self.after_G.tolist(),
            "lower_bound": self.lower_bound,
            "balance_before": float(self.before_G.max() / self.mean),
            "balance_after": self.balance,
            "balance_bound": max(self.lower_bound / self.mean, 1.0),
        }


def _split(count_GE: NDArray[Any], placement: Placement, given: dict[str, Any]) -> _Split:
    import numpy as np

    from fourlane.policy.token_split import rank_tokens, split_equally, split_local_tokens, split_tokens

    layer, nodes = given["layer"], given["nodes"]
    before = split_equally(count_GE, placement, layer)
    best = split_tokens(count_GE, placement, layer, nodes=nodes)
    quota_GP = best.quota_GP
    if given["local"]:
        rows = [
            split_local_tokens(count_E, placement, layer, rank=rank, nodes=nodes)
            for rank, count_E in enumerate(count_GE)
        ]
        quota_GP = np.stack(rows)
    return _Split(before.tokens_G, rank_tokens(quota_GP, placement.ranks), best.lower_bound, quota_GP)


def _write(path: Path, found: list[_Split]) -> None:
    """Write quotas, [batches, ranks, slots].

    Raises:
        SpecError: another suffix, or the file cannot be written.
    """
    import numpy as np

    from fourlane.report.tables import write_json

    quota_BGP = np.stack([each.quota_GP for each in found])
    if path.suffix == ".json":
        write_json(path, {"quota_BGP": quota_BGP.tolist()})
    elif path.suffix == ".npz":
        try:
            with path.open("wb") as file:
                np.savez_compressed(file, quota_BGP=quota_BGP)
        except OSError as error:
            raise SpecError(f"{path}: cannot be written: {error.strerror}") from error
    else:
        raise SpecError(f"--output {path}: expected a name that ends in .npz or .json")
    click.echo(f"written: {path}", file=sys.stderr)


def _draw(path: Path, found: list[_Split], given: dict[str, Any]) -> None:
    from fourlane.report.expert_plots import SplitPicture, plot_split

    pictures = [
        SplitPicture(f"batch {place}", each.before_G, each.after_G, each.lower_bound)
        for place, each in enumerate(found[:6])
    ]
    plot_split(path, pictures, title=f"{given['counts'].name} over {given['placement'].name}, layer {given['layer']}")
    click.echo(f"written: {path}", file=sys.stderr)


def _print(found: list[_Split], given: dict[str, Any]) -> None:
    from fourlane.report.tables import console, print_table

    out = console(width=120)
    table = _ranks(found[0]) if len(found) == 1 else _batches(found)
    how = "each rank from its own counts" if given["local"] else "by the counts of all ranks"
    out.print(f"layer {given['layer']}, split {how}", markup=False, soft_wrap=True)
    print_table(out, table)


def _ranks(found: _Split) -> Table:
    from fourlane.report.tables import Table

    rows = [
        (f"{rank}", f"{before:,}", f"{after:,}")
        for rank, (before, after) in enumerate(zip(found.before_G, found.after_G, strict=True))
    ]
    figures = found.figures()
    rows += [
        ("max / mean", f"{figures['balance_before']:.4f}", f"{figures['balance_after']:.4f}"),
        ("bound", "", f"{figures['balance_bound']:.4f}"),
    ]
    return Table(title="", columns=("rank", "tokens before", "after"), rows=tuple(rows))


def _batches(found: list[_Split]) -> Table:
    from fourlane.report.tables import Table

    rows = tuple(
        (
            f"{place}",
            f"{each.mean:,.1f}",
            f"{each.before_G.max():,}",
            f"{each.after_G.max():,}",
            f"{figures['balance_before']:.4f}",
            f"{figures['balance_after']:.4f}",
            f"{figures['balance_bound']:.4f}",
        )
        for place, (each, figures) in enumerate((each, each.figures()) for each in found)
    )
    columns = ("batch", "tokens a rank", "most before", "after", "max/mean before", "after ", "bound")
    return Table(title="", columns=columns, rows=rows)
