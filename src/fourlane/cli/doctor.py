"""`fourlane doctor`: can this machine run fourlane, and if not, what is to be mended."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.errors import EnvironmentMissing

if TYPE_CHECKING:
    from fourlane.cli.doctor_checks import Check

__all__ = ["doctor"]


EXAMPLES = """\b
Examples:
  fourlane doctor
  fourlane doctor deployment.toml --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("deployment", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the deployment.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(*, deployment: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check whether this machine can run fourlane, and say what to mend.

    Checks against DEPLOYMENT, or against the default one. Exit code 0 if nothing fails, else 3.
    """
    import msgspec

    from fourlane.cli.doctor_checks import check_all
    from fourlane.spec.load import load_deployment

    findings = check_all(load_deployment(deployment, overrides=overrides))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2))
    else:
        _print(findings)
    if any(finding.status == "fail" for finding in findings):
        sys.exit(EnvironmentMissing.exit_code)


def _print(findings: list[Check]) -> None:
    from fourlane.report.tables import Table, console, print_table

    out = console()
    rows = tuple((finding.name, finding.status, finding.found) for finding in findings)
    columns = ("check", "result", "found")
    print_table(out, Table(title="", columns=columns, rows=rows, left=frozenset(columns)))
    for finding in findings:
        if finding.mend:
            out.print(f"\n{finding.name} ({finding.status}): {finding.mend}", markup=False, soft_wrap=True)
