"""Metrics read off the router at scrape time: queues, KV use, lanes, steps, balance."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from fourlane.engine.durations import BOUNDS_S
from fourlane.gateway.expert_balance import balance_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from fourlane.gateway.ranks import RankView
    from fourlane.gateway.router import Router

__all__ = ["RankCollector", "pool_balance"]

_TOTALS = {
    "steps": ("fourlane_steps", "Steps computed."),
    "idle_steps": ("fourlane_idle_steps", "Steps taken part in without own work."),
    "step_s": ("fourlane_step_seconds", "Time in steps."),
    "exchange_s": ("fourlane_exchange_seconds", "Time waiting for expert exchange."),
    "output_tokens": ("fourlane_rank_output_tokens", "Tokens sampled."),
}
_MIGRATION_GAUGES = {
    "placement_version": ("fourlane_placement_version", "Layers committed since the first placement."),
    "forecast_balance": ("fourlane_migration_forecast_balance", "Max over mean to be expected of the last migration."),
    "realised_balance": ("fourlane_migration_realised_balance", "Max over mean that came of the last migration."),
}
_MIGRATIONS = {
    "layers_migrated": ("fourlane_layers_migrated", "Layers whose experts were moved."),
    "experts_moved": ("fourlane_experts_moved", "Experts received from other ranks."),
    "migration_bytes": ("fourlane_migration_bytes", "Bytes of experts received."),
    "migration_s": ("fourlane_migration_seconds", "Time migrations were under way."),
    "migrations_failed": ("fourlane_migrations_failed", "Migrations given up; the placement stayed."),
}
_OVERLAPS = {
    "trial_steps": ("fourlane_overlap_trial_steps", "Steps run in the other mode to see what it takes."),
    "communication_s": ("fourlane_overlap_communication_seconds", "Communication in steps of two streams."),
    "hidden_s": ("fourlane_overlap_hidden_seconds", "Communication in steps of two streams while the rank computed."),
}
_OVERLAP_GAINS = {
    "predicted_gain": (
        "fourlane_overlap_predicted_gain",
        "By what factor two streams were last predicted to be faster than one.",
    ),
    "measured_gain": ("fourlane_overlap_measured_gain", "By what factor two streams were last seen to be faster."),
}
_CACHE = {
    "prompt_tokens": ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    "cached_tokens": ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."),
}


def pool_balance(ranks: Iterable[RankView]) -> dict[str, float]:
    """Return, by pool, the latest expert load of the busiest rank over the mean: the worst any rank reports."""
    balance: dict[str, float] = {}
    for rank in ranks:
        if rank.stats is not None:
            balance[rank.role] = max(balance.get(rank.role, 0.0), rank.stats.balance_max_over_mean)
    return balance


class RankCollector(Collector):
    """Turns a router's view of its ranks into metrics; the vLLM label `engine` holds the rank's name."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def describe(self) -> Iterable[Metric]:
        """Return nothing: no collecting at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of now."""
        yield from self._of_the_queue()
        yield from self._of_ranks()
        yield from self._of_experts()
        yield from self._of_overlap()
        yield from self._totals()

    def _of_the_queue(self) -> Iterator[Metric]:
        router, name = self._router, self._router.metrics.model_name
        running = GaugeMetricFamily("vllm:num_requests_running", "Sequences at ranks.", labels=["model_name"])
        running.add_metric([name], router.running)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests in the queue.", labels=["model_name"])
        waiting.add_metric([name], router.waiting)
        tokens = CounterMetricFamily("vllm:generation_tokens", "Tokens delivered.", labels=["model_name"])
        tokens.add_metric([name], router.metrics.generated_tokens)
        yield from (running, waiting, tokens)

    def _of_ranks(self) -> Iterator[Metric]:
        name = self._router.metrics.model_name
        use = GaugeMetricFamily(
            "vllm:kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.", labels=["model_name", "engine"]
        )
        up = GaugeMetricFamily("fourlane_rank_up", "Whether a rank serves.", labels=["rank"])
        memory = GaugeMetricFamily("fourlane_rank_memory_bytes", "Memory of a rank's process.", labels=["rank"])
        restarts = CounterMetricFamily("fourlane_rank_restarts", "Processes begun after the first.", labels=["rank"])
        for rank in self._router.ranks.values():
            up.add_metric([rank.name], float(rank.state == "ready"))
            restarts.add_metric([rank.name], rank.restarts)
            if rank.stats is not None:
                use.add_metric([name, rank.name], rank.kv_use())
                memory.add_metric([rank.name], rank.stats.memory_bytes)
        balance = GaugeMetricFamily(
            "fourlane_expert_balance_max_over_mean", "Expert load of the busiest rank over the mean.", labels=["pool"]
        )
        for pool, value in pool_balance(self._router.ranks.values()).items():
            balance.add_metric([pool], value)
        yield from (use, up, memory, restarts, balance)

    def _of_experts(self) -> Iterator[Metric]:
        """Yield how even pools are, layer by layer, and what moving experts took."""
        balance = GaugeMetricFamily(
            "fourlane_expert_balance",
            "Rows of the fullest rank over the mean, lately: replicas sharing evenly (before), as split (after).",
            labels=["pool", "layer", "split"],
        )
        for pool, ranks in self._pools().items():
            found = balance_of(rank.balance for rank in ranks)
            for split, value_L in (("before", found.before_L), ("after", found.after_L)) if found is not None else ():
                for layer, value in enumerate(value_L):
                    balance.add_metric([pool, str(layer), split], value)
        yield balance
        gauges = {
            name: GaugeMetricFamily(metric, text, labels=["rank"]) for name, (metric, text) in _MIGRATION_GAUGES.items()
        }
        totals = {
            name: CounterMetricFamily(metric, text, labels=["rank"]) for name, (metric, text) in _MIGRATIONS.items()
        }
        for rank in self._router.ranks.values():
            for name, total in rank.migration_totals().items():
                totals[name].add_metric([rank.name], total)
            for name, family in gauges.items():
                value = getattr(rank.stats.balance, name) if rank.stats is not None else None
                if value is not None:
                    family.add_metric([rank.name], value)
        yield from (*gauges.values(), *totals.values())

    def _of_overlap(self) -> Iterator[Metric]:
        """Yield how steps were run, in one stream or in two, and what that was worth."""
        steps = CounterMetricFamily("fourlane_overlap_steps", "Steps by mode.", labels=["rank", "mode"])
        totals = {
            name: CounterMetricFamily(metric, text, labels=["rank"]) for name, (metric, text) in _OVERLAPS.items()
        }
        gains = {
            name: GaugeMetricFamily(metric, text, labels=["rank"]) for name, (metric, text) in _OVERLAP_GAINS.items()
        }
        decision = GaugeMetricFamily(
            "fourlane_overlap_decision", "How the last step ran, and why: 1.", labels=["rank", "mode", "why"]
        )
        for rank in self._router.ranks.values():
            for name, total in rank.overlap_totals().items():
                if name in totals:
                    totals[name].add_metric([rank.name], total)
                else:
                    steps.add_metric([rank.name, name], total)
            if rank.stats is None:
                continue
            overlap = rank.stats.overlap
            decision.add_metric([rank.name, overlap.mode, overlap.why], 1)
            for name, family in gains.items():
                if (gain := getattr(overlap, name)) is not None:
                    family.add_metric([rank.name], gain)
        yield from (steps, *totals.values(), *gains.values(), decision)

    def _pools(self) -> dict[str, list[RankView]]:
        pools: dict[str, list[RankView]] = {}
        for rank in self._router.ranks.values():
            pools.setdefault(rank.role, []).append(rank)
        return pools

    def _totals(self) -> Iterator[Metric]:
        name = self._router.metrics.model_name
        totals = {rank.name: rank.totals() for rank in self._router.ranks.values()}
        for key, (metric, text) in _TOTALS.items():
            family = CounterMetricFamily(metric, text, labels=["rank"])
            for rank, values in totals.items():
                family.add_metric([rank], values.get(key, 0))
            yield family
        for key, (metric, text) in _CACHE.items():
            family = CounterMetricFamily(metric, text, labels=["model_name", "engine"])
            for rank, values in totals.items():
                if not rank.startswith("decode/"):
                    family.add_metric([name, rank], values.get(key, 0))
            yield family
        lanes = CounterMetricFamily("fourlane_lane_bytes", "Bytes sent by class of traffic.", labels=["rank", "lane"])
        for rank in self._router.ranks.values():
            for lane, total in sorted(rank.lane_bytes().items()):
                lanes.add_metric([rank.name, lane], total)
        yield lanes
        yield self._connections()
        yield self._exchange_times()

    def _connections(self) -> Metric:
        family = CounterMetricFamily(
            "fourlane_lane_connections",
            "Connections opened, by class of traffic and the mark the kernel held.",
            labels=["rank", "lane", "interface", "dscp", "as_planned"],
        )
        for rank in self._router.ranks.values():
            for like in rank.connections():
                planned = "yes" if like.complete else "no"
                lane, dscp = like.traffic_class.value, str(like.dscp)
                family.add_metric([rank.name, lane, like.interface, dscp, planned], like.connections)
        return family

    def _exchange_times(self) -> Metric:
        """Return how long steps waited for the exchange, by pool; the sum is that of `fourlane_exchange_seconds`."""
        family = HistogramMetricFamily(
            "fourlane_step_exchange_seconds", "Time a step waited for expert exchange, all layers.", labels=["pool"]
        )
        bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
        for pool, ranks in self._pools().items():
            by_rank = [times for rank in ranks if (times := rank.step_exchange_times())]
            counts = [sum(column) for column in zip(*by_rank, strict=True)] or [0] * len(bounds)
            seconds = sum(rank.totals().get("exchange_s", 0) for rank in ranks)
            family.add_metric([pool], list(zip(bounds, accumulate(counts), strict=True)), seconds)
        return family
