"""`fourlane plan render`: launch files of a plan's row, on an engine, for a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fourlane.planner.render import Rendered

__all__ = ["render"]

EXAMPLES = """\b
Examples:
  fourlane plan render plan/plan.json --row 1 --engine sglang --target bash -o launch
  fourlane plan render plan/plan.json --engine vllm --target kubernetes --kv mooncake -o launch
  fourlane plan render deepseek-h800 --engine vllm --target bash --check-installed python -o launch
"""


@click.command(epilog=EXAMPLES)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--row", type=int, help="Row of the plan's table.  [default: 1]")
@click.option("--engine", type=click.Choice(["fourlane", "sglang", "vllm"]), required=True, help="What serves.")
@click.option("--target", type=click.Choice(["bash", "kubernetes"]), required=True, help="What starts it.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write into.")
@click.option("--model", metavar="PATH|NAME", help="What the engine loads, if not the model's usual checkpoint.")
@click.option("--kv", "connector", type=click.Choice(["nixl", "mooncake"]), help="What moves KV cache.")
@click.option(
    "--balancer",
    type=click.Choice(["engine", "fourlane"]),
    default="engine",
    show_default=True,
    help="Who places experts: the engine's own algorithm, or fourlane's plug-in for it.",
)
@click.option("--image", help="Container image, if not the engine's own.")
@click.option(
    "--check-installed",
    "python",
    metavar="PYTHON",
    help="Python that has the engine: its own parser must take every command.",
)
def render(
    *,
    plan: Path,
    row: int | None,
    engine: str,
    target: str,
    output: Path,
    python: str | None,
    **choices: str | None,
) -> None:
    """Write everything that launches a row of PLAN: scripts, lane plan, switch and NIC configs, benchmark, README.

    PLAN is the plan.json that `fourlane plan` wrote, or a twin file. The lane plan is proven first. Options are those
    of vLLM 0.32.0 and SGLang 0.5.23, checked against this package's tables; with --check-installed against the
    parser of an installed engine as well. Exit codes: 1 a proof or a check failed, 2 the plan cannot be launched so,
    3 no such engine there.
    """
    from fourlane.lanes.render.folder import strangers, write_files
    from fourlane.planner.plan_file import read_row
    from fourlane.planner.render import Choices, render_launch

    twin, expected = read_row(plan, row)
    made = render_launch(twin, Choices(engine=engine, target=target, **choices), expected=expected)  # type: ignore[arg-type]
    if python is not None:
        _check_installed(made, engine, python)
    for path in write_files(made.files, output):
        click.echo(f"wrote {path}")
    for path in strangers(made.files, output):
        click.echo(f"not of this plan, left as it was: {path}")
    for note in made.notes:
        click.echo(f"note: {note}", err=True)


def _check_installed(made: Rendered, engine: str, python: str) -> None:
    from fourlane.planner.installed import check_installed

    for line in check_installed(made, engine, python):
        click.echo(line, err=True)
