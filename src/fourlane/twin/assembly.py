"""Find everything a twin names and put it together: models of its phases, on its cluster, by its hardware.

    assembly = assemble(load_twin("deepseek-h800"))

What twins share (models, clusters, expert balance, exchange tables) is made once a process, and tables of packet runs
once a machine, so that the many candidates of a planner are cheap. Not for what is then asked of it
(`fourlane.twin.operating_point`, `fourlane.twin.serving`, `fourlane.twin.ladder`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fourlane.errors import SpecError
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.hardware import load_gpu
from fourlane.spec.load import load_cluster
from fourlane.spec.twin_rules import placed_faults, twin_faults
from fourlane.twin.assembly_parts import Assembly, Overheads, PhaseModel
from fourlane.twin.exchange.filling import exchange_tables
from fourlane.twin.exchange.lanes import lanes_case
from fourlane.twin.exchange.setting import exchange_setting
from fourlane.twin.expert_balance import expert_balance
from fourlane.twin.kernel_times import RooflineTimes
from fourlane.twin.kv_path import kv_path
from fourlane.twin.measured_assembly import assemble_measured, names_profile
from fourlane.twin.memory import memory_use
from fourlane.twin.steady.request_mix import longest
from fourlane.twin.step_model import StepModel, step_figures, tokens_per_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fourlane.spec.architecture import Architecture
    from fourlane.spec.cluster import Cluster
    from fourlane.spec.reading import Fault
    from fourlane.spec.twin import Twin
    from fourlane.twin.exchange.lanes import LanesCase
    from fourlane.twin.exchange.setting import ExchangeSetting
    from fourlane.twin.memory import MemoryUse
    from fourlane.twin.times import ExchangeTimes, Phase

__all__ = ["assemble", "exchange_settings", "gpu_of", "named_parts"]

_PHASES: tuple[Phase, ...] = ("prefill", "decode")
T = TypeVar("T")


def assemble(twin: Twin, *, progress: Callable[[Any], object] | None = None, processes: int | None = None) -> Assembly:
    """Return a twin with everything it names, ready to be asked.

    Args:
        twin: what to simulate.
        progress: called while packets are simulated, where tables of exchange times are missing.
        processes: that simulate packets at once; None: as many as there are processors, where that is worth while.

    Raises:
        SpecError: with every fault of the twin; a model that does not fit is told with the GB that are missing.
        SimulationError: a packet run did not end.
    """
    _refuse(twin, twin_faults(twin))
    if names_profile(twin):
        return assemble_measured(twin, load_architecture(twin.model), load_cluster(twin.cluster))
    architecture, cluster, gpu = named_parts(twin)
    _refuse(twin, placed_faults(twin, architecture, cluster))
    lanes = lanes_case(twin.lanes, cluster)
    assert lanes.plan is not None, "a twin's lanes have a plan"
    memory = _memory(twin, architecture, gpu)
    settings = exchange_settings(twin, architecture, cluster, lanes)
    tables = exchange_tables([settings[phase] for phase in _PHASES], progress=progress, processes=processes)
    models = {
        phase: _phase_model(twin, phase, architecture, cluster, memory[phase], table)
        for phase, table in zip(_PHASES, tables, strict=True)
    }
    return Assembly(
        twin=twin,
        architecture=architecture,
        cluster=cluster,
        hardware=load_gpu(gpu),
        plan=lanes.plan,
        prefill=models["prefill"],
        decode=models["decode"],
        kv=kv_path(cluster, lanes),
        kv_token_bytes=float(architecture.kv_bytes_per_token(twin.assumptions.kv)),
        tokens_per_step=tokens_per_step(twin.assumptions),
        overheads=Overheads(),
        sources={
            "model": architecture.source,
            "hardware": load_gpu(gpu).source,
            "cluster": f"cluster {cluster.name}",
            "lanes": lanes.name,
        },
    )


def named_parts(twin: Twin) -> tuple[Architecture, Cluster, str]:
    """Return the model, the cluster and the GPU that a twin names.

    Raises:
        SpecError: with all of those that are not to be found.
    """
    faults: list[str] = []
    architecture = _found(faults, lambda: _architecture(twin.model, _changed(twin.model)))
    cluster = _found(faults, lambda: _cluster(twin.cluster, _changed(twin.cluster)))
    gpu = None if cluster is None else _found(faults, lambda: gpu_of(twin, cluster))
    if twin.hardware is not None and cluster is None:
        _found(faults, lambda: load_gpu(str(twin.hardware)))
    if architecture is None or cluster is None or gpu is None:
        raise SpecError(*(f"{twin.name}: {fault}" for fault in faults))
    return architecture, cluster, gpu


def gpu_of(twin: Twin, cluster: Cluster) -> str:
    """Return the name of the GPU that a twin computes on.

    Raises:
        SpecError: neither the twin nor its cluster names one of the catalog.
    """
    name = twin.hardware or cluster.gpu
    if name is None:
        raise SpecError(
            f'hardware: expected a GPU of the catalog such as "h800", or a hardware profile: {cluster.name} names none'
        )
    load_gpu(name)
    return name.lower()


def exchange_settings(
    twin: Twin, architecture: Architecture, cluster: Cluster, lanes: LanesCase
) -> dict[Phase, ExchangeSetting]:
    """Return what the exchange of both phases' units depends on."""
    gpu = gpu_of(twin, cluster)
    found: dict[Phase, ExchangeSetting] = {}
    for phase in _PHASES:
        pool = twin.pools()[phase]
        found[phase] = exchange_setting(
            architecture,
            cluster,
            ranks=pool.ranks,
            phase=phase,
            lanes=lanes,
            gpu=gpu,
            dispatch=twin.assumptions.dispatch,
            redundant_experts=pool.redundant_experts,
        )
    return found


