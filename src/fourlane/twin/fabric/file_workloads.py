"""Workloads as a scenario file writes them: a pattern and its figures, and what a workload waits for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from fourlane.errors import SpecError
from fourlane.spec.reading import Fault
from fourlane.twin.fabric import collectives, workloads
from fourlane.twin.fabric.expert_forwarding import NormalKernels
from fourlane.twin.fabric.expert_routing import ExpertRouting, count_messages, ranks_of_experts
from fourlane.twin.fabric.expert_traffic import LowLatencyKernels
from fourlane.twin.fabric.expert_workloads import expert_flows, expert_layers
from fourlane.twin.fabric.flows import Steps
from fourlane.units import Duration, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fourlane.twin.fabric.expert_traffic import ExpertTraffic
    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.topology import Topology

    Maker = Callable[["Workload", Topology], Flows]

__all__ = ["Workload", "flows_of", "hosts_of", "workload_faults"]

_SPAN = re.compile(r"(\d{1,7})(?:-(\d{1,7})(?:/(\d{1,7}))?)?")
_GENERAL = ("traffic", "start", "after", "delay", "message", "repeat", "gap")
_TAKES: dict[str, tuple[str, ...]] = {
    "flows": ("sources", "destinations", "size", "network"),
    "permutation": ("hosts", "size", "seed"),
    "incast": ("sources", "destination", "size"),
    "all-to-all": ("hosts", "size"),
    "kv": ("prefill", "decode", "size", "layers", "interval", "network"),
    "ring-all-reduce": ("hosts", "size"),
    "halving-doubling-all-reduce": ("hosts", "size"),
    "poisson": ("hosts", "size", "utilisation", "duration", "seed"),
    "expert-dispatch": ("experts", "seed"),
    "expert-combine": ("experts", "seed"),
    "expert-layers": ("experts", "layers", "attention", "compute", "seed"),
}
_NEEDS: dict[str, tuple[str, ...]] = {
    "flows": ("sources", "destinations", "size"),
    "permutation": ("size",),
    "incast": ("size",),
    "all-to-all": ("size",),
    "kv": ("prefill", "decode", "size"),
    "ring-all-reduce": ("size",),
    "halving-doubling-all-reduce": ("size",),
    "poisson": ("size", "utilisation", "duration"),
    "expert-dispatch": ("experts",),
    "expert-combine": ("experts",),
    "expert-layers": ("experts", "layers", "attention", "compute"),
}
_DEFAULT_CLASS = {
    "kv": "kv",
    "ring-all-reduce": "collective",
    "halving-doubling-all-reduce": "collective",
    "poisson": "bulk",
}


class Experts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Expert-parallel groups of equal size: what their tokens choose, and how kernels carry them.

    See `ExpertRouting`, `LowLatencyKernels` and `NormalKernels` for the fields; choices are drawn from the
    workload's seed, for every group its own.
    """

    ranks: int
    tokens: int
    experts: int
    top_k: int = 8
    expert_groups: int = 1
    top_groups: int = 1
    rank_groups: int = 1
    kernels: Literal["low-latency", "normal"] = "low-latency"
    hidden: int = 7168
    ranks_per_node: int = 8
    nvlink: bool = False
    cross_rail: Literal["spine", "sender", "receiver"] = "spine"
    queue_pairs: int | None = None


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One workload; which fields it takes follows from its pattern.

    Hosts are numbers, or spans such as "0-63", "0-7, 16-23", "0-127/8" (every eighth). `after` names workloads
    of the file before this one that must be delivered first, `delay` later it starts. `repeat` runs it so many
    times, each `gap` after the one before was delivered.
    """

    pattern: Literal[
        "flows",
        "permutation",
        "incast",
        "all-to-all",
        "kv",
        "ring-all-reduce",
        "halving-doubling-all-reduce",
        "poisson",
        "expert-dispatch",
        "expert-combine",
        "expert-layers",
    ]
    traffic: str | None = None
    size: Size | None = None
    hosts: str | None = None
    sources: str | None = None
    destinations: str | None = None
    destination: int | None = None
    prefill: str | None = None
    decode: str | None = None
    network: str | None = None
    layers: int | None = None
    interval: Duration | None = None
    utilisation: float | None = None
    duration: Duration | None = None
    seed: int | None = None
    experts: Experts | None = None
    attention: Duration | None = None
    compute: Duration | None = None
    message: Size | None = None
    start: Duration | None = None
    after: tuple[str, ...] = ()
    delay: Duration | None = None
    repeat: int | None = None
    gap: Duration | None = None


def workload_faults(workload: Workload, before: Sequence[str]) -> Iterator[Fault]:
    """Yield what is wrong with a workload's fields; `before` are the names of those above it in the file."""
    yield from _misplaced(workload)
    yield from _misspelt_hosts(workload)
    for name in workload.after:
        if name not in before:
            known = ", ".join(before) or "none"
            yield Fault("after", f'expected workloads above this one ({known}), got "{name}"')
    for name, least, most in (
        ("layers", 1, 10_000),
        ("repeat", 1, 10_000),
        ("destination", 0, 1 << 30),
        ("seed", 0, (1 << 64) - 1),
    ):
        value = getattr(workload, name)
        if value is not None and not least <= value <= most:
            yield Fault(name, f"expected a whole number from {least} to {most}, got {value}")
    if workload.size is not None and workload.size < 1:
        yield Fault("size", f"expected at least 1B, got {workload.size}")
    if workload.experts is not None:
        yield from _expert_faults(workload.experts)


