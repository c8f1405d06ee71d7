"""`fourlane experts export`: write a placement for another engine, or in another format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.cli.experts.inputs import placement_of
from fourlane.errors import SpecError

if TYPE_CHECKING:
    from fourlane.policy.placement import Placement

__all__ = ["export"]

FORMATS = ("sglang", "vllm", "json", "npz", "safetensors")
EXAMPLES = """\b
Examples:
  fourlane experts export placement.json --engine sglang -o init_expert_location.json
  fourlane experts export placement.json --engine sglang --dense-layers 3 -o init_expert_location.pt
  fourlane experts export placement.json --engine vllm -o physical_to_logical.json
  fourlane experts export placement.json --engine npz -o tables.npz        phy2log, log2phy, logcnt as EPLB names them
"""


@click.command(epilog=EXAMPLES)
@click.argument("placement", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--engine", type=click.Choice(FORMATS), required=True, help="Whom to write for, or which format.")
@click.option(
    "--dense-layers",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="sglang: layers in front without experts that the placement does not count (3 for DeepSeek-V3).",
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file.")
def export(*, placement: Path, engine: str, dense_layers: int, output: Path) -> None:
    """Write PLACEMENT, a placement file, for another engine or in another format.

    sglang: for its --init-expert-location. vllm: the physical-to-logical map, [layers][slots], with EPLB's other two
    tables. json, npz, safetensors: fourlane's own, which `place --previous` and deployment files read; npz holds EPLB's
    tables too.
    """
    made = placement_of(placement)
    if dense_layers and engine != "sglang":
        raise SpecError(f"--dense-layers: expected with --engine sglang, got --engine {engine}")
    if engine == "sglang":
        from fourlane.integrations.sglang import write_init_expert_location

        write_init_expert_location(output, made, dense_layers=dense_layers)
    elif engine == "vllm":
        _write_tables(output, made)
    else:
        from fourlane.spec.expert_files import write_placement

        if output.suffix != f".{engine}":
            raise SpecError(f"--output {output}: expected a name that ends in .{engine} with --engine {engine}")
        write_placement(output, made.slot_of_LP, experts=made.experts, ranks=made.ranks)
    click.echo(f"written: {output}", file=sys.stderr)


def _write_tables(output: Path, made: Placement) -> None:
    """Write EPLB's three tables as JSON.

    Raises:
        SpecError: another suffix, an empty slot, or the file cannot be written.
    """
    from fourlane.policy.placement import EMPTY
    from fourlane.report.tables import write_json

    if output.suffix != ".json":
        raise SpecError(f"--output {output}: expected a name that ends in .json with --engine vllm")
    if (made.slot_of_LP == EMPTY).any():
        raise SpecError("--engine vllm: expected a placement without empty slots; place with --every-slot")
    tables = {
        "physical_to_logical_map": made.phy2log.tolist(),
        "logical_to_physical_map": made.log2phy.tolist(),
        "logical_replica_count": made.logcnt.tolist(),
    }
    write_json(output, tables)
