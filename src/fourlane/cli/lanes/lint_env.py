"""`fourlane lanes lint-env`: what an environment really does to the traffic of communication libraries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.cli.lanes.inputs import plan_of, set_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourlane.lanes.environment.lint import Report, Row
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

__all__ = ["lint_env"]

EXAMPLES = """\b
Examples:
  fourlane lanes lint-env job.env --cluster h800-ft               against the cluster's default plan
  fourlane lanes lint-env --process 4711 --plan lanes.toml --cluster cluster.toml
  env -0 | fourlane lanes lint-env -                              without a plan: traps only
  fourlane lanes lint-env job.env --cluster h800-ft --host-tos mlx5_0=106
"""


@click.command(epilog=EXAMPLES)
@click.argument("file", required=False, metavar="[FILE|-]")
@click.option("--process", type=click.IntRange(min=1), metavar="PID", help="Read the environment of a process here.")
@click.option("--plan", type=click.Path(path_type=Path), help="The plan to hold it against; by default the cluster's.")
@click.option("--cluster", metavar="FILE|NAME", help="Cluster file, or a name of the catalog.")
@set_option
@click.option(
    "--host-tos",
    multiple=True,
    metavar="DEVICE=TOS",
    help="A ToS byte that a device of the host forces on its queue pairs (tc/1/traffic_class). Read with --process.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def lint_env(
    *,
    file: str | None,
    process: int | None,
    plan: Path | None,
    cluster: str | None,
    overrides: tuple[str, ...],
    host_tos: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what an environment does: the ToS byte, class and devices each library ends up with, and why.

    FILE is one to source, or the output of `env` or `env -0`; - is standard input. Only variables of NCCL, DeepEP,
    NVSHMEM, UCX, Mooncake and Gloo that this command knows are looked at; nothing else is kept or printed.

    Exit code 0 if nothing contradicts the plan, 1 if something does, 2 for what cannot be read.
    """
    import msgspec

    from fourlane.lanes.environment.lint import lint_environment

    case = _case(plan, cluster, overrides)
    env, forced = _environment(file, process)
    report = lint_environment(env, case, forced={**forced, **_given(host_tos)})
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        _print(report, case)
    if report.contradicts:
        sys.exit(1)


def _case(plan: Path | None, cluster: str | None, overrides: tuple[str, ...]) -> tuple[LanePlan, Cluster] | None:
    from fourlane.errors import SpecError
    from fourlane.spec.load import load_cluster

    if cluster is None:
        if plan is not None or overrides:
            raise SpecError("--plan, --set: a plan is of a cluster; name it with --cluster as well")
        return None
    read = load_cluster(cluster)
    return plan_of(plan, read, overrides), read


def _environment(file: str | None, process: int | None) -> tuple[dict[str, str], Mapping[str, int]]:
    from fourlane.errors import SpecError
    from fourlane.lanes.environment.reading import known_variables, read_forced_tos, read_process

    if (file is None) == (process is None):
        raise SpecError("expected a FILE (- is standard input) or --process PID, and not both")
    if process is not None:
        return read_process(process), read_forced_tos()
    if file == "-":
        return known_variables(sys.stdin.buffer.read(), source="standard input"), {}
    try:
        return known_variables(Path(str(file)).read_bytes(), source=str(file)), {}
    except OSError as error:
        raise SpecError(f"{file}: expected a readable file: {error.strerror}") from error


def _given(host_tos: tuple[str, ...]) -> dict[str, int]:
    from fourlane.errors import SpecError

    forced: dict[str, int] = {}
    for text in host_tos:
        device, _, value = text.partition("=")
        if not device or not value.isdecimal() or int(value) > 255:
            raise SpecError(f"--host-tos {text}: expected a device and a ToS byte of 0 to 255, such as mlx5_0=106")
        forced[device] = int(value)
    return forced


def _print(report: Report, case: tuple[LanePlan, Cluster] | None) -> None:
    from fourlane.report.tables import Table, console, print_table

    out = console(width=200)
    columns = ("connections", "ToS", "DSCP", "ECN", "SL", "class", "planned", "decided by", "devices")
    rows = tuple(_cells(row) for row in report.rows)
    if rows:
        print_table(out, Table(title="", columns=columns, rows=rows, left=frozenset(columns[5:])))
    else:
        out.print("no variable that chooses a lane is set", markup=False)
    for finding in report.findings:
        out.print(f"\n{finding.severity}: {finding.place}", markup=False, soft_wrap=True)
        out.print(f"  does: {finding.does}\n  mend: {finding.mend}", markup=False, soft_wrap=True)
    counts = [sum(finding.severity == severity for finding in report.findings) for severity in _SEVERITIES]
    said = ", ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in zip(counts, _SEVERITIES, strict=True))
    against = f"against the plan {case[0].name} on {case[1].name}" if case is not None else "without a plan, as on RoCE"
    out.print(f"\n{said}, {against}", markup=False, soft_wrap=True)


_SEVERITIES = ("error", "warning", "note")


def _cells(row: Row) -> tuple[str, ...]:
    def shown(value: object) -> str:
        return "-" if value is None else str(value)

    ecn = None if row.ecn is None else f"{row.ecn:02b}"
    numbers = (row.tos, row.dscp, ecn, row.service_level)
    return (row.stream, *map(shown, numbers), *map(shown, (row.lands_in, row.wanted, row.decided_by, row.devices)))