def _misplaced(workload: Workload) -> Iterator[Fault]:
    """Yield fields that the pattern does not take, and those it needs."""
    takes = (*_TAKES[workload.pattern], *_GENERAL)
    for name in workload.__struct_fields__:
        said = getattr(workload, name) not in (None, ())
        if said and name not in (*takes, "pattern"):
            yield Fault(name, f'pattern "{workload.pattern}" has none; it takes {", ".join(takes)}')
        if not said and name in _NEEDS[workload.pattern]:
            yield Fault(name, f'pattern "{workload.pattern}" needs it, but it is missing')


def _misspelt_hosts(workload: Workload) -> Iterator[Fault]:
    for name in ("hosts", "sources", "destinations", "prefill", "decode"):
        text = getattr(workload, name)
        if text is not None:
            try:
                hosts_of(text)
            except ValueError as error:
                yield Fault(name, str(error))


def _expert_faults(experts: Experts) -> Iterator[Fault]:
    for name in ("ranks", "tokens", "experts", "top_k", "rank_groups", "hidden", "ranks_per_node"):
        if getattr(experts, name) < 1:
            yield Fault(f"experts.{name}", f"expected at least 1, got {getattr(experts, name)}")
    if experts.kernels == "normal" and (experts.nvlink or experts.cross_rail != "spine"):
        yield Fault("experts.kernels", '"normal" kernels always use NVLink; leave nvlink and cross_rail out')
    if experts.kernels == "normal" and experts.rank_groups > 1:
        yield Fault("experts.rank_groups", 'expected 1 with "normal" kernels; write a workload for each group')


