"""`fourlane twin calibrate`: measure this machine, and write what the twin has to know of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from fourlane.report.tables import Table
    from fourlane.spec.hardware_profile import HardwareProfile

__all__ = ["calibrate"]

_BUSY = 0.1
"""Share of the processors that others may use before figures are said to be doubtful."""

EXAMPLES = """\b
Examples:
  fourlane twin calibrate -o profile.toml                                two prefill and two decode ranks
  fourlane twin calibrate my_deployment.toml -o profile.toml
  fourlane twin calibrate --device cuda --set prefill.ranks=1 --set decode.ranks=1 -o gpu.toml
"""


@click.command(epilog=EXAMPLES)
@click.argument("deployment", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the deployment.")
@click.option("--device", help='Where ranks compute: "cpu", "cuda" or "cuda:N". [default: as the deployment says]')
@click.option("-o", "--output", "output", type=click.Path(path_type=Path), required=True, help="The profile's file.")
def calibrate(*, deployment: Path | None, overrides: tuple[str, ...], device: str | None, output: Path) -> None:
    """Measure this machine by a deployment's ranks, and write a hardware profile.

    Passes of prefill and decode are taken apart on ranks of their own; then the service is brought up several times, as
    no two are equally quick, and sent small loads: three to four minutes for the bundled model. Without DEPLOYMENT: the
    bundled model on 2 + 2 ranks. Use the profile with `fourlane twin run --deployment DEPLOYMENT --hardware PROFILE`.

    Nothing else should run meanwhile: what others take shows as slower ranks.
    """
    from fourlane.cli.progress_bar import steps_bar
    from fourlane.gateway.calibration import calibrate as measure
    from fourlane.gateway.processor_use import busy_share
    from fourlane.report.tables import console, print_table
    from fourlane.spec.load import load_deployment
    from fourlane.spec.writing import render

    if not output.parent.is_dir():
        raise SpecError(f"-o {output}: expected a file in a folder that exists")
    pools = () if deployment is not None else ("prefill.ranks=2", "decode.ranks=2")
    where = () if device is None else (f"prefill.device={device}", f"decode.device={device}")
    wanted = load_deployment(deployment, overrides=[*pools, *where, *overrides])
    out, busy = console(), busy_share()
    if busy > _BUSY:
        out.print(
            f"others use {busy:.0%} of this machine's processors: ranks will seem slower than they are", soft_wrap=True
        )
    with steps_bar() as show:
        profile = measure(wanted, show=show)
    output.write_text(render(profile), encoding="utf-8")
    for table in _tables(profile):
        print_table(out, table)
        out.print()
    out.print(f"profile: {output}", markup=False, soft_wrap=True)


def _tables(profile: HardwareProfile) -> list[Table]:
    """Return the profile in brief."""
    from fourlane.report.tables import Table

    rows: list[tuple[str, ...]] = []
    for name, phase in (("prefill", profile.prefill), ("decode", profile.decode)):
        rows += [
            (name, part, f"{found.rows[0]:g} to {found.rows[-1]:g}", *(_us(found.seconds[at]) for at in (0, -1)))
            for part, found in (*phase.parts.items(), *phase.exchange.items(), ("beside the pass", phase.beside))
        ]
    measured = Table(
        title=f"{profile.model}, units of {profile.ranks} ranks, {profile.label}",
        columns=("phase", "part", "rows", "least", "most"),
        rows=tuple(rows),
    )
    crowd = profile.crowding
    values = [
        ("from request to prefill, and back", _us(profile.overheads.arrive_s)),
        ("hand-off to decode", _us(profile.kv.latency_s)),
        ("KV", f"{profile.kv.bytes_per_s / 1e9:.2f} GB/s, {profile.kv.transport}"),
        ("of gateway and client, a request", _us(profile.overheads.request_host_s)),
        ("until an idle unit begins", _us(profile.overheads.wake_s)),
        ("of decode, a sequence that joins", _us(profile.overheads.join_s)),
        (
            "of prefill and decode, after a pause",
            f"{_us(profile.overheads.cold_prefill_s)}, {_us(profile.overheads.cold_decode_s)}",
        ),
    ]
    if crowd is not None:
        values.append(("prefill beside decode", f"x {crowd.prefill:.2f}, one rank x {crowd.prefill_lone:.2f}"))
        values.append(("decode beside prefill", f"x {crowd.decode:.2f}, one rank x {crowd.decode_lone:.2f}"))
    return [measured, Table(title="Beside steps", columns=("", "value"), rows=tuple(values))]


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us"
