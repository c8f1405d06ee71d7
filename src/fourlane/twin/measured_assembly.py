"""Put a twin together that computes on a machine that was measured: by its hardware profile in place of a catalog.

Not for GPUs of the catalog on a simulated network (`fourlane.twin.assembly`, which comes here where a twin names a
profile).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fourlane.spec.hardware_profile import load_profile
from fourlane.twin.assembly_parts import Assembly, Overheads, PhaseModel
from fourlane.twin.exchange.lanes import lanes_case
from fourlane.twin.expert_balance import expert_balance, physical_slots
from fourlane.twin.measured_times import (
    MeasuredExchange,
    MeasuredKvPath,
    MeasuredMemory,
    MeasuredTimes,
    check_measured_for,
)
from fourlane.twin.memory import weight_bytes
from fourlane.twin.step_model import StepModel, tokens_per_step

if TYPE_CHECKING:
    from fourlane.spec.architecture import Architecture
    from fourlane.spec.cluster import Cluster
    from fourlane.spec.hardware_profile import HardwareProfile
    from fourlane.spec.twin import Twin
    from fourlane.twin.times import Phase

__all__ = ["assemble_measured", "names_profile"]


def names_profile(twin: Twin) -> bool:
    """Tell whether a twin computes on a hardware profile, not a GPU of the catalog."""
    return twin.hardware is not None and twin.hardware.endswith(".toml")


def assemble_measured(twin: Twin, architecture: Architecture, cluster: Cluster) -> Assembly:
    """Return a twin whose times are those of a hardware profile.

    Args:
        twin: which names the profile.
        architecture: of its model.
        cluster: it names; no traffic is simulated on it.

    Raises:
        SpecError: with every fault of the profile, or it was measured with something else.
    """
    profile = load_profile(str(twin.hardware))
    check_measured_for(profile, architecture, {phase: pool.ranks for phase, pool in twin.pools().items()})
    lanes = lanes_case(twin.lanes, cluster)
    assert lanes.plan is not None, "a cluster has one at least by default"
    return Assembly(
        twin=twin,
        architecture=architecture,
        cluster=cluster,
        hardware=profile,
        plan=lanes.plan,
        prefill=_phase_model(twin, "prefill", architecture, profile),
        decode=_phase_model(twin, "decode", architecture, profile),
        kv=MeasuredKvPath(profile),
        kv_token_bytes=float(architecture.kv_bytes_per_token(twin.assumptions.kv)),
        tokens_per_step=tokens_per_step(twin.assumptions),
        overheads=_overheads(profile),
        cores=profile.cores,
        crowding=profile.crowding,
        sources={
            "model": architecture.source,
            "hardware": f"{profile.label}, by {profile.source}; {profile.fitted}",
            "experts": "as uneven as when they were measured",
            "network": "none is simulated: exchange and KV path were measured",
        },
    )


def _overheads(profile: HardwareProfile) -> Overheads:
    """Return what a request waits for: of all that was measured for a lone one, what comes first, and the rest."""
    measured = profile.overheads
    found = Overheads(
        request_host_s=measured.request_host_s,
        wake_s=measured.wake_s,
        join_s=measured.join_s,
        cold_prefill_s=measured.cold_prefill_s,
        cold_decode_s=measured.cold_decode_s,
        source=profile.label,
    )
    return replace(found, arrive_s=max(0.0, measured.arrive_s - found.gateway_s))


def _phase_model(twin: Twin, phase: Phase, architecture: Architecture, profile: HardwareProfile) -> PhaseModel:
    pool = twin.pools()[phase]
    balance = expert_balance(
        architecture, pool.ranks, pool.redundant_experts, twin.experts, nodes=1, seed=twin.seed, phase=phase
    )
    exchange = MeasuredExchange(profile, phase)
    steps = StepModel(
        architecture=architecture,
        phase=phase,
        kernels=MeasuredTimes(profile),
        exchange=exchange,
        balance=balance,
        overlap="never" if pool.overlap == "auto" else pool.overlap,
        assumptions=twin.assumptions,
        gpu=profile.device != "cpu",
    )
    slots = physical_slots(architecture.experts, pool.redundant_experts, pool.ranks) // pool.ranks
    memory = MeasuredMemory.of(
        architecture,
        pool,
        weights=weight_bytes(architecture, twin.assumptions.weights or architecture.weights, held_experts=slots),
        kv=twin.assumptions.kv,
        block_size=twin.block_size,
    )
    return PhaseModel(phase, pool, steps, memory, balance, exchange)
