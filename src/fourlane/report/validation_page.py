"""Published rows beside the twin's figures: tables, and the page `docs/validation.md`.

Not for working them out (`fourlane.twin.validation`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.report.tables import Table
from fourlane.twin.validation_values import GROUPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fourlane.twin.error_budget import ErrorBudget, Input
    from fourlane.twin.validation_values import Check, Group

__all__ = ["budget_table", "check_tables", "markdown_page"]

_TITLES: dict[Group, str] = {
    "serving": "Serving: throughput of a phase, two streams, balance, the bound of decode",
    "kernels": "Kernels: grouped GEMMs of a decode layer",
    "exchange": "Exchange: dispatch and combine, packet by packet",
    "network": "Networks: collisions, marks, interference, packet by packet",
    "flow level": "Flow level against packets: when the last flow of experts is there",
}
_COLUMNS = ("row", "published", "twin", "error", "bar", "kind", "verdict")
_LEFT = frozenset({"bar", "kind", "verdict"})

_HEAD = """# The twin against published figures

Made by `fourlane twin validate -o docs/validation.md`. What is *fitted* fixed a figure of the model; what is
*predicted* did not; all rows were in sight when the kinds of figures were chosen. Rows that keep their bar *pass*, the
others *miss*. Rows that no bar was set for are *within* the usual one or *beyond* it, as they came out.

How figures are worked out: [the model of the service](design/twin-model.md); networks and exchange in more detail:
[network simulator against measurements](validation/fabric-measurements.md).
"""
_BUDGET = """## Error budget

By what share throughput of each row falls if an input is off to the worse by its own uncertainty, and what all of that
comes to together (root of the sum of squares). A row's error beside it: larger ones would hint at something that the
model leaves out.
"""


def check_tables(checks: Sequence[Check]) -> list[Table]:
    """Return a table of each group that has rows."""
    return [
        Table(title=_TITLES[group], columns=_COLUMNS, rows=tuple(map(_cells, of_group)), left=_LEFT)
        for group in GROUPS
        if (of_group := [check for check in checks if check.group == group])
    ]


def budget_table(budgets: Sequence[ErrorBudget], errors: dict[str, float]) -> Table:
    """Return what each input contributes to the uncertainty of each row's throughput; `errors` are the rows' own."""
    inputs = tuple(budgets[0].shares) if budgets else ()
    rows = tuple(
        (
            budget.row,
            *(f"{budget.shares[name]:.1%}" for name in inputs),
            f"{budget.together:.1%}",
            f"{errors[budget.row]:+.1%}",
        )
        for budget in budgets
    )
    return Table(title="Error budget", columns=("row", *inputs, "together", "error"), rows=rows)


def markdown_page(checks: Sequence[Check], budgets: Sequence[ErrorBudget], inputs: Iterable[Input]) -> str:
    """Return the page `docs/validation.md`."""
    held = [check for check in checks if check.held]
    passed = sum(check.within for check in held)
    parts = [_HEAD, f"**{passed} of {len(held)} rows keep their bars.**\n"]
    for table in check_tables(checks):
        rows = [check for check in checks if _TITLES[check.group] == table.title]
        parts += [f"## {table.title}\n", _summary(rows), _markdown(table), _notes(rows)]
    if budgets:
        errors = {check.name: check.error or 0.0 for check in checks}
        parts += [_BUDGET, _markdown(budget_table(budgets, errors))]
        uncertain = [f"- {each.name}: {each.by:.0%}; {each.why}." for each in inputs]
        parts += [
            _BUDGET,
            _markdown(budget_table(budgets, errors)),
            "\n".join(["Uncertainties:", "", *uncertain]) + "\n",
        ]
    return "\n".join(parts)


def _cells(check: Check) -> tuple[str, ...]:
    if check.unit == "gain":
        figure, error = f"{check.figure:.1%}", f"{100 * (check.error or 0.0):+.1f} points"
    else:
        figure = f"{_figure(check.figure)} {check.unit}"
        error = "" if check.error is None else f"{check.error:+.1%}"
    published = check.published if check.unit in ("gain", "") or check.unit in check.published else None
    return (
        check.name,
        published or f"{check.published} {check.unit}",
        figure,
        error,
        check.bar,
        check.kind,
        check.verdict,
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _summary(checks: Sequence[Check]) -> str:
    lines = []
    for kind, fitted in (("predicted", False), ("fitted", True)):
        errors = [abs(check.error) for check in checks if check.error is not None and bool(check.fitted) is fitted]
        if errors:
            mean = sum(errors) / len(errors)
            lines.append(f"{len(errors)} {kind}: mean error {mean:.1%}, largest {max(errors):.1%}.")
    return " ".join(lines) + "\n"


def _notes(checks: Sequence[Check]) -> str:
    """Return what rows assume and where they were published, each said once."""
    said: dict[str, list[str]] = {}
    for check in checks:
        words = check.source if check.assumed == "nothing" else f"{check.source}. Assumed: {check.assumed}"
        said.setdefault(words, []).append(check.name)
    return "\n".join(f"- {', '.join(names)}: {words}." for words, names in said.items()) + "\n"


def _markdown(table: Table) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"
