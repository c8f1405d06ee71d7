"""`fourlane twin validate`: the twin beside published figures, and how far each input may be off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.twin.error_budget import ErrorBudget
    from fourlane.twin.validation_values import Check, Group

__all__ = ["validate"]

_GROUPS = ("serving", "kernels", "exchange", "network", "flow-level")
EXAMPLES = """\b
Examples:
  fourlane twin validate                        everything; minutes
  fourlane twin validate serving kernels        seconds
  fourlane twin validate serving --json
  fourlane twin validate -o docs/validation.md  the page
"""


@click.command(epilog=EXAMPLES)
@click.argument("groups", nargs=-1, type=click.Choice(_GROUPS))
@click.option("--processes", type=click.IntRange(min=1), help="That simulate packets at once  [the processors].")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the page here (.md).")
def validate(**given: Any) -> None:
    """Hold the twin to published figures: serving, kernels, exchange, networks; and flow level to packets.

    Every row says whether it is a prediction or which figure was fitted on it, what it assumes and where it was
    published. Then the error budget: what each input that is not exactly known contributes. Exit code 1 if a row does
    not keep its bar.
    """
    from fourlane.errors import CheckFailed, SpecError

    if given["output"] is not None and given["output"].suffix != ".md":
        raise SpecError(f"-o {given['output']}: expected a file that ends with .md")
    checks = _checks(_chosen(given["groups"]), given["processes"])
    budgets = _budgets(checks)
    if given["output"] is not None:
        _write(given["output"], checks, budgets)
    if given["as_json"]:
        _print_json(checks, budgets)
    else:
        _print(checks, budgets)
    failed = [check.name for check in checks if check.failed]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(checks)} rows do not keep their bars: {'; '.join(failed)}")


def _chosen(names: Sequence[str]) -> list[Group]:
    from fourlane.twin.validation_values import GROUPS

    return [group for group in GROUPS if not names or group.replace(" ", "-") in names]


def _checks(groups: Sequence[Group], processes: int | None) -> list[Check]:
    from fourlane.cli.progress_bar import steps_bar
    from fourlane.twin.validation import rows_of
    from fourlane.twin.validation import validate as validated

    checks: list[Check] = []
    total = rows_of(groups)
    with steps_bar() as show:

        def told(share: float, text: str) -> None:
            show(len(checks), total, f"{text} ({share:.0%})")

        for check in validated(groups, processes=processes, progress=told):
            checks.append(check)
            show(len(checks), total, f"{check.group}: {check.name}")
    return checks


def _budgets(checks: Sequence[Check]) -> list[ErrorBudget]:
    from fourlane.twin.error_budget import error_budget
    from fourlane.twin.published_serving import published_serving

    asked = {check.name for check in checks}
    return [error_budget(row) for row in published_serving().rows if row.name in asked]


def _write(path: Path, checks: Sequence[Check], budgets: Sequence[ErrorBudget]) -> None:
    from fourlane.errors import SpecError
    from fourlane.report.validation_page import markdown_page
    from fourlane.twin.error_budget import INPUTS

    try:
        path.write_text(markdown_page(checks, budgets, INPUTS), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"-o {path}: cannot be written: {error.strerror}") from error


def _print(checks: Sequence[Check], budgets: Sequence[ErrorBudget]) -> None:
    from fourlane.report.tables import console, print_table
    from fourlane.report.validation_page import budget_table, check_tables

    out = console(width=200)
    for table in check_tables(checks):
        print_table(out, table)
        out.print()
    if budgets:
        print_table(out, budget_table(budgets, {check.name: check.error or 0.0 for check in checks}))
        out.print()
    held = [check for check in checks if check.held]
    out.print(f"{sum(check.within for check in held)} of {len(held)} rows keep their bars.", markup=False)


def _print_json(checks: Sequence[Check], budgets: Sequence[ErrorBudget]) -> None:
    import msgspec

    shown = {"checks": checks, "budgets": [{**_plain(budget), "together": budget.together} for budget in budgets]}
    click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2))


def _plain(budget: ErrorBudget) -> dict[str, object]:
    return {"row": budget.row, "shares": budget.shares}
