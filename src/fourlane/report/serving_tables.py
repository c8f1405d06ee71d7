"""A service simulated request by request, as tables: latencies, throughput, use of each part, what bounds it.

For the terminal and for pages alike. Its steady state in closed form is told by `twin_tables`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.report.tables import Table, byte_text, number, percent, time_text

if TYPE_CHECKING:
    from fourlane.twin.point_values import OperatingPoint
    from fourlane.twin.serving.result_values import PhaseUse
    from fourlane.twin.serving.results import ServingResults

__all__ = [
    "against_steady_table",
    "bounds_table",
    "failures_table",
    "kv_table",
    "serving_tables",
    "simulated_first_token_table",
    "simulated_latency_table",
    "simulated_units_table",
    "throughput_table",
]


def serving_tables(results: ServingResults) -> list[Table]:
    """Return the tables that tell a simulation, but for its sources; those with nothing to tell are left out."""
    tables = [
        simulated_latency_table(results),
        throughput_table(results),
        simulated_units_table(results),
        kv_table(results),
        simulated_first_token_table(results),
        bounds_table(results),
        failures_table(results),
    ]
    return [table for table in tables if table.rows]


def simulated_latency_table(results: ServingResults) -> Table:
    """Return latencies over requests, beside what the SLO asks for."""
    slo, attained = results.assembly.twin.slo, results.attainment
    asked = {"TTFT": (slo.ttft, attained.ttft_share), "TPOT": (slo.tpot, attained.tpot_share)}
    rows = []
    for name, times in (("TTFT", results.ttft), ("TPOT", results.tpot), ("whole answer", results.e2e)):
        bound, share = asked.get(name, (None, 0.0))
        cells = (time_text(each) for each in (times.mean, times.p50, times.p90, times.p99))
        rows.append((name, *cells, *(("-", "-") if bound is None else (str(bound), percent(share)))))
    columns = ("", "mean", "p50", "p90", "p99", "asked", "within")
    return Table(title="Latency", columns=columns, rows=tuple(rows))


def throughput_table(results: ServingResults) -> Table:
    """Return what the service answered, and what of it met the SLO."""
    gpus, attained, slo = results.assembly.twin.gpus, results.attainment, results.assembly.twin.slo
    asked = slo.ttft is not None or slo.tpot is not None
    row = (
        f"{int(results.answered.sum()):,} of {int(results.counted.sum()):,}",
        number(results.rate),
        number(results.input_tokens_s / gpus),
        number(results.output_tokens_s / gpus),
        percent(results.cache_hits),
        f"{int(results.requests.retries.sum()):,}",
        f"{int(results.requests.evictions.sum()):,}",
        percent(attained.share) if asked else "-",
        number(attained.goodput) if asked else "-",
    )
    columns = (
        "requests answered", "a second", "tokens/s a GPU: in", "out", "of prompts cached", "retries", "evictions",
        "meet the SLO", "goodput/s",
    )  # fmt: skip
    return Table(title="Throughput", columns=columns, rows=(row,))


def simulated_units_table(results: ServingResults) -> Table:
    """Return what the units of both phases did."""
    rows = tuple(_unit_row(results, use) for use in (results.prefill, results.decode))
    columns = (
        "units", "", "in a step", "least, most busy", "steps", "mean step", "p99", "tokens/s a GPU", "load a rank",
        "fullest",
    )  # fmt: skip
    return Table(title="Units", columns=columns, rows=rows)


def _unit_row(results: ServingResults, use: PhaseUse) -> tuple[str, ...]:
    pool = results.assembly.twin.pools()[use.phase]
    what = "tokens" if use.phase == "prefill" else "rows"
    busy = use.busy_units or (0.0,)
    return (
        use.phase,
        f"{pool.units} x EP{pool.ranks}",
        percent(use.busy),
        f"{percent(min(busy))} to {percent(max(busy))}",
        f"{use.steps:,}",
        time_text(use.step_s),
        time_text(use.step_p99_s),
        number(use.tokens_s_gpu),
        f"{number(use.load)} {what}",
        number(use.fullest),
    )


def kv_table(results: ServingResults) -> Table:
    """Return what the way of KV cache did."""
    kv = results.kv
    row = (
        byte_text(kv.bytes),
        f"{percent(kv.out_share)}, {percent(kv.out_most)}",
        f"{percent(kv.in_share)}, {percent(kv.in_most)}",
        time_text(kv.exposed.mean),
        time_text(kv.exposed.p99),
        percent(kv.blocks),
    )
    columns = (
        "KV cache sent", "NICs out of prefill: mean, busiest", "into decode", "after the first token", "p99",
        "decode blocks held",
    )  # fmt: skip
    return Table(title="KV cache", columns=columns, rows=(row,))


def simulated_first_token_table(results: ServingResults) -> Table:
    """Return what the mean time to first token is made of."""
    parts = results.first_token_parts
    whole = sum(parts.values())
    rows = tuple(
        (name, time_text(seconds), percent(seconds / whole) if whole else "-") for name, seconds in parts.items()
    )
    return Table(title="Mean time to first token", columns=("made of", "time", "share"), rows=rows)


def bounds_table(results: ServingResults) -> Table:
    """Return what bounds steps: shares of the time of all parts; and how steps hide what travels."""
    uses = (results.prefill, results.decode)
    names = list(dict.fromkeys(name for use in uses for name in use.make_up.bounds))
    rows = tuple((name, *(percent(use.make_up.bounds.get(name, 0.0)) for use in uses)) for name in names)
    told = (
        ("something travels, of steps' time", [use.make_up.exchange for use in uses]),
        ("... and nothing is computed", [use.make_up.exposed for use in uses]),
        ("steps in two streams", [use.make_up.two_streams for use in uses]),
    )
    rows += tuple((name, *map(percent, shares)) for name, shares in told)
    columns = ("bound by", "prefill", "decode")
    return Table(title="What bounds steps, of the time of all parts", columns=columns, rows=rows)


def failures_table(results: ServingResults) -> Table:
    """Return why requests were not answered."""
    rows = tuple((reason, f"{count:,}") for reason, count in results.failures.items())
    return Table(title="Not answered", columns=("because", "requests"), rows=rows)


def against_steady_table(results: ServingResults, point: OperatingPoint) -> Table:
    """Return the simulation beside the steady state in closed form for the same load."""

    def row(name: str, simulated: float, steady: float, text: str) -> tuple[str, str, str, str]:
        apart = percent(steady / simulated - 1) if simulated > 0 and steady < float("inf") else "-"
        write = time_text if text == "time" else number
        return name, write(simulated), write(steady) if steady < float("inf") else "-", apart

    gpus = results.assembly.twin.gpus
    rows = (
        row("TTFT, mean", results.ttft.mean, point.ttft.mean, "time"),
        row("TTFT, p99", results.ttft.p99, point.ttft.p99, "time"),
        row("TPOT, mean", results.tpot.mean, point.tpot.mean, "time"),
        row("TPOT, p99", results.tpot.p99, point.tpot.p99, "time"),
        row("output tokens/s a GPU", results.output_tokens_s / gpus, point.output_tokens_s_gpu, "number"),
    )
    columns = ("", "simulated", "closed form", "apart")
    return Table(title="Beside the steady state in closed form", columns=columns, rows=rows)
