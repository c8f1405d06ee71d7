"""`fourlane lab up`: bring a lab up and hold it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fourlane.errors import LabError, SpecError

if TYPE_CHECKING:
    from fourlane.lab.state import LabState
    from fourlane.lab.topology import Topology

__all__ = ["up"]

DETACHED_S = 30.0

EXAMPLES = """\b
Examples:
  fourlane lab up                                     hold it until Ctrl-C
  fourlane lab up --detach --hosts 6 --rate 1Gbps     in the background; fourlane lab down ends it
  fourlane lab up --shape leaf-spine --fifo           two spines, flows hashed, no lanes
"""


@click.command(epilog=EXAMPLES)
@click.option("--name", default="lab", show_default=True, help="To tell labs apart.")
@click.option("--hosts", type=click.IntRange(2, 32), default=4, show_default=True, help="How many.")
@click.option(
    "--shape", type=click.Choice(["star", "leaf-spine"]), default="star", show_default=True, help="Of the hpn."
)
@click.option("--rate", help="Of every link. [default: 500Mbps on a star, 200Mbps with spines]")
@click.option("--spread", is_flag=True, help="Spread packets over the spines instead of hashing flows.")
@click.option("--plan", "plan_path", type=click.Path(path_type=Path), help="A lane plan instead of the default.")
@click.option("--fifo", is_flag=True, help="One FIFO an interface instead of lanes.")
@click.option("--detach", is_flag=True, help="Return once it is up; it stays until `fourlane lab down`.")
def up(*, name: str, detach: bool, plan_path: Path | None, fifo: bool, **shape: Any) -> None:
    """Bring a lab up and hold it: hosts h0, h1, ... each on the hpn and the dcn, with lanes on every interface.

    Prints how to enter each host. Nothing outlives the process that holds the lab.
    """
    from fourlane.lab.state import labs_up

    topology = _topology(**shape)
    if name in {state.name for state in labs_up()}:
        raise SpecError(f"lab {name!r} is up already: end it with fourlane lab down {name}, or take another --name")
    if detach:
        _show(_hold_in_background(name))
        return
    _hold(name, topology, plan_path, fifo=fifo)


def _topology(*, hosts: int, shape: str, rate: str | None, spread: bool) -> Topology:
    from fourlane.lab.topology import leaf_spine, star
    from fourlane.units import Rate

    try:
        wanted = Rate.parse(rate) if rate else None
    except ValueError as error:
        raise SpecError(f"--rate: {error}") from error
    if shape == "star":
        if spread:
            raise SpecError("--spread: a star has no spines to spread packets over; add --shape leaf-spine")
        return star(hosts, rate=wanted)
    return leaf_spine(hosts, rate=wanted, spread=spread)


def _hold(name: str, topology: Topology, plan_path: Path | None, *, fifo: bool) -> None:
    """Hold a lab until Ctrl-C or SIGTERM."""
    from fourlane.lab.experiments.arrangements import Settings, lanes_of, plan_of
    from fourlane.lab.network import Lab
    from fourlane.lab.state import forget, note
    from fourlane.lanes.plan import load_plan

    plan = load_plan(plan_path) if plan_path else None
    ended = threading.Event()
    with Lab(topology) as lab:
        if not fifo:
            for network in topology.networks:
                lab.lanes(lanes_of(plan_of(Settings(plan=plan)), network.rate), network=network.name)
        state = note(name, lab)
        before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            _show(state)
            click.echo("Ctrl-C ends it.")
            while not ended.wait(1.0):
                lab.spaces.check()
        finally:
            signal.signal(signal.SIGTERM, before)
            forget(name)


def _hold_in_background(name: str) -> LabState:
    """Start this very command without --detach, in a session of its own, and wait until its lab is up."""
    from fourlane.lab.state import labs_up

    words = [word for word in sys.argv[1:] if word != "--detach"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fourlane", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + DETACHED_S
        while time.monotonic() < deadline:
            for state in labs_up():
                if state.name == name and state.pid == process.pid:
                    return state
            if process.poll() is not None:
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace"))
                sys.exit(process.returncode)
            time.sleep(0.02)
    process.terminate()
    raise LabError(f"lab {name!r}: not up after {DETACHED_S:.0f} s")


def _show(state: LabState) -> None:
    import shlex

    from fourlane.lab.state import enter_command
    from fourlane.report.tables import Table, console, print_table

    networks = tuple(dict.fromkeys(network for addresses in state.addresses.values() for network in addresses))
    rows = tuple(
        (
            host,
            *(state.addresses.get(host, {}).get(network, "") for network in networks),
            shlex.join(enter_command(state, host)),
        )
        for host in state.holders
    )
    columns = ("", *networks, f"to enter (or: fourlane lab enter --name {state.name} HOST COMMAND)")
    title = f"lab {state.name!r} is up, held by process {state.pid}"
    print_table(console(width=160), Table(title=title, columns=columns, rows=rows, left=frozenset(columns)))
