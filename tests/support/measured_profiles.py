"""Hardware profiles made by hand, so that what a twin makes of them can be worked out."""

from __future__ import annotations

from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.hardware_profile import (
    Crowding,
    HardwareProfile,
    MeasuredKv,
    MeasuredOverheads,
    MeasuredPart,
    MeasuredPhase,
)

__all__ = ["LAYER_S", "STEP_S", "TOKEN_S", "two_cores"]

LAYER_S, TOKEN_S, STEP_S = 4e-4, 1e-5, 8e-4
"""A layer of any pass, each prompt token in a layer, and each step beside its pass."""


def _phase(token_s: float) -> MeasuredPhase:
    flat = MeasuredPart(rows=(0.5, 1024.0), seconds=(LAYER_S / 4, LAYER_S / 4))
    grows = MeasuredPart(rows=(0.0, 1024.0), seconds=(0.0, 1024 * token_s))
    none = MeasuredPart(rows=(1.0,), seconds=(0.0,))
    return MeasuredPhase(
        parts={"attention 0": grows, "attention 1": flat, "experts": flat, "output": none},
        exchange={"dispatch": flat, "combine": flat},
        beside=MeasuredPart(rows=(1.0,), seconds=(STEP_S,)),
    )


def two_cores() -> HardwareProfile:
    """Return a host of two cores, on which units of two ranks compute the bundled model."""
    return HardwareProfile(
        name="two-cores",
        machine="a test",
        device="cpu",
        cores=2,
        date="2026-11-27",
        source="by hand",
        model="bundled",
        architecture=load_architecture("bundled"),
        ranks=2,
        exchange="shared_memory",
        prefill=_phase(TOKEN_S),
        decode=_phase(0.0),
        kv=MeasuredKv(transport="shared_memory", bytes_per_s=1e9, latency_s=1e-3),
        overheads=MeasuredOverheads(arrive_s=3e-3, request_host_s=2e-3, wake_s=1e-3),
        crowding=Crowding(prefill=3.0, decode=2.0, prefill_lone=2.5, decode_lone=1.5),
    )
