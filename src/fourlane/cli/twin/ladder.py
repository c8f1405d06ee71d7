"""`fourlane twin ladder`: what each measure brings on a cluster, taken one after another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fourlane.twin.ladder_values import LadderResult

__all__ = ["ladder"]

EXAMPLES = """\b
Examples:
  fourlane twin ladder deepseek-512 -o ladder      writes ladder/ladder.png, ladder.html and ladder.json
  fourlane twin ladder h800-10k -o ladder          10,240 GPUs
  fourlane twin ladder mine.toml --set cluster=mycluster.toml --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("file")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field; again for more.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Write picture, page, figures.")
def ladder(*, file: str, overrides: tuple[str, ...], as_json: bool, output: Path | None) -> None:
    """Take the measures one after another: what does each bring in throughput, TPOT and TTFT?

    FILE is a twin file, or a name of the catalog. The rungs: ECMP to adaptive routing; a queue shared by all classes to
    the expert lane's own queue, weight and buffer; ECN on that lane on to off; KV cache on the same network to one of
    its own; experts static to redundant, placed by load and split batch by batch; one stream to two.

    Throughput is at the greatest rate each rung serves within the SLO; latencies are at one rate that all rungs serve.
    """
    from fourlane.cli.fabric.run import make_folder
    from fourlane.cli.twin.progress import work_bar
    from fourlane.report.tables import console, print_table
    from fourlane.report.twin_ladder import ladder_tables
    from fourlane.spec.load import load_twin
    from fourlane.twin.ladder import ladder as climb

    twin = load_twin(file, overrides=overrides)
    if output is not None:
        make_folder(output)
    with work_bar("{done} of {total} packet runs") as show:
        result = climb(twin, progress=show)
    if output is not None:
        _write(result, output)
    if as_json:
        from fourlane.cli.experts.inputs import show_json

        show_json(result.summary())
        return
    out = console(width=200)
    for table in ladder_tables(result):
        print_table(out, table)
        out.print()


def _write(result: LadderResult, output: Path) -> None:
    from fourlane.report.page import write_page
    from fourlane.report.tables import write_json
    from fourlane.report.twin_ladder import ladder_page, ladder_waterfall
    from fourlane.report.waterfall import plot_waterfall

    plot_waterfall([output / "ladder.png"], ladder_waterfall(result))
    write_page(output / "ladder.html", ladder_page(result))
    write_json(output / "ladder.json", result.summary())
    click.echo(f"written: {output}/ladder.png, ladder.html, ladder.json", file=sys.stderr)
