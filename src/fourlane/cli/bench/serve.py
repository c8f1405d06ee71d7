"""`fourlane bench serve`: measure a service under load."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from fourlane import __version__
from fourlane.cli.load_view import plot_records, send_with_progress, summary_tables
from fourlane.errors import CheckFailed, EnvironmentMissing, SpecError

if TYPE_CHECKING:
    from fourlane.gateway.load import Client, LoadSettings, Record, Summary

__all__ = ["serve", "stats_of"]

_INTERRUPTED = 130


EXAMPLES = """\b
Examples:
  fourlane bench serve                                          the default deployment, 16 at a time
  fourlane bench serve --url http://127.0.0.1:8000 --rate 20 --requests 500 --plot load.png
  fourlane bench serve two_by_two.toml --trace conversation.jsonl --speed 10 --json load.json
  fourlane bench serve --slo-ttft 300ms --slo-tpot 50ms         goodput as well
"""


@click.command(epilog=EXAMPLES)
@click.argument("deployment", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a field of the deployment.")
@click.option("--url", help="Measure a service that runs already, fourlane's or another.")
@click.option("--api-key", envvar="FOURLANE_API_KEY", help="Bearer token. [env: FOURLANE_API_KEY]")
@click.option("--model", help="Model to ask for; by default the first the service lists.")
@click.option("--requests", type=click.IntRange(1), help="Requests to send. [default: 64, or the whole trace]")
@click.option("--duration", help="Send nothing after this long, such as 60s.")
@click.option("--concurrency", type=int, help="Closed loop: requests under way. [default: 16]")
@click.option("--rate", type=float, help="Open loop: requests a second; inf sends all at once.")
@click.option("--burstiness", type=float, default=1.0, help="Variation of the gaps: 0 even, 1 Poisson, more in bursts.")
@click.option("--trace", type=click.Path(path_type=Path), help="Azure .csv or Mooncake .jsonl trace to play.")
@click.option("--speed", type=float, default=1.0, show_default=True, help="Play the trace this many times as fast.")
@click.option("--length-scale", type=float, default=1.0, show_default=True, help="Factor on the trace's lengths.")
@click.option("--max-length", type=click.IntRange(2), help="Cut the trace's requests to this many tokens.")
@click.option("--input-len", default="128", show_default=True, help="Tokens: 128, 64..256 or lognormal:MEDIAN/P99.")
@click.option("--output-len", default="64", show_default=True, help="Tokens, likewise.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Text file, one prompt a line, sent in turn.")
@click.option("--token-ids", default="300..4000", show_default=True, help="Random prompts draw from these ids.")
@click.option("--ignore-eos/--stop-at-eos", default=True, show_default=True, help="Go on to the output length.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=4, show_default=True, help="Requests before measuring.")
@click.option("--timeout", default="600s", show_default=True, help="Give up on a request after this long.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of prompts, lengths and arrivals.")
@click.option("--slo-ttft", help="Objective for the time to first token, such as 300ms.")
@click.option("--slo-tpot", help="Objective for the time per output token, such as 50ms.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure and request here.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw distributions and a timeline here.")
def serve(**options: Any) -> None:
    """Send a load to a service and print latencies and throughput.

    Measures the service at --url, or brings up DEPLOYMENT for the time of the measurement (without
    either: the default deployment). Exit codes: 0 every request was answered, 1 some were not,
    2 an option or file is wrong, 3 no service there, 130 interrupted; what was measured is printed.
    """
    from fourlane.gateway.load import LoadSettings

    api_key = options.pop("api_key")
    run = _Run(LoadSettings.read(options))
    asyncio.run(run.measure(api_key))
    run.report()
    if run.interrupted:
        sys.exit(_INTERRUPTED)
    if run.summary.failed:
        raise CheckFailed(f"{run.summary.failed} of {run.summary.requests} requests failed")


class _Run:
    """One measurement: plan, records, report."""

    summary: Summary

    def __init__(self, settings: LoadSettings) -> None:
        from fourlane.report.tables import console

        self.interrupted = False
        self._settings = settings
        self._plan = settings.plan()
        self._out = console()
        self._model = ""
        self._service: dict[str, Any] | None = None
        self._records: list[Record] = []

    async def measure(self, api_key: str | None) -> None:
        """Measure the service at `--url`, or bring up the deployment, measure it and take it down."""
        if self._settings.url is not None:
            await self._measure(self._settings.url, api_key)
            return
        from fourlane.cli.demo import service_for

        path = Path(self._settings.deployment) if self._settings.deployment else None
        async with service_for(path, self._settings.overrides, out=self._out) as service:
            await self._measure(service.base_url, service.api_key)

    async def _measure(self, base_url: str, api_key: str | None) -> None:
        from fourlane.gateway.load import Client, run_load, summarize

        client = Client(base_url, api_key=api_key)
        try:
            self._model = await _model_of(client, self._settings.model)
            load = self._settings.load(self._model)
            if self._settings.warmup:
                warm = self._settings.warmup_plan()
                await run_load(client, self._settings.warmup_load(self._model), warm.requests)
            self._out.print(
                f"{self._plan.description} to {base_url}, model {self._model}", markup=False, soft_wrap=True
            )
            cpu_s = time.process_time()
            self._records, self.interrupted = await send_with_progress(client, load, self._plan)
            cpu_s = time.process_time() - cpu_s
            self.summary = summarize(self._records, objectives=self._settings.objectives, client_cpu_s=cpu_s)
            self._service = await stats_of(client)
        finally:
            client.close()

    def report(self) -> None:
        """Print the tables and write the files asked for."""
        from fourlane.report.tables import print_table, write_json

        for table in summary_tables(self.summary):
            self._out.print()
            print_table(self._out, table)
        if self._settings.json_path:
            write_json(Path(self._settings.json_path), self._figures())
            self._out.print(f"\nfigures of every request: {self._settings.json_path}", markup=False, soft_wrap=True)
        if self._settings.plot_path:
            title = f"{self._plan.description}, model {self._model}"
            plot_records(Path(self._settings.plot_path), self._records, title=title)
            self._out.print(f"plot: {self._settings.plot_path}", markup=False, soft_wrap=True)

    def _figures(self) -> dict[str, object]:
        return {
            "fourlane": __version__,
            "model": self._model,
            "load": self._plan.description,
            "settings": self._settings,
            "summary": self.summary,
            "service": self._service,
            "requests": self._records,
        }


async def _model_of(client: Client, wanted: str | None) -> str:
    served = await client.require()
    if wanted is not None:
        if wanted not in served:
            raise SpecError(f"--model: {client.base_url} serves {', '.join(served)}, not {wanted!r}")
        return wanted
    if not served:
        raise EnvironmentMissing(f"{client.base_url}: the service lists no model")
    return served[0]


async def stats_of(client: Client) -> dict[str, Any] | None:
    """Return what the service says of itself; None for a service that is not fourlane's."""
    try:
        response = await client.get("/stats")
        return msgspec.json.decode(bytes(response.body)) if response.status == 200 else None
    except (ConnectionError, TimeoutError, msgspec.DecodeError):
        return None