def _phase_model(
    twin: Twin,
    phase: Phase,
    architecture: Architecture,
    cluster: Cluster,
    memory: MemoryUse,
    exchange: ExchangeTimes,
) -> PhaseModel:
    pool, gpu = twin.pools()[phase], gpu_of(twin, cluster)
    balance = expert_balance(
        architecture,
        pool.ranks,
        pool.redundant_experts,
        twin.experts,
        nodes=max(1, pool.ranks // cluster.gpus_per_server),
        seed=twin.seed,
        phase=phase,
    )
    steps = StepModel(
        architecture=architecture,
        phase=phase,
        kernels=RooflineTimes(architecture, gpu, twin.assumptions),
        exchange=exchange,
        balance=balance,
        overlap=pool.overlap,
        assumptions=twin.assumptions,
        figures=step_figures(phase, gpu, twin.assumptions),
    )
    return PhaseModel(phase, pool, steps, memory, balance, exchange)


def _memory(twin: Twin, architecture: Architecture, gpu: str) -> dict[Phase, MemoryUse]:
    """Return what ranks of both phases hold.

    Raises:
        SpecError: the model does not fit, or the longest request's KV cache does not; both phases are told.
    """
    faults: list[str] = []
    found: dict[Phase, MemoryUse] = {}
    tokens = longest(twin.workload)
    for phase in _PHASES:
        pool = twin.pools()[phase]
        use = _found(
            faults,
            lambda pool=pool, phase=phase: memory_use(
                architecture, gpu, pool, twin.assumptions, block_size=twin.block_size, place=phase
            ),
        )
        if use is None:
            continue
        found[phase] = use
        held = tokens["prompt"] if phase == "prefill" else tokens["request"]
        needed = -(-held // twin.block_size)
        if needed > use.kv_blocks:
            missing = (needed - use.kv_blocks) * use.kv / use.kv_blocks
            faults.append(
                f"{phase}: the longest request has {held:,} tokens of KV cache, a rank has room for "
                f"{use.kv_blocks * twin.block_size:,}: {missing / 1e9:.1f} GB too little; allow shorter requests, "
                "share the experts over more ranks, or give more kv_memory"
            )
    if faults:
        raise SpecError(*(f"{twin.name}: {fault}" for fault in faults))
    return found


def _found(faults: list[str], find: Callable[[], T]) -> T | None:
    """Return what is found; where it is refused, note why and return None."""
    try:
        return find()
    except SpecError as error:
        faults.extend(error.faults)
        return None


def _refuse(twin: Twin, faults: Iterable[Fault]) -> None:
    told = [f"{twin.name}: {fault.place}: {fault.message}".replace(": : ", ": ") for fault in faults]
    if told:
        raise SpecError(*told)


def _changed(name: str) -> int:
    """Return when a file changed last, 0 for what is none."""
    path = Path(name).expanduser()
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=64)
def _architecture(name: str, _changed: int) -> Architecture:
    return load_architecture(name)


@lru_cache(maxsize=64)
def _cluster(name: str, _changed: int) -> Cluster:
    return load_cluster(name)
