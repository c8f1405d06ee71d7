"""What a load run was asked to do, checked, and the requests it means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fourlane.errors import SpecError
from fourlane.gateway.load.generator import Load
from fourlane.gateway.load.results import Objectives
from fourlane.gateway.load.traces import read_trace
from fourlane.gateway.load.workload import plan_requests
from fourlane.spec.request_load import Arrivals, Lengths
from fourlane.units import Duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fourlane.gateway.load.workload import PlannedRequest

__all__ = ["LoadPlan", "LoadSettings"]

_REQUESTS = 64
_CONCURRENCY = 16
_WARMUP_CONCURRENCY = 4
_WARMUP_SEED = 1_000_003


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """The requests to send (to be iterated once), how many they are, and a line that says what they are."""

    requests: Iterable[PlannedRequest]
    total: int
    description: str


class LoadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `bench serve`, checked; goes into the JSON as it is. The API key is no part of it."""

    deployment: str | None
    overrides: tuple[str, ...]
    url: str | None
    model: str | None
    requests: int | None
    duration_s: float | None
    concurrency: int | None
    rate: float | None
    burstiness: float
    trace: str | None
    speed: float
    length_scale: float
    max_length: int | None
    input_len: str
    output_len: str
    prompts: str | None
    first_token_id: int
    last_token_id: int
    ignore_eos: bool
    temperature: float
    warmup: int
    timeout_s: float
    seed: int
    slo_ttft_s: float | None
    slo_tpot_s: float | None
    json_path: str | None
    plot_path: str | None

    @classmethod
    def read(cls, options: dict[str, Any]) -> LoadSettings:
        """Check what a command line cannot, and report all of it at once.

        Raises:
            SpecError: durations, ranges or combinations that are wrong.
        """
        faults: list[str] = []
        values = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        for name in ("duration", "timeout", "slo_ttft", "slo_tpot"):
            values[f"{name}_s"] = _seconds(name, values.pop(name), faults)
        values["first_token_id"], values["last_token_id"] = _id_range(values.pop("token_ids"), faults)
        if values["url"] is not None and (values["deployment"] is not None or values["overrides"]):
            faults.append("bench serve: give either --url or a deployment (with --set), not both")
        if values["trace"] is None:
            values["requests"] = values["requests"] or _REQUESTS
            if values["rate"] is None and values["concurrency"] is None:
                values["concurrency"] = _CONCURRENCY
        elif any(values[name] is not None for name in ("rate", "concurrency", "prompts")):
            faults.append(
                "bench serve: --trace has its own times and prompts; leave out --rate, --concurrency and --prompts"
            )
        if faults:
            raise SpecError(*faults)
        return msgspec.convert(values, cls)

    @property
    def objectives(self) -> Objectives:
        """Return what a request must keep to count towards goodput."""
        return Objectives(ttft_s=self.slo_ttft_s, tpot_s=self.slo_tpot_s)

    @property
    def vocabulary(self) -> range:
        """Return the token ids that random prompts draw from."""
        return range(self.first_token_id, self.last_token_id + 1)

    def load(self, model: str) -> Load:
        """Return how requests are sent."""
        return Load(
            model=model,
            concurrency=self.concurrency,
            duration_s=self.duration_s,
            timeout_s=self.timeout_s,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
        )

    def plan(self) -> LoadPlan:
        """Return the requests.

        Raises:
            SpecError: a length, an arrival setting or a file is wrong.
        """
        if self.trace is not None:
            return self._trace_plan(Path(self.trace))
        arrivals = Arrivals(concurrency=self.concurrency, rate=self.rate, burstiness=self.burstiness)
        assert self.requests is not None
        texts = _texts(Path(self.prompts)) if self.prompts else []
        requests = plan_requests(
            arrivals,
            requests=self.requests,
            input_lengths=Lengths.parse(self.input_len, name="--input-len"),
            output_lengths=Lengths.parse(self.output_len, name="--output-len"),
            vocabulary=self.vocabulary,
            seed=self.seed,
            texts=texts,
        )
        when = f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:g} a second"
        what = f"prompts of {self.prompts}" if texts else f"{self.input_len} tokens in"
        description = f"{self.requests} requests, {when}, {what}, {self.output_len} out"
        return LoadPlan(requests=requests, total=self.requests, description=description)

    def _trace_plan(self, path: Path) -> LoadPlan:
        trace = read_trace(
            path,
            limit=self.requests,
            speed=self.speed,
            length_scale=self.length_scale,
            max_length=self.max_length,
        )
        cut = f", {trace.cut()} cut to {self.max_length} tokens" if trace.cut() else ""
        scaled = f", lengths x {self.length_scale:g}" if self.length_scale != 1 else ""
        description = f"{len(trace.rows)} requests of {path}, speed x {self.speed:g}{scaled}{cut}"
        requests = trace.requests(vocabulary=self.vocabulary, seed=self.seed)
        return LoadPlan(requests=requests, total=len(trace.rows), description=description)

    def warmup_plan(self) -> LoadPlan:
        """Return short requests of another seed, so that they warm no prefix of the load."""
        requests = plan_requests(
            Arrivals(concurrency=_WARMUP_CONCURRENCY),
            requests=self.warmup,
            input_lengths=Lengths(kind="fixed", low=64, high=64),
            output_lengths=Lengths(kind="fixed", low=8, high=8),
            vocabulary=self.vocabulary,
            seed=self.seed + _WARMUP_SEED,
        )
        return LoadPlan(requests=requests, total=self.warmup, description=f"{self.warmup} requests to warm up")

    def warmup_load(self, model: str) -> Load:
        """Return how the requests that warm up are sent."""
        return msgspec.structs.replace(self.load(model), concurrency=_WARMUP_CONCURRENCY, duration_s=None)


def _seconds(name: str, text: str | None, faults: list[str]) -> float | None:
    try:
        return None if text is None else Duration.parse(text).seconds
    except ValueError as error:
        faults.append(f"--{name.replace('_', '-')}: {error}")
        return None


def _id_range(text: str, faults: list[str]) -> tuple[int, int]:
    first, _, last = text.partition("..")
    if first.isdecimal() and last.isdecimal() and int(first) <= int(last):
        return int(first), int(last)
    faults.append(f"--token-ids: expected a range such as 300..4000, got {text!r}")
    return 0, 0


def _texts(path: Path) -> list[str]:
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--prompts {path}: cannot be read as UTF-8 text: {error}") from error
    if not texts:
        raise SpecError(f"--prompts {path}: expected one prompt a line, found none")
    return texts
