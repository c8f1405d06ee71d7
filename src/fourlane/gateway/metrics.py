"""Prometheus metrics: vLLM's names where the meaning is the same, `fourlane_*` for the rest.

Each `Metrics` has a registry of its own, so two services in one process do not mix.
What ranks report is read at scrape time (`rank_metrics`); what the router sees is counted here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from fourlane.gateway.figures import Figures
from fourlane.gateway.rank_metrics import RankCollector

if TYPE_CHECKING:
    from fourlane.engine.messages import KvDelivered
    from fourlane.gateway.generation import Choice
    from fourlane.gateway.router import Router

__all__ = ["Metrics"]

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_REQUEST_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Metrics:
    """Counts and times of one service.

    Args:
        model_name: the value of the label `model_name` that every vLLM metric carries.
    """

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.figures = Figures()
        self.model_name = model_name
        self.generated_tokens = 0
        """Tokens delivered since the beginning; a plain int, being counted for every token."""
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN_S
        )
        self._next_token = self._histogram("vllm:inter_token_latency_seconds", "Between tokens of a text.", _TOKEN_S)
        self._per_token = self._histogram(
            "vllm:time_per_output_token_seconds", "Mean time of a text's tokens after the first.", _TOKEN_S
        )
        self._request = self._histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", _REQUEST_S)
        self._queue = self._histogram("vllm:request_queue_time_seconds", "Wait in the gateway's queue.", _REQUEST_S)
        self._prompt_size = self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a text.", _TOKENS)
        self._output_size = self._histogram("vllm:request_generation_tokens", "Output tokens of a text.", _TOKENS)
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of finished texts.")
        self._preemptions = self._counter("vllm:num_preemptions", "Sequences evicted for want of KV pages.")
        self._finished = Counter(
            "vllm:request_success",
            "Texts ended, by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._retries = Counter("fourlane_retries", "Attempts begun anew after a failure.", registry=self.registry)
        self._errors = Counter(
            "fourlane_request_errors", "Requests refused or failed.", ["status"], registry=self.registry
        )
        self._kv_bytes = Counter(
            "fourlane_kv_transfer_bytes", "KV moved from prefill to decode.", registry=self.registry
        )
        self._kv_s = Counter("fourlane_kv_transfer_seconds", "Time KV was under way.", registry=self.registry)
        self._kv_hidden_s = Counter(
            "fourlane_kv_transfer_hidden_seconds", "Part of it behind prefill computation.", registry=self.registry
        )
        self._kv_count = Counter("fourlane_kv_transfers", "KV transfers acknowledged.", registry=self.registry)
        self.kv_transfer_bytes = 0
        self.kv_transfer_s = 0.0
        self.kv_hidden_s = 0.0

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(name, text, ["model_name"], buckets=buckets, registry=self.registry)
        return metric.labels(self.model_name)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model_name"], registry=self.registry).labels(self.model_name)

    def watch(self, router: Router) -> None:
        """Read this router's ranks and queue at each scrape."""
        self.registry.register(RankCollector(router))

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)

    # called by the router; times in seconds

    def dequeued(self, waited: float) -> None:
        """Count a choice's first way out of the queue."""
        self._queue.observe(waited)

    def first_token(self, seconds: float, now: float) -> None:
        """Count a text's first token, `seconds` after its request arrived."""
        self.generated_tokens += 1
        self._first_token.observe(seconds)
        self.figures.first_token.append(seconds)
        self.figures.token(now)

    def next_token(self, seconds: float, now: float) -> None:
        """Count a token that came `seconds` after the one before."""
        self.generated_tokens += 1
        self._next_token.observe(seconds)
        self.figures.token(now)

    def choice_finished(self, reason: str, choice: Choice, now: float) -> None:
        """Count a text's end: "stop", "length", "abort" or "error"."""
        self._finished.labels(self.model_name, reason).inc()
        self._prompt_size.observe(len(choice.spec.token_ids))
        self._prompt_tokens.inc(len(choice.spec.token_ids))
        self._output_size.observe(len(choice.tokens))
        if len(choice.tokens) > 1:
            mean = (choice.last_token_at - choice.first_token_at) / (len(choice.tokens) - 1)
            self._per_token.observe(mean)
            self.figures.per_token.append(mean)
        self.figures.ended(now)

    def request_finished(self, seconds: float) -> None:
        """Count a request whose texts have all come."""
        self._request.observe(seconds)

    def retried(self) -> None:
        """Count an attempt begun anew after a failure."""
        self._retries.inc()

    def evicted(self) -> None:
        """Count a sequence that lost its pages to others."""
        self._preemptions.inc()

    def kv_delivered(self, message: KvDelivered) -> None:
        """Count a KV transfer."""
        self._kv_count.inc()
        self._kv_bytes.inc(message.bytes)
        self._kv_s.inc(message.transfer_s)
        self._kv_hidden_s.inc(message.hidden_s)
        self.kv_transfer_bytes += message.bytes
        self.kv_transfer_s += message.transfer_s
        self.kv_hidden_s += message.hidden_s

    # called by the app

    def refused(self, status: int) -> None:
        """Count a request answered with an error."""
        self._errors.labels(str(status)).inc()
