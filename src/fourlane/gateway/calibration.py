"""Measure what the twin has to know of this machine: passes, exchange and KV path of its ranks, steps of its service.

    profile = calibrate(deployment)

Passes are measured part by part on ranks of their own, with nothing beside them; then the deployment is brought up and
sent small loads, which say what its steps take beyond that, and how units of both phases slow each other down where
they share cores. Not for judging how good a service is (`fourlane bench`).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fourlane import __version__
from fourlane.engine.calibration import CalibrationPlan, PassCase, machine_name, measure_alone, measured_phase
from fourlane.engine.measured_ranks import Seats, meeting_place
from fourlane.engine.model.config import resolve_model_path
from fourlane.engine.rank_config import exchange_of
from fourlane.errors import SpecError
from fourlane.gateway.calibration_effort import Effort, Steps
from fourlane.gateway.live_figures import ServiceCalibration, pooled
from fourlane.gateway.mixed_loads import fitted
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.hardware_profile import (
    HardwareProfile,
    MeasuredKv,
    MeasuredPart,
    MeasuredPhase,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.spec.deployment import Deployment, Pool

__all__ = ["calibrate"]

Phase = Literal["prefill", "decode"]
_NOTHING = MeasuredPart(rows=(1.0,), seconds=(0.0,))
_SHORT, _LONG = 96, 480
"""Tokens that decoding sequences have when their passes are measured."""


def calibrate(
    deployment: Deployment, *, effort: Effort | None = None, show: Callable[[int, int, str], None] | None = None
) -> HardwareProfile:
    """Measure this machine by a deployment, and return its profile.

    Args:
        deployment: prefill and decode pools of one group each, of as many ranks, on this host.
        effort: how long it is measured; None: three to four minutes for the bundled model.
        show: told how many steps of measuring are done, of how many, and what is measured now.

    Raises:
        SpecError: the deployment cannot be measured.
        CheckFailed, EngineError: something failed while it was.
    """
    effort = effort or Effort()
    pools = _pools(deployment)
    steps = Steps(show)
    model = str(resolve_model_path(deployment.model.path))
    architecture = load_architecture(deployment.model.path)
    longest = deployment.model.max_length or _max_positions(model)
    phases = {
        phase: _measure_passes(phase, deployment, pool, model, longest, effort, steps) for phase, pool in pools.items()
    }
    kv = _measure_kv(deployment, steps)
    live = pooled(
        [
            asyncio.run(ServiceCalibration(deployment, pools, architecture, phases, longest, effort, steps).measure())
            for _ in range(effort.services)
        ]
    )
    profile = HardwareProfile(
        name=f"{os.cpu_count()}-cores" if pools["decode"].device == "cpu" else pools["decode"].device,
        machine=machine_name(pools["decode"].device),
        device=pools["decode"].device,
        cores=os.cpu_count() if pools["decode"].device == "cpu" else None,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        source="fourlane twin calibrate"
        + (f" ({live.disturbed} of its loads always disturbed by other work)" if live.disturbed else ""),
        fitted=_fitted(mixed=bool(live.mixed)),
        versions=_versions(),
        model=deployment.model.path,
        architecture=architecture,
        ranks=pools["decode"].ranks,
        exchange=exchange_of(deployment, pools["decode"]) if pools["decode"].ranks > 1 else "local",
        prefill=live.prefill,
        decode=live.decode,
        kv=MeasuredKv(transport=kv[0], bytes_per_s=kv[1], latency_s=live.hand_off_s),
        overheads=live.overheads,
        crowding=live.crowding,
    )
    if live.mixed:
        steps("the twin is fitted to mixed loads")
        profile = fitted(profile, deployment, live.mixed)
    return profile


def _fitted(*, mixed: bool) -> str:
    """Return what of a profile was adjusted rather than measured on its own, and on what."""
    if mixed:
        return (
            "what steps take beside their passes, and what decoding loses to prompts and to sequences that join: "
            "steps and mixed loads of the running service, of calibration's own"
        )
    return (
        "what steps take beside their passes: steps of the running service, of calibration's own; every rank is taken "
        "to have a GPU to itself"
    )


def _pools(deployment: Deployment) -> dict[Phase, Pool]:
    """Return both pools.

    Raises:
        SpecError: they are not of the kind that can be measured here.
    """
    prefill, decode = deployment.prefill, deployment.decode
    if prefill is None or decode is None:
        raise SpecError("expected a deployment with [prefill] and [decode]: the twin simulates both phases apart")
    faults = [
        f"{role}.{name}: {message}"
        for role, pool in (("prefill", prefill), ("decode", decode))
        for name, message in _pool_faults(pool)
    ]
    if prefill.ranks != decode.ranks:
        faults.append(f"decode.ranks: expected {prefill.ranks} as prefill.ranks is, got {decode.ranks}")
    if faults:
        raise SpecError(*faults)
    return {"prefill": prefill, "decode": decode}


def _pool_faults(pool: Pool) -> list[tuple[str, str]]:
    faults = []
    if pool.launch != "local":
        faults.append(("launch", f'expected "local": ranks are measured on this host, got "{pool.launch}"'))
    if (pool.expert_parallel or pool.ranks) != pool.ranks:
        faults.append(("expert_parallel", f"expected {pool.ranks}, one group a pool, got {pool.expert_parallel}"))
    if pool.device != "cpu" and pool.ranks > 1:
        faults.append(("ranks", f"expected 1 on a GPU: passes of groups are measured on CPUs, got {pool.ranks}"))
    return faults


# passes


def _measure_passes(
    phase: Phase,
    deployment: Deployment,
    pool: Pool,
    model: str,
    longest: int,
    effort: Effort,
    show: Steps,
) -> MeasuredPhase:
    cases = _decode_cases(pool, longest) if phase == "decode" else _prefill_cases(pool, longest)
    with meeting_place() as folder:
        plan = CalibrationPlan(
            seats=Seats(addresses=(deployment.exchange.address,) * pool.ranks, folder=folder),
            model=model,
            device=pool.device,
            exchange=exchange_of(deployment, pool) if pool.ranks > 1 else "local",
            threads=pool.threads,
            cases=tuple(cases),
            seconds=effort.pass_s,
            rounds=effort.pass_rounds,
        )
        times = measure_alone(plan, lambda case: show(f"passes: {phase}, {case.rows} rows a rank"))
    top_k = load_architecture(deployment.model.path).top_k
    return measured_phase(times, top_k=top_k, ranks=pool.ranks, beside=_NOTHING)


def _decode_cases(pool: Pool, longest: int) -> list[PassCase]:
    long, short = min(_LONG, longest - 2), min(_SHORT, longest // 4)
    rows = [rows for rows in (1, 2, 4, 8, 16, 32) if rows <= pool.max_running]
    cases = [PassCase(phase="decode", rows=each, context=short) for each in rows]
    cases.append(PassCase(phase="decode", rows=rows[len(rows) // 2], context=long))
    if pool.ranks > 1:
        cases.insert(0, PassCase(phase="decode", rows=1, context=short, lone=True))
    return cases


def _prefill_cases(pool: Pool, longest: int) -> list[PassCase]:
    most = min(pool.chunk_tokens, longest - 1)
    sizes = sorted({most, *(size for size in (16, 64, 128, 256, 512, 2048, 8192) if size < most)})
    cases = [PassCase(phase="prefill", rows=size, context=size) for size in sizes]
    cases.append(PassCase(phase="prefill", rows=most, context=max(1, most // 4)))
    if pool.ranks > 1:
        cases += [PassCase(phase="prefill", rows=size, context=size, lone=True) for size in sizes]
    return cases


def _measure_kv(deployment: Deployment, show: Steps) -> tuple[str, float]:
    """Return the transport of KV inside this host, and its bytes a second."""
    from fourlane.engine.kv_transfer.measure import GRAIN, Sending

    show("KV transfer")
    wanted = deployment.kv_transfer.transport
    transport = "shared_memory" if wanted == "auto" else wanted
    size = 256 * GRAIN
    with Sending(deployment.kv_transfer, largest=size) as sending, sending.open(transport) as time_series:
        series = time_series(size, 15)
    return transport, size / statistics.median(series.seconds)


# this machine


def _max_positions(model: str) -> int:
    from fourlane.engine.model.config import read_config

    return read_config(Path(model)).max_positions


def _versions() -> dict[str, str]:
    names = {"torch": "torch", "numpy": "numpy", "uvicorn": "uvicorn"}
    return {"fourlane": __version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(package) for name, package in names.items()
    }
