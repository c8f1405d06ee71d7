"""What a process of a sweep does: take a task, work its point out, answer; text in, text out.

A task is JSON: the twin's TOML, and whether requests are simulated. An answer is JSON too: figures, or an error. Both
are the same for processes of this machine and for those of Ray.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from fourlane.errors import FourlaneError
from fourlane.spec.load import parse
from fourlane.spec.twin import Twin

if TYPE_CHECKING:
    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.point_values import OperatingPoint
    from fourlane.twin.serving.results import ServingResults

__all__ = ["Answer", "Task", "answer", "serve"]


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A point to work out."""

    point: int
    twin: str
    requests: bool


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of it."""

    point: int
    figures: dict[str, Any] = {}
    error: str = ""
    seconds: float = 0.0


def answer(task: str) -> str:
    """Work out a task and answer it; what is wrong with its point is an answer, too."""
    read = msgspec.json.decode(task, type=Task)
    began = time.perf_counter()
    figures: dict[str, Any] = {}
    error = ""
    try:
        figures = _figures(parse(read.twin, Twin, source="sweep"), requests=read.requests)
    except FourlaneError as failed:
        error = str(failed)
    taken = time.perf_counter() - began
    return msgspec.json.encode(Answer(point=read.point, figures=figures, error=error, seconds=taken)).decode()


def serve() -> None:
    """Answer tasks, a line each, until there are no more. Ctrl-C is the starting process's matter."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        sys.stdout.write(answer(line) + "\n")
        sys.stdout.flush()


def _figures(twin: Twin, *, requests: bool) -> dict[str, Any]:
    from fourlane.twin.operating_point import operating_point
    from fourlane.twin.serving.simulation import simulate

    assembly = _assembled(twin)
    figures = _of_requests(simulate(assembly)) if requests else _of_point(assembly, operating_point(assembly))
    return {name: _plain(value) for name, value in figures.items()}


def _assembled(twin: Twin) -> Assembly:
    """Return the service, its units slowing each other down where their network is simulated."""
    from fourlane.twin.assembly import assemble
    from fourlane.twin.cluster_exchange import beside_others
    from fourlane.twin.exchange.table import ExchangeTable
    from fourlane.twin.operating_point import operating_point

    assembly = assemble(twin, processes=1)
    if not all(isinstance(model.exchange, ExchangeTable) for model in assembly.phases().values()):
        return assembly
    return beside_others(assembly, operating_point(assembly))[0]


def _of_point(assembly: Assembly, point: OperatingPoint) -> dict[str, Any]:
    return {
        "gpus": assembly.twin.gpus,
        "requests_s": point.rate,
        "output_tokens_s_gpu": point.output_tokens_s_gpu,
        "input_tokens_s_gpu": point.input_tokens_s_gpu,
        "goodput": point.goodput,
        "ttft_mean_s": point.ttft.mean,
        "ttft_p99_s": point.ttft.p99,
        "tpot_mean_s": point.tpot.mean,
        "tpot_p99_s": point.tpot.p99,
        "slo_share": point.slo.attainment,
        "slo_met": point.slo.met,
        "prefill_use": point.prefill.utilisation,
        "decode_use": point.decode.utilisation,
        "binds": point.binds,
        "sources": point.sources,
    }


def _of_requests(results: ServingResults) -> dict[str, Any]:
    gpus = results.assembly.twin.gpus
    return {
        "gpus": gpus,
        "requests_s": results.rate,
        "output_tokens_s_gpu": results.output_tokens_s / gpus,
        "input_tokens_s_gpu": results.input_tokens_s / gpus,
        "goodput": results.attainment.goodput,
        "ttft_mean_s": results.ttft.mean,
        "ttft_p99_s": results.ttft.p99,
        "tpot_mean_s": results.tpot.mean,
        "tpot_p99_s": results.tpot.p99,
        "slo_share": results.attainment.share,
        "slo_met": results.attainment.met,
        "prefill_use": results.prefill.busy,
        "decode_use": results.decode.busy,
        "binds": "",
        "sources": results.sources,
    }


def _plain(value: Any) -> Any:
    """Return plain values for JSON; what is infinite or no number is None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
