"""`fourlane lab doctor`: say what of a lab this machine can do."""

from __future__ import annotations

import sys

import click

from fourlane.errors import EnvironmentMissing

__all__ = ["doctor"]


@click.command(epilog="\b\nExamples:\n  fourlane lab doctor\n  fourlane lab doctor --json")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(*, as_json: bool) -> None:
    """Say what of a lab this machine can do and this user may, by trying it; and how to get what is missing.

    Exit code 0 if a lab can be brought up, else 3.
    """
    import msgspec

    from fourlane.lab.doctor import examine
    from fourlane.report.tables import Table, console, print_table

    findings = examine()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2))
    else:
        out = console()
        rows = tuple((each.name, each.status, each.found) for each in findings)
        columns = ("capability", "result", "found")
        print_table(out, Table(title="", columns=columns, rows=rows, left=frozenset(columns)))
        for each in findings:
            if each.mend:
                out.print(f"\n{each.name} ({each.status}): {each.mend}", markup=False, soft_wrap=True)
    if any(each.status == "missing" for each in findings):
        sys.exit(EnvironmentMissing.exit_code)
