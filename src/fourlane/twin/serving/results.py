"""What a simulated service showed: latencies, throughput, what met the SLO, how busy each part was and what bounds it.

Figures are worked out when they are asked for. Not for pictures and pages (`fourlane.report`), nor for windows of time
(`window`) and courses over it (`series`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.twin.point_values import Latency
from fourlane.twin.serving.make_up import make_up
from fourlane.twin.serving.result_values import Attainment, KvUse, PhaseUse, RequestTimes
from fourlane.twin.serving.series import spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.assembly_parts import Assembly
    from fourlane.twin.serving.records import DecodeLeap, PrefillStep
    from fourlane.twin.serving.simulation import Service

__all__ = ["ServingResults", "latency_of"]


@dataclass(frozen=True)
class ServingResults:
    """A simulation's results.

    Args:
        assembly: what was simulated.
        description: of its load, in words.
        requests: what became of each.
        prefill_steps, decode_leaps: what units did, each with begin and end in seconds.
        kv_bytes: sent; kv_out_s, kv_in_s: seconds that each rank's NIC was busy.
        failures: why requests were not answered, and how many for each reason.
        seconds: it took to simulate.
    """

    assembly: Assembly
    description: str
    requests: RequestTimes
    prefill_steps: list[tuple[PrefillStep, float, float]]
    decode_leaps: list[tuple[DecodeLeap, float, float]]
    kv_bytes: float
    kv_out_s: NDArray[np.float64]
    kv_in_s: NDArray[np.float64]
    failures: dict[str, int]
    seconds: float

    @classmethod
    def of(cls, service: Service, *, seconds: float) -> ServingResults:
        """Collect what a service that has stopped leaves."""
        failures = Counter(each.failure for each in service.sequences if each.state in {"failed", "refused"})
        return cls(
            assembly=service.assembly,
            description=service.load.description,
            requests=_times(service),
            prefill_steps=service.records.prefill,
            decode_leaps=service.records.decode,
            kv_bytes=service.kv.bytes,
            kv_out_s=np.array(service.kv.busy_out_s),
            kv_in_s=np.array(service.kv.busy_in_s),
            failures=dict(failures.most_common()),
            seconds=seconds,
        )

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """Tell which requests count: all but those that warm up."""
        counted = np.ones(len(self.requests), np.bool_)
        counted[: self.assembly.twin.workload.warmup] = False
        return counted

    @cached_property
    def span(self) -> tuple[float, float]:
        """Return the seconds between which is counted: the first request sent, the last one ended."""
        counted = self.counted if self.counted.any() else np.ones(len(self.requests), np.bool_)
        return float(self.requests.sent[counted].min()), float(self.requests.ended[counted].max())

    @property
    def duration(self) -> float:
        """Return the seconds that are counted."""
        begin, end = self.span
        return max(end - begin, 1e-12)

    @cached_property
    def steady(self) -> tuple[float, float]:
        """Return the seconds between which throughput and use are counted: while as much begins as ends.

        That is from when as long has passed as nine of ten answers take until the last request is sent; of loads too
        short for it, all of the time.
        """
        begin, end = self.span
        if not self.answered.any():
            return begin, end
        answer_s, last = self.e2e.p90, float(self.requests.sent[self.counted].max())
        return (begin + answer_s, last) if last - begin > 1.2 * answer_s else (begin, max(end, begin + 1e-12))

    @property
    def steady_s(self) -> float:
        """Return how many seconds that is."""
        return self.steady[1] - self.steady[0]

    def amount(self, begins: NDArray[np.float64], ends: NDArray[np.float64], amounts: NDArray[np.float64]) -> float:
        """Return how much of amounts, each spread evenly from its begin to its end, falls into the steady time."""
        return float(spread(begins, ends, amounts, np.array(self.steady))[0])

    def ended_in_steady(self) -> NDArray[np.bool_]:
        """Tell which requests were answered in full, and at a time that is counted as steady."""
        begin, end = self.steady
        return self.answered & (self.requests.ended > begin) & (self.requests.ended <= end)

    @cached_property
    def answered(self) -> NDArray[np.bool_]:
        """Tell which requests count and were answered in full."""
        return self.counted & self.requests.done

    @cached_property
    def ttft(self) -> Latency:
        """Return times to first token."""
        return latency_of(self.requests.ttft[self.answered])

    @cached_property
    def tpot(self) -> Latency:
        """Return times of further tokens."""
        return latency_of(self.requests.tpot[self.answered])

    @cached_property
    def e2e(self) -> Latency:
        """Return times to the end of answers."""
        return latency_of(self.requests.e2e[self.answered])

    @cached_property
    def first_token_parts(self) -> dict[str, float]:
        """Return what the mean time to first token is made of, in seconds."""
        requests, answered = self.requests, self.answered & np.isfinite(self.requests.started)
        overheads = self.assembly.overheads
        if not answered.any():
            return {}
        sent, placed = requests.sent[answered], requests.placed[answered]
        started, first = requests.started[answered], requests.first_token[answered]
        return {
            "gateway": overheads.arrive_s + overheads.deliver_s,
            "waiting for room": float((placed - sent).mean()) - overheads.arrive_s,
            "reserving and waiting for the step": float((started - placed).mean()),
            "computing the prompt": float((first - started).mean()) - overheads.deliver_s,
        }

    @cached_property
    def attainment(self) -> Attainment:
        """Return how far requests met the SLO."""
        slo, requests, counted = self.assembly.twin.slo, self.requests, self.counted
        with np.errstate(invalid="ignore"):
            ttft = requests.done & (slo.ttft is None or requests.ttft <= (slo.ttft or 0).seconds)  # type: ignore[union-attr]
            quick = np.isnan(requests.tpot) | (slo.tpot is None or requests.tpot <= (slo.tpot or 0).seconds)  # type: ignore[union-attr]
        tpot = requests.done & quick
        count = max(1, int(counted.sum()))
        good = int((ttft & tpot & counted).sum())
        goodput = int((ttft & tpot & self.ended_in_steady()).sum()) / self.steady_s
        return Attainment(
            met=good / count >= slo.share,
            share=good / count,
            ttft_share=int((ttft & counted).sum()) / count,
            tpot_share=int((tpot & counted).sum()) / count,
            goodput=goodput,
            goodput_gpu=goodput / self.assembly.twin.gpus,
        )

    @property
    def rate(self) -> float:
        """Return the requests a second that were answered."""
        return int(self.ended_in_steady().sum()) / self.steady_s

    @property
    def output_tokens_s(self) -> float:
        """Return the tokens answered a second."""
        requests, answered = self.requests, self.answered
        tokens = requests.output_tokens[answered].astype(np.float64)
        return self.amount(requests.first_token[answered], requests.ended[answered], tokens) / self.steady_s

    @property
    def input_tokens_s(self) -> float:
        """Return the prompt tokens taken in a second, those found in a cache included."""
        begin, end = self.steady
        computed = self.answered & (self.requests.first_token > begin) & (self.requests.first_token <= end)
        return float(self.requests.prompt_tokens[computed].sum()) / self.steady_s

    @property
    def cache_hits(self) -> float:
        """Return the share of prompt tokens found in prefix caches."""
        prompt = int(self.requests.prompt_tokens[self.answered].sum())
        return int(self.requests.cached_tokens[self.answered].sum()) / prompt if prompt else 0.0

    @cached_property
    def prefill(self) -> PhaseUse:
        """Return what prefill units did."""
        return _prefill_use(self)

    @cached_property
    def decode(self) -> PhaseUse:
        """Return what decode units did."""
        return _decode_use(self)

    @cached_property
    def kv(self) -> KvUse:
        """Return what the way of KV cache did."""
        requests, answered = self.requests, self.answered & np.isfinite(self.requests.kv_done)
        overheads = self.assembly.overheads
        sampled = requests.first_token[answered] - overheads.deliver_s
        sent = (requests.prompt_tokens * self.assembly.kv_token_bytes).astype(np.float64)[answered]
        begun = requests.started[answered]
        share = self.amount(begun, requests.kv_done[answered], sent) / max(float(sent.sum()), 1e-12)
        whole = self.steady_s / share if share else np.inf
        return KvUse(
            bytes=self.kv_bytes,
            out_share=float(self.kv_out_s.mean()) / whole,
            out_most=float(self.kv_out_s.max()) / whole,
            in_share=float(self.kv_in_s.mean()) / whole,
            in_most=float(self.kv_in_s.max()) / whole,
            exposed=latency_of(requests.kv_done[answered] - sampled),
            blocks=self._blocks_held,
        )

    @cached_property
    def _blocks_held(self) -> float:
        requests, twin, decode = self.requests, self.assembly.twin, self.assembly.decode
        placed = self.answered & np.isfinite(requests.placed)
        tokens = requests.prompt_tokens[placed] + requests.output_tokens[placed] / 2
        begun, ended = requests.placed[placed], requests.ended[placed]
        held = self.amount(begun, ended, (tokens / twin.block_size + 0.5) * (ended - begun))
        return held / (decode.ranks * decode.memory.kv_blocks * self.steady_s)

    @cached_property
    def sources(self) -> dict[str, str]:
        """Return where figures come from, by name."""
        found = dict(self.assembly.sources)
        for use in (self.prefill, self.decode):
            found |= {f"{use.phase}: {name}": source for name, source in use.make_up.sources.items()}
        return found | {
            "KV transfer": self.assembly.kv.source,
            "overheads": self.assembly.overheads.source,
            "requests": self.description,
        }

    def summary(self) -> dict[str, Any]:
        """Return all figures as plain values for JSON; what is infinite or no number is None."""
        document = {
            "name": self.assembly.twin.name,
            "load": self.description,
            "requests": len(self.requests),
            "answered": int(self.answered.sum()),
            "failures": self.failures,
            "duration_s": self.duration,
            "steady_s": list(self.steady),
            "gpus": self.assembly.twin.gpus,
            "ttft_s": asdict(self.ttft),
            "tpot_s": asdict(self.tpot),
            "e2e_s": asdict(self.e2e),
            "ttft_parts_s": self.first_token_parts,
            "requests_per_s": self.rate,
            "input_tokens_per_s": self.input_tokens_s,
            "output_tokens_per_s": self.output_tokens_s,
            "output_tokens_per_s_gpu": self.output_tokens_s / self.assembly.twin.gpus,
            "prefix_cache_hits": self.cache_hits,
            "slo": asdict(self.attainment),
            "prefill": asdict(self.prefill),
            "decode": asdict(self.decode),
            "kv": asdict(self.kv),
            "evictions": int(self.requests.evictions.sum()),
            "retries": int(self.requests.retries.sum()),
            "simulated_in_s": self.seconds,
            "sources": self.sources,
        }
        return _plain(document)


def latency_of(values: NDArray[np.float64]) -> Latency:
    """Sum up times; those that are no number do not count, and no times at all are no number."""
    values = values[~np.isnan(values)]
    if not len(values):
        return Latency(np.nan, np.nan, np.nan, np.nan)
    p50, p90, p99 = (float(each) for each in np.quantile(values, (0.5, 0.9, 0.99)))
    return Latency(float(values.mean()), p50, p90, p99)


def _times(service: Service) -> RequestTimes:
    sequences = service.sequences

    def floats(name: str) -> NDArray[np.float64]:
        return np.array([getattr(each, name) for each in sequences], np.float64)

    def counts(name: str) -> NDArray[np.int64]:
        return np.array([getattr(each, name) for each in sequences], np.int64)

    return RequestTimes(
        sent=floats("sent_s"),
        placed=floats("placed_s"),
        started=floats("started_s"),
        first_token=floats("first_token_s"),
        kv_done=floats("kv_done_s"),
        decoding=floats("decoding_s"),
        ended=floats("ended_s"),
        prompt_tokens=np.array([each.request.prompt_tokens for each in sequences], np.int64),
        output_tokens=counts("output_tokens"),
        cached_tokens=counts("cached"),
        prefill_rank=counts("prefill_rank"),
        decode_rank=counts("decode_rank"),
        retries=counts("retries"),
        evictions=counts("evictions"),
        state=np.array([each.state for each in sequences], np.str_),
    )


def _prefill_use(results: ServingResults) -> PhaseUse:
    model = results.assembly.prefill
    steps = results.prefill_steps
    begins, ends, computed = _columns([(begin, end, step.total) for step, begin, end in steps])
    busy_units = _busy(results, begins, ends, [step.unit for step, _, _ in steps], model.pool.units)
    seconds = ends - begins
    return PhaseUse(
        phase="prefill",
        busy=float(np.mean(busy_units)),
        busy_units=busy_units,
        steps=len(steps),
        step_s=_mean(seconds),
        step_p99_s=float(np.quantile(seconds, 0.99)) if len(seconds) else 0.0,
        tokens=int(computed.sum()),
        tokens_s_gpu=results.amount(begins, ends, computed) / results.steady_s / model.ranks,
        load=_mean(np.array([step.mean for step, _, _ in steps])),
        fullest=_mean(np.array([step.tokens for step, _, _ in steps])),
        make_up=make_up(steps),
    )


def _decode_use(results: ServingResults) -> PhaseUse:
    model = results.assembly.decode
    leaps = results.decode_leaps
    begins, ends, told = _columns([(begin, end, leap.steps * leap.sequences) for leap, begin, end in leaps])
    busy_units = _busy(results, begins, ends, [leap.unit for leap, _, _ in leaps], model.pool.units)
    steps = np.array([leap.steps for leap, _, _ in leaps], np.int64)
    seconds = ends - begins
    requests = results.requests
    total = max(1, int(steps.sum()))
    each = seconds / np.maximum(1, steps)
    order = np.argsort(each)
    at_99 = np.searchsorted(np.cumsum(steps[order]), 0.99 * total) if len(steps) else 0
    answered = results.amount(begins, ends, told * results.assembly.tokens_per_step)
    return PhaseUse(
        phase="decode",
        busy=float(np.mean(busy_units)),
        busy_units=busy_units,
        steps=int(steps.sum()),
        step_s=float(seconds.sum()) / total,
        step_p99_s=float(each[order[min(int(at_99), len(order) - 1)]]) if len(order) else 0.0,
        tokens=int((requests.output_tokens - 1)[requests.done].sum()),
        tokens_s_gpu=answered / results.steady_s / model.ranks,
        load=float((steps * np.array([leap.mean for leap, _, _ in leaps])).sum()) / total,
        fullest=float((steps * np.array([leap.rows for leap, _, _ in leaps])).sum()) / total,
        make_up=make_up(leaps),
    )


def _columns(rows: list[tuple[float, float, float]]) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.array(rows, np.float64).reshape(-1, 3).T)


def _busy(
    results: ServingResults, begins: NDArray[np.float64], ends: NDArray[np.float64], unit_of: list[int], units: int
) -> tuple[float, ...]:
    """Return the share of steady time that each unit was in a step."""
    shares = []
    of = np.array(unit_of, np.int64)
    for unit in range(units):
        mine = of == unit
        shares.append(results.amount(begins[mine], ends[mine], (ends - begins)[mine]) / results.steady_s)
    return tuple(shares)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _plain(value: Any) -> Any:
    """Return values as JSON has them."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