def hosts_of(text: str) -> list[int]:
    """Return the hosts that "0-7, 16, 32-63/4" names.

    Raises:
        ValueError: it is no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        first, last, step = (int(match[1]), int(match[2] or match[1]), int(match[3] or 1)) if match else (1, 0, 1)
        if last < first or step < 1:
            raise ValueError(f'expected hosts such as "0-63", "0-7, 16" or "0-127/8", got "{text}"')
        found += range(first, last + 1, step)
    return found


def flows_of(table: Mapping[str, Workload], topology: Topology, source: str, faults: list[str]) -> Flows | None:
    """Return the flows of all workloads of a file, or note why there are none."""
    steps = Steps()
    number: dict[str, int] = {}
    for name, workload in table.items():
        try:
            flows = _made(workload, topology, name)
            number[name] = steps.add(
                flows, after=[number[other] for other in workload.after if other in number], delay=_said(workload.delay)
            )
        except SpecError as error:
            faults += [f"{source}: workloads.{name}: {fault}" for fault in error.faults]
    return None if faults else steps.flows()


def _said(duration: Duration | None) -> Duration:
    return Duration(0) if duration is None else duration


def _made(workload: Workload, topology: Topology, name: str) -> Flows:
    flows = _MAKERS[workload.pattern](workload, topology)
    traffic = workload.traffic or _DEFAULT_CLASS.get(workload.pattern)
    if traffic is not None:
        flows = flows.of_class(traffic)
    if workload.message is not None:
        flows = flows.in_messages(workload.message)
    if workload.start is not None:
        flows = flows.starting(np.broadcast_to(flows.start, len(flows)) + int(workload.start))
    if not workload.pattern.startswith("expert"):
        flows = flows.named(name)
    if workload.repeat is not None:
        flows = collectives.repeated(flows, workload.repeat, gap=_said(workload.gap))
    return flows


def _hosts(text: str | None) -> list[int] | None:
    return None if text is None else hosts_of(text)


def _some(text: str | None) -> list[int]:
    assert text is not None  # `workload_faults` has seen to it
    return hosts_of(text)


def _size(workload: Workload) -> Size:
    assert workload.size is not None
    return workload.size


def _seed(workload: Workload) -> int:
    return 1 if workload.seed is None else workload.seed


def _flows(workload: Workload, topology: Topology) -> Flows:
    sources, destinations = _some(workload.sources), _some(workload.destinations)
    return workloads.between(topology, sources, destinations, _size(workload), network=workload.network or 0)


def _permutation(workload: Workload, topology: Topology) -> Flows:
    return workloads.permutation(topology, _size(workload), hosts=_hosts(workload.hosts), seed=_seed(workload))


def _incast(workload: Workload, topology: Topology) -> Flows:
    sources, destination = _hosts(workload.sources), workload.destination or 0
    return workloads.incast(topology, _size(workload), sources=sources, destination=destination)


def _all_to_all(workload: Workload, topology: Topology) -> Flows:
    return workloads.all_to_all(topology, _size(workload), hosts=_hosts(workload.hosts))


def _kv(workload: Workload, topology: Topology) -> Flows:
    return workloads.kv_transfers(
        topology,
        _size(workload),
        prefill=_some(workload.prefill),
        decode=_some(workload.decode),
        layers=workload.layers or 1,
        interval=_said(workload.interval),
        network=workload.network or 0,
    )


def _ring(workload: Workload, topology: Topology) -> Flows:
    return collectives.ring_all_reduce(topology, _size(workload), hosts=_hosts(workload.hosts))


def _halving(workload: Workload, topology: Topology) -> Flows:
    return collectives.halving_doubling_all_reduce(topology, _size(workload), hosts=_hosts(workload.hosts))


def _poisson(workload: Workload, topology: Topology) -> Flows:
    assert workload.utilisation is not None
    assert workload.duration is not None
    return workloads.poisson(
        topology,
        _size(workload),
        utilisation=workload.utilisation,
        duration=workload.duration,
        hosts=_hosts(workload.hosts),
        seed=_seed(workload),
    )


def _exchanges(workload: Workload, times: int) -> Iterator[tuple[ExpertTraffic, ExpertTraffic]]:
    """Yield dispatch and combine, `times` times with new choices."""
    e = workload.experts
    assert e is not None
    routing = ExpertRouting(
        tokens=e.tokens, experts=e.experts, top_k=e.top_k, groups=e.expert_groups, top_groups=e.top_groups
    )
    draw = np.random.default_rng(_seed(workload))

    def ranks() -> Any:
        return ranks_of_experts(routing.draw(draw, e.ranks), ranks=e.ranks, experts=e.experts)

    for _ in range(times):
        if e.kernels == "normal":
            normal = NormalKernels(hidden=e.hidden, ranks_per_node=e.ranks_per_node)
            rank_TK = ranks()
            yield normal.dispatch(rank_TK, ranks=e.ranks), normal.combine(rank_TK, ranks=e.ranks)
        else:
            direct = LowLatencyKernels(
                hidden=e.hidden, ranks_per_node=e.ranks_per_node, nvlink=e.nvlink, cross_rail=e.cross_rail
            )
            counts = np.stack([count_messages(ranks(), ranks=e.ranks) for _ in range(e.rank_groups)])
            yield direct.dispatch(counts), direct.combine(counts)


def _dispatch(workload: Workload, topology: Topology) -> Flows:
    return _exchange(workload, topology, 0)


def _combine(workload: Workload, topology: Topology) -> Flows:
    return _exchange(workload, topology, 1)


def _exchange(workload: Workload, topology: Topology, which: int) -> Flows:
    assert workload.experts is not None
    traffic = next(_exchanges(workload, 1))[which]
    name = workload.pattern.removeprefix("expert-")
    return expert_flows(topology, traffic, queue_pairs=workload.experts.queue_pairs, name=name)


def _layers(workload: Workload, topology: Topology) -> Flows:
    pairs = list(_exchanges(workload, workload.layers or 1))
    attention, experts = _said(workload.attention), _said(workload.compute)
    return expert_layers(topology, pairs, attention=attention, experts=experts)


_MAKERS: dict[str, Maker] = {
    "flows": _flows,
    "permutation": _permutation,
    "incast": _incast,
    "all-to-all": _all_to_all,
    "kv": _kv,
    "ring-all-reduce": _ring,
    "halving-doubling-all-reduce": _halving,
    "poisson": _poisson,
    "expert-dispatch": _dispatch,
    "expert-combine": _combine,
    "expert-layers": _layers,
}
