"""`fourlane lanes check`: prove that a plan makes sense on a cluster."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from fourlane.cli.lanes.inputs import cluster_option, plan_argument, plan_of, set_option

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.lanes.check import Finding

__all__ = ["check", "show_findings"]

EXAMPLES = """\b
Examples:
  fourlane lanes check lanes.toml --cluster h800-ft
  fourlane lanes check lanes.toml --cluster cluster.toml --strict         warnings count as well
  fourlane lanes check --cluster h800-ft --set classes.kv.lossless=true   the default plan, changed
"""


@click.command(epilog=EXAMPLES)
@plan_argument
@cluster_option(required=True)
@set_option
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too.")
@click.option("--json", "as_json", is_flag=True, help="Print checks and findings as JSON.")
def check(*, plan: Path | None, cluster: str, overrides: tuple[str, ...], strict: bool, as_json: bool) -> None:
    """Prove that PLAN (or the default one) makes sense on a cluster, check by check.

    Exit code 0 if no error was found (with --strict: and no warning), else 1; 2 for a plan or cluster
    file that cannot be read. Notes tell what to know and never count.
    """
    from fourlane.errors import CheckFailed
    from fourlane.lanes.check import check_plan
    from fourlane.spec.load import load_cluster

    read = load_cluster(cluster)
    findings = check_plan(plan_of(plan, read, overrides), read)
    if as_json:
        _print_json(findings)
    else:
        show_findings(findings)
    counted = ("error", "warning") if strict else ("error",)
    failed = [finding for finding in findings if finding.severity in counted]
    if failed:
        checks = len({finding.check for finding in failed})
        raise CheckFailed(f"{checks} {'check' if checks == 1 else 'checks'} did not pass on cluster {read.name}")


def show_findings(findings: list[Finding]) -> None:
    """Print every check with its worst result, then the findings, the worst first."""
    from fourlane.lanes.check import CHECKS
    from fourlane.report.tables import Table, console, print_table

    out = console()
    results = {name: _result(name, findings) for name in CHECKS}
    rows = tuple((name, results[name], proves) for name, proves in CHECKS.items())
    columns = ("check", "result", "proves")
    print_table(out, Table(title="", columns=columns, rows=rows, left=frozenset(columns)))
    for finding in sorted(findings, key=lambda finding: _ORDER.index(finding.severity)):
        out.print(f"\n{finding.severity}: {finding.check}: {finding.place}", markup=False, soft_wrap=True)
        out.print(f"  found: {finding.found}\n  mend:  {finding.mend}", markup=False, soft_wrap=True)
    counts = Counter(results.values())
    worse = ", ".join(f"{counts[result]} with {result}s" for result in _ORDER)
    out.print(f"\n{len(CHECKS)} checks: {counts['pass']} passed, {worse}", markup=False)


_ORDER = ("error", "warning", "note")


def _result(name: str, findings: list[Finding]) -> str:
    found = {finding.severity for finding in findings if finding.check == name}
    if not found and any(finding.check == "form" for finding in findings):
        return "not tried"
    return next((severity for severity in _ORDER if severity in found), "pass")


def _print_json(findings: list[Finding]) -> None:
    import msgspec

    from fourlane.lanes.check import CHECKS

    data = {
        "checks": [
            {"check": name, "proves": proves, "result": _result(name, findings)} for name, proves in CHECKS.items()
        ],
        "findings": findings,
    }
    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2))
