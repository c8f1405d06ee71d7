"""`fourlane serve`: run a service until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fourlane.gateway.service import Service
    from fourlane.gateway.supervision import RankRow
    from fourlane.report.tables import Table

__all__ = ["serve"]


EXAMPLES = """\b
Examples:
  fourlane serve
  fourlane serve --set prefill.ranks=2 --set decode.ranks=2 --set gateway.port=9000
  fourlane serve deployment.toml --set model.path=/models/Qwen3-30B-A3B
  fourlane serve split.toml --secret-file fourlane.secret      with ranks on other hosts
"""


@click.command(epilog=EXAMPLES)
@click.argument("deployment", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the deployment.")
@click.option(
    "--secret-file",
    envvar="FOURLANE_SECRET_FILE",
    type=click.Path(path_type=Path),
    help="The secret that external ranks hold too; without it one is drawn. [env: FOURLANE_SECRET_FILE]",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what ranks do as well.")
def serve(*, deployment: Path | None, overrides: tuple[str, ...], secret_file: Path | None, verbose: bool) -> None:
    """Serve a model: start the ranks and answer HTTP until Ctrl-C.

    DEPLOYMENT is a TOML file; without one the bundled model is served by one prefill and one decode
    rank. The first Ctrl-C (or SIGTERM) lets open requests end, the second ends everything at once.
    """
    from fourlane.gateway.service import serve_forever
    from fourlane.spec.load import load_deployment

    wanted = load_deployment(deployment, overrides=overrides)
    _log_to_stderr(verbose=verbose)
    progress = _Progress()
    try:
        code = asyncio.run(
            serve_forever(wanted, on_ready=progress.show_ready, progress=progress, secret_file=secret_file)
        )
    finally:
        progress.end()
    sys.exit(code)


def _log_to_stderr(*, verbose: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("fourlane").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("fourlane.lanes").setLevel(logging.INFO)  # a line a connection of the gateway's


class _Progress:
    """One line on a terminal that says who is loading; plain lines elsewhere."""

    def __init__(self) -> None:
        from fourlane.report.tables import console

        self._console = console(sys.stderr)
        self._status = self._console.status("starting") if self._console.is_terminal else None
        self._loading: dict[str, str] = {}
        self._began = False

    def __call__(self, name: str, text: str) -> None:
        if self._began:
            return
        if self._status is None:
            click.echo(f"{name}: {text}", err=True)
            return
        self._loading[name] = text
        unfinished = [f"{each} {what}" for each, what in self._loading.items() if not what.startswith("ready")]
        self._status.update("starting: " + (", ".join(unfinished) or "all ranks are ready"))
        self._status.start()

    def end(self) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()

    def show_ready(self, service: Service) -> None:
        """Print what runs and how to try it."""
        from fourlane.gateway.balancing import balance_lines
        from fourlane.gateway.lanes import lane_lines
        from fourlane.gateway.stats import lanes_now
        from fourlane.report.tables import console, print_table

        self._began = True
        self.end()
        out = console()
        print_table(out, _table(service.rows, service))
        ranks = service.router.ranks.values()
        experts = {rank.role: rank.hello.experts for rank in ranks if rank.hello is not None}
        for line in [*lane_lines(lanes_now(service.state)), *balance_lines(service.deployment, experts)]:
            out.print(line, markup=False, soft_wrap=True)
        out.print()
        for line in _how_to_try(service):
            out.print(line, markup=False, soft_wrap=True)


def _table(rows: list[RankRow], service: Service) -> Table:
    from fourlane.report.tables import Table, byte_text

    pools = service.deployment.pools()
    cells = tuple(
        (
            row.role,
            row.name,
            f"{pools[row.role].expert_parallel or pools[row.role].ranks} (group {row.group})",
            str(row.pid or "-"),
            byte_text(row.memory_bytes) if row.memory_bytes else "-",
            f"{row.kv_blocks or 0:,} x {service.deployment.kv_cache.block_size}",
            f"{row.load_s or 0:.1f} s",
        )
        for row in rows
    )
    columns = ("pool", "rank", "expert-parallel", "process", "memory", "KV pages x tokens", "loaded in")
    return Table(title="", columns=columns, rows=cells, left=frozenset({"rank", "expert-parallel"}))


def _how_to_try(service: Service) -> list[str]:
    body = f'{{"model": "{service.state.model.name}", "prompt": "In the beginning", "max_tokens": 32}}'
    key = " -H 'Authorization: Bearer KEY'" if service.api_key is not None else ""
    return [
        f"{service.state.model.name} is served at {service.base_url}/v1 (page: {service.base_url}/). Ctrl-C ends it.",
        f"Try: curl {service.base_url}/v1/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
    ]
