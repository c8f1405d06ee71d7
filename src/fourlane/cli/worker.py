"""`fourlane worker`: one rank on this host, for torchrun, Kubernetes or a second terminal."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from fourlane.errors import EnvironmentMissing, SpecError

if TYPE_CHECKING:
    from fourlane.engine.rank_config import RankConfig

__all__ = ["worker", "worker_config"]


EXAMPLES = """\b
Examples:
  fourlane worker split.toml --role prefill --gateway tcp://10.0.0.1:7600 --secret-file s
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint 10.0.0.2:29400 --no-python \\
      fourlane worker split.toml --role decode --gateway tcp://10.0.0.1:7600 --secret-file s
"""


@click.command(epilog=EXAMPLES)
@click.argument("deployment", required=False, type=click.Path(path_type=Path))
@click.option("--role", type=click.Choice(["prefill", "decode", "unified"]), required=True, help="The rank's pool.")
@click.option("--gateway", required=True, metavar="tcp://HOST:PORT", help="Where the gateway listens for ranks.")
@click.option(
    "--secret-file",
    envvar="FOURLANE_SECRET_FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="The deployment's secret. [env: FOURLANE_SECRET_FILE]",
)
@click.option("--rank", envvar="RANK", type=click.IntRange(0), default=0, help="Number in the launch. [env: RANK]")
@click.option("--world-size", envvar="WORLD_SIZE", type=click.IntRange(1), help="Ranks in it. [env: WORLD_SIZE]")
@click.option("--local-rank", envvar="LOCAL_RANK", type=click.IntRange(0), help="GPU to take. [env: LOCAL_RANK]")
@click.option("--group", type=click.IntRange(0), help="The launch is this expert-parallel group of the pool.")
@click.option("--master-addr", envvar="MASTER_ADDR", help="Host of rank 0 of the launch. [env: MASTER_ADDR]")
@click.option("--master-port", envvar="MASTER_PORT", type=click.IntRange(1, 64000), help="[env: MASTER_PORT]")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the deployment.")
def worker(
    *, deployment: Path | None, role: str, gateway: str, secret_file: Path, overrides: tuple[str, ...], **launch: object
) -> None:
    """Run one rank of a service whose gateway runs elsewhere.

    DEPLOYMENT is the file that the gateway has; its pool says launch = "external". torchrun and
    Kubernetes' PyTorchJob set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. A pool of
    several expert-parallel groups takes one launch a group (--group). The ranks of a group meet at
    MASTER_ADDR, on a port above MASTER_PORT that the gateway picks anew whenever the group forms
    (MASTER_PORT + 1 to + 1000), so leave those ports open between the hosts.

    The rank goes on until the gateway or a signal ends it. If it dies, start it again: the gateway
    takes it in, and only its own requests are retried.
    """
    config = worker_config(
        deployment, role=role, gateway=gateway, secret_file=secret_file, overrides=overrides, launch=launch
    )
    for module in ("torch", "safetensors"):
        if importlib.util.find_spec(module) is None:
            raise EnvironmentMissing(
                f"a rank needs the Python module {module!r}, which is not installed: pip install 'fourlane[engine]'"
            )
    sys.exit(_run(config))


def worker_config(
    deployment: Path | None,
    *,
    role: str,
    gateway: str,
    secret_file: Path,
    overrides: tuple[str, ...],
    launch: dict[str, object],
) -> RankConfig:
    """Work out what this rank is from the deployment and the launch; `run_dir` stays empty.

    Args:
        launch: rank, world_size, local_rank, group, master_addr, master_port; None where not given.

    Raises:
        SpecError: they do not fit each other.
    """
    import msgspec

    from fourlane.engine.rank_config import rank_configs
    from fourlane.spec.load import load_deployment

    wanted = load_deployment(deployment, overrides=overrides)
    if re.fullmatch(r"tcp://\S+:\d+", gateway) is None and not gateway.startswith("ipc:///"):
        raise SpecError(f'--gateway: expected an address such as "tcp://10.0.0.1:7600", got "{gateway}"')
    pool = [
        config for config in rank_configs(wanted, Path(), secret_file=secret_file.absolute()) if config.role == role
    ]
    if not pool:
        roles = ", ".join(wanted.pools())
        raise SpecError(f"--role: the deployment has no {role} pool; it has {roles}")
    config = pool[_rank_in_pool(pool, launch)]
    config = msgspec.structs.replace(config, control_endpoint=gateway, store="", rendezvous=_rendezvous(config, launch))
    if config.device == "cuda" and launch.get("local_rank") is not None:
        config = msgspec.structs.replace(config, device=f"cuda:{launch['local_rank']}")
    return config


def _rank_in_pool(pool: list[RankConfig], launch: dict[str, object]) -> int:
    rank, size, group = int(str(launch["rank"])), launch.get("world_size"), launch.get("group")
    group_size, role = pool[0].group_size, pool[0].role
    groups = len(pool) // group_size
    if group is None and groups > 1 and group_size > 1:
        raise SpecError(
            f"--group: the {role} pool has {groups} expert-parallel groups of {group_size}; launch each by itself, "
            f"with --group 0 to {groups - 1}"
        )
    first = int(str(group)) * group_size if group is not None else 0
    most = group_size if group is not None else len(pool)
    if group is not None and int(str(group)) >= groups:
        raise SpecError(f"--group: expected 0 to {groups - 1}, as the {role} pool has {groups} groups, got {group}")
    if size is not None and int(str(size)) != most and group_size > 1:
        raise SpecError(f"WORLD_SIZE: expected {most} ranks in this launch of the {role} pool, got {size}")
    if rank >= most:
        raise SpecError(f"RANK: expected 0 to {most - 1} in this launch of the {role} pool, got {rank}")
    return first + rank


def _rendezvous(config: RankConfig, launch: dict[str, object]) -> str | None:
    if config.group_size == 1:
        return None
    host, port = launch.get("master_addr"), launch.get("master_port")
    if host is None or port is None:
        raise SpecError(
            f"MASTER_ADDR, MASTER_PORT: the {config.group_size} ranks of the group must know where to meet; run under "
            "torchrun, or give --master-addr (host of rank 0) and --master-port"
        )
    return f"{host}:{port}"


def _run(config: RankConfig) -> int:
    """Become the rank."""
    import msgspec

    from fourlane.gateway.run_dir import RunDir

    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Only sockets in the file system need a folder, which a killed worker would leave behind.
    needs_folder = config.control_endpoint.startswith("ipc://") or config.kv_transport == "shared_memory"
    run_dir = RunDir() if needs_folder else None
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        from fourlane.engine.worker import run_rank

        click.echo(f"{config.name}: loading {config.model_path}; gateway {config.control_endpoint}", err=True)
        return run_rank(msgspec.structs.replace(config, run_dir=str(run_dir.path) if run_dir else ""))
    finally:
        if run_dir is not None:
            run_dir.remove()


def _exit_on_signal(number: int, frame: object) -> NoReturn:
    del frame
    sys.exit(128 + number)
