"""What a twin must satisfy beyond its fields' types: alone, and on its cluster with its model.

Not for memory, which depends on hardware (`fourlane.twin.assembly`).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from fourlane.errors import SpecError
from fourlane.spec.reading import Fault
from fourlane.spec.request_load import Lengths
from fourlane.units import Quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.spec.architecture import Architecture
    from fourlane.spec.cluster import Cluster
    from fourlane.spec.twin import Assumptions, Experts, Slo, Twin, TwinPool, Workload

__all__ = ["placed_faults", "twin_faults"]

_TRACES = (".csv", ".jsonl")
_RANK = re.compile(r"(prefill|decode)/([0-9]+)")


def twin_faults(twin: Twin) -> Iterator[Fault]:
    """Yield every rule that is broken by the twin's file alone."""
    for phase, pool in twin.pools().items():
        yield from _within(phase, _pool(pool))
    yield from _within("experts", _experts(twin.experts))
    yield from _within("workload", _workload(twin.workload))
    yield from _within("slo", _slo(twin.slo))
    yield from _within("assumptions", _assumptions(twin.assumptions))
    yield from _at_least("block_size", twin.block_size, 1)
    yield from _at_least("seed", twin.seed, 0)
    yield from _failing(twin)


def placed_faults(twin: Twin, architecture: Architecture, cluster: Cluster) -> Iterator[Fault]:
    """Yield every rule that the twin breaks on its cluster, with its model."""
    there, each = cluster.servers * cluster.gpus_per_server, cluster.gpus_per_server
    if twin.gpus > there:
        needed = " + ".join(f"{pool.units} x {pool.ranks} ({phase})" for phase, pool in twin.pools().items())
        yield Fault("", f"expected at most the {there} GPUs of {cluster.name}, got {twin.gpus}: {needed}")
    for phase, pool in twin.pools().items():
        if pool.ranks > each and pool.ranks % each:
            below = pool.ranks // each * each
            yield Fault(
                f"{phase}.ranks",
                f"expected whole servers of {each} GPUs beyond one ({below} or {below + each}), got {pool.ranks}",
            )
        most = architecture.experts * (pool.ranks - 1)
        if pool.redundant_experts > most:
            yield Fault(
                f"{phase}.redundant_experts",
                f"expected at most {most}: {architecture.experts} experts once on each of {pool.ranks} ranks, "
                f"got {pool.redundant_experts}",
            )
    if twin.lanes.kv == "dcn" and cluster.dcn is None:
        yield Fault("lanes.kv", f'expected "hpn", the only network of {cluster.name}, got "dcn"')


def _within(table: str, faults: Iterator[Fault]) -> Iterator[Fault]:
    return (Fault(f"{table}.{fault.place}" if fault.place else table, fault.message) for fault in faults)


def _pool(pool: TwinPool) -> Iterator[Fault]:
    for name in ("units", "ranks", "chunk_tokens", "max_running"):
        yield from _at_least(name, getattr(pool, name), 1)
    if pool.kv_memory is not None:
        yield from _at_least("kv_memory", pool.kv_memory, 1)
    yield from _at_least("redundant_experts", pool.redundant_experts, 0)


def _experts(experts: Experts) -> Iterator[Fault]:
    if not 0 <= experts.lean <= 2:
        yield Fault("lean", f"expected a coefficient of variation from 0 to 2, got {experts.lean:g}")
    if experts.popularity == "":
        yield Fault("popularity", 'expected "uniform", "lognormal", "zipf:1.2" or a file of recorded loads, got ""')


def _workload(workload: Workload) -> Iterator[Fault]:
    yield from _arrivals(workload)
    if workload.concurrency is not None:
        yield from _at_least("concurrency", workload.concurrency, 1)
    if workload.requests is not None:
        yield from _at_least("requests", workload.requests, 1)
    for name in ("shared_prefix", "warmup"):
        yield from _at_least(name, getattr(workload, name), 0)
    if not 0 <= workload.burstiness <= 100:
        yield Fault("burstiness", f"expected a coefficient of variation from 0 to 100, got {workload.burstiness:g}")
    if not workload.speed > 0:
        yield Fault("speed", f"expected more than 0 times as fast, got {workload.speed:g}")
    if workload.trace is not None:
        if not workload.trace.endswith(_TRACES):
            yield Fault("trace", f"expected a .csv (Azure) or .jsonl (Mooncake) file, got {workload.trace!r}")
        return
    for name in ("input_len", "output_len"):
        try:
            Lengths.parse(getattr(workload, name), name=name)
        except SpecError as error:
            yield Fault(name, str(error).partition(": ")[2])


def _arrivals(workload: Workload) -> Iterator[Fault]:
    if workload.rate is None:
        return
    if workload.concurrency is not None:
        yield Fault("rate", "expected a rate (open loop) or a concurrency (closed loop), got both; remove one")
    elif workload.trace is not None:
        yield Fault("rate", "expected none with a trace, which has its own times; speed plays it faster or slower")
    if not 0 < workload.rate < math.inf:
        yield Fault("rate", f"expected more than 0 requests a second, got {workload.rate:g}")


def _slo(slo: Slo) -> Iterator[Fault]:
    for name in ("ttft", "tpot"):
        if getattr(slo, name) is not None:
            yield from _at_least(name, getattr(slo, name), 1)
    if not 0 < slo.share <= 1:
        yield Fault("share", f"expected a share of requests above 0, up to 1, got {slo.share:g}")


def _assumptions(assumptions: Assumptions) -> Iterator[Fault]:
    if not 0 <= assumptions.mtp_tokens <= 16:
        yield Fault("mtp_tokens", f"expected 0 to 16 drafted tokens, got {assumptions.mtp_tokens}")
    if not 0 <= assumptions.mtp_acceptance <= 1:
        yield Fault("mtp_acceptance", f"expected a share from 0 to 1, got {assumptions.mtp_acceptance:g}")
    for name in ("sm_share_prefill", "sm_share_decode"):
        share = getattr(assumptions, name)
        if share is not None and not 0 <= share < 1:
            yield Fault(name, f"expected a share of the processors from 0 to below 1, got {share:g}")
    inefficiency = assumptions.micro_batch_inefficiency
    if inefficiency is not None and not 0 <= inefficiency <= 10:
        yield Fault("micro_batch_inefficiency", f"expected 0 to 10 times more, got {inefficiency:g}")
    if assumptions.step_overhead is not None:
        yield from _at_least("step_overhead", assumptions.step_overhead, 0)


def _failing(twin: Twin) -> Iterator[Fault]:
    pools = twin.pools()
    for index, fault in enumerate(twin.faults):
        place = f"faults[{index}]"
        if int(fault.at) < 0:
            yield Fault(f"{place}.at", f"expected 0s or later, got {fault.at}")
        if fault.kind not in ("rank", "kv"):
            continue
        match = _RANK.fullmatch(fault.target)
        if match is None:
            yield Fault(f"{place}.target", f'expected a rank such as "decode/3" or "prefill/0", got "{fault.target}"')
            continue
        pool = pools["prefill" if match[1] == "prefill" else "decode"]
        most = (pool.units * pool.ranks if fault.kind == "rank" else pool.units) - 1
        if int(match[2]) > most:
            what = "ranks" if fault.kind == "rank" else "units"
            yield Fault(f"{place}.target", f'expected {what} 0 to {most} of {match[1]}, got "{fault.target}"')


def _at_least(place: str, value: int, least: int) -> Iterator[Fault]:
    if value < least:
        bound = "more than nothing" if isinstance(value, Quantity) and least else f"at least {least}"
        yield Fault(place, f"expected {bound}, got {value}")
