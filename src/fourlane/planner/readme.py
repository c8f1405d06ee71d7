"""The page that goes with rendered files: what is launched, in which order, what to expect, what to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.planner.launch import PHASES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fourlane.planner.launch import Commands, Launch

__all__ = ["readme"]


def readme(
    launch: Launch, commands: Commands, *, target: str, notes: Sequence[str], expected: Mapping[str, str]
) -> str:
    """Write the page, in Markdown."""
    lines = [f"# {launch.twin.name} on {commands.engine}", "", *_service(launch), ""]
    lines += ["## Start", "", *(_bash(commands) if target == "bash" else _kubernetes(launch, commands)), ""]
    lines += ["## Lanes", "", *_lanes(), ""]
    lines += ["## Measure", "", *_measure(launch, commands, expected), ""]
    if notes:
        lines += ["## Know", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _service(launch: Launch) -> Iterator[str]:
    where = f"{launch.servers:,} servers of cluster {launch.cluster.name}"
    yield f"`{launch.model}` on {launch.twin.gpus:,} GPUs, {where}:"
    yield ""
    yield "| phase | units | GPUs of each | servers of each | tokens a step | sequences a rank |"
    yield "|---|---|---|---|---|---|"
    for phase in PHASES:
        layout, pool = launch.layouts[phase], launch.pool(phase)
        servers = f"{layout.servers}" if layout.per_server == 1 else f"1/{layout.per_server}"
        chunk = f"{pool.chunk_tokens:,}" if phase == "prefill" else "-"
        yield f"| {phase} | {layout.units} | {layout.ranks} | {servers} | {chunk} | {pool.max_running:,} |"
    yield ""
    yield "The same as a file that `fourlane twin run` reads: `twin.toml`."


def _bash(commands: Commands) -> Iterator[str]:
    steps = [
        "Put the addresses of your servers into `servers.txt`, in the order that it says.",
        f"Install {commands.engine} on all of them, and the model where `MODEL` says (a folder, or let them fetch it).",
    ]
    if commands.secret:
        make = "(umask 077 && openssl rand -hex 32 > fourlane.secret)"
        steps.append(f"Make the secret: `{make}`.")
    steps += [
        "Copy this folder to the same place on all of them, or keep it on a file system they share.",
        f"`./start-all.sh` on the first: it starts all over ssh, then takes requests on port {commands.router_port}.",
        "`./stop-all.sh` ends everything. Logs are in `logs/` on each server.",
    ]
    yield from _numbered(steps)
    yield ""
    yield "`DRY_RUN=1 ./start.sh 0` prints what the first server of the list would run, and runs nothing. With a"
    yield "launcher of your own, run `./start.sh NUMBER` on each server and `./start-router.sh` on the first."


def _kubernetes(launch: Launch, commands: Commands) -> Iterator[str]:
    steps = [
        "See that `20-units.yaml` names the resources your cluster has: GPUs, and RDMA devices if you share them out.",
        "Put the model into `/models` of every host, or let pods fetch it there. Pods use the hosts' networks.",
    ]
    if commands.secret:
        make = "kubectl create secret generic fourlane-secret --from-literal=fourlane.secret=$(openssl rand -hex 32)"
        steps.append(f"Make the secret: `{make}`. Build an image that has fourlane, and render with `--image`.")
    files = "-f 10-config.yaml -f 20-units.yaml -f 30-router.yaml"
    steps.append(f"`kubectl apply {files}`; `kubectl delete` with the same files ends everything.")
    yield from _numbered(steps)
    yield ""
    yield f"The router listens on port {commands.router_port}. Kubernetes 1.28 or newer is needed: it numbers pods."
    if any(layout.servers > 1 for layout in launch.layouts.values()):
        yield "Pods of one unit want to be near each other: add an affinity to the topology key of your leaves or pods."


def _numbered(steps: Sequence[str]) -> Iterator[str]:
    for number, step in enumerate(steps, start=1):
        yield f"{number}. {step}"


def _lanes() -> Iterator[str]:
    yield "`lanes/lanes.toml` is the lane plan all of this goes by; scripts read `lanes/env`. Before the first start,"
    yield "tell the rest of the cluster: switches (`lanes/sonic`, `lanes/eos`, `lanes/nvue`, whichever there are), NICs"
    yield "(`lanes/nic`: each script checks before it sets), hosts without RDMA (`lanes/host`)."
    yield "`fourlane lanes lint-env` and `fourlane lanes config-db` tell whether it took."


def _measure(launch: Launch, commands: Commands, expected: Mapping[str, str]) -> Iterator[str]:
    port = commands.router_port
    yield f"`URL=http://ROUTER:{port} MODEL={launch.model} ./benchmark.sh` sends the planned load."
    if commands.engine != "fourlane":
        yield "It is the engine's own tool, with the plan's mean lengths, not their spread."
    if commands.engine != "fourlane" and commands.token_ids:
        yield "`./benchmark-fourlane.sh` sends the very lengths, arrivals or trace of the plan."
    if expected:
        yield ""
        yield "| the plan expects | |"
        yield "|---|---|"
        for name, value in expected.items():
            yield f"| {name} | {value} |"
