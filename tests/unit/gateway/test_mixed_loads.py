"""What decoding loses to requests that begin and end meanwhile, fitted by the twin to mixed loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from measured_profiles import two_cores

from fourlane.gateway.mixed_loads import Pace, _assemblies, _Lost, _simulated, fitted, least, mixed_loads
from fourlane.spec.load import load_deployment
from fourlane.spec.twin import Workload
from fourlane.spec.writing import render
from fourlane.twin.assembly import assemble
from fourlane.twin.assembly_parts import COLD_IDLE_S
from fourlane.twin.of_deployment import twin_of
from fourlane.twin.serving.simulation import simulate

if TYPE_CHECKING:
    from pathlib import Path


def test_the_least_cost_is_found_and_nothing_goes_below_zero_or_too_far() -> None:
    found = least(lambda at: (at[0] - 0.7) ** 2 + (at[1] + 1) ** 2 + (at[2] - 9) ** 2, (2, 1, 1), (1, 1, 1), (4, 4, 4))
    assert found == pytest.approx((0.7, 0.0, 4.0), abs=0.05)


def test_a_twin_is_fitted_until_it_is_as_quick_as_what_was_measured() -> None:
    profile, deployment = two_cores(), load_deployment("two_by_two")
    loads = mixed_loads(2, 1024)
    assemblies = _assemblies(profile, deployment, loads)
    truth = _Lost(1.4, 0.5, 3e-3).on(profile)
    measured = {load: _simulated(each, truth) for load, each in zip(loads, assemblies, strict=True)}
    found = fitted(profile, deployment, measured)
    for load, each in zip(loads, assemblies, strict=True):
        assert _simulated(each, found).tpot_s == pytest.approx(measured[load].tpot_s, rel=0.03)
    assert found.crowding is not None
    assert found.crowding.decode >= found.crowding.decode_lone


def test_a_decode_unit_is_held_up_by_sequences_that_join() -> None:
    profile = two_cores()
    loads = mixed_loads(2, 1024)[:1]
    (assembly,) = _assemblies(profile, load_deployment("two_by_two"), loads)
    paces = [_simulated(assembly, _Lost(0.0, 0.0, join_s).on(profile)) for join_s in (1e-3, 5e-3)]
    assert isinstance(paces[0], Pace)
    assert paces[1].tpot_s > 1.05 * paces[0].tpot_s


def test_units_begin_later_after_a_pause_the_more_so_the_longer_it_was(tmp_path: Path) -> None:
    """A request in 20 s finds both units cold; of a closed loop's, prefill waits for the answer, decode hardly."""
    profile, deployment = two_cores(), load_deployment("two_by_two")
    path = tmp_path / "profile.toml"

    def pace(cold_prefill_s: float, cold_decode_s: float, **when: float) -> Pace:
        overheads = msgspec.structs.replace(
            profile.overheads, cold_prefill_s=cold_prefill_s, cold_decode_s=cold_decode_s
        )
        path.write_text(render(msgspec.structs.replace(profile, overheads=overheads)), encoding="utf-8")
        workload = Workload(requests=12, input_len="100", output_len="32", **when)
        results = simulate(assemble(twin_of(deployment, path, workload=workload)))
        return Pace(results.ttft.mean, results.tpot.mean)

    warm, cold = pace(0.0, 0.0, rate=0.05), pace(8e-3, 31e-3, rate=0.05)
    assert cold.ttft_s - warm.ttft_s == pytest.approx(8e-3, rel=0.1)
    assert cold.tpot_s - warm.tpot_s == pytest.approx(1e-3, rel=0.1)
    warm, cold = pace(0.0, 0.0, concurrency=1), pace(8e-3, 31e-3, concurrency=1)
    decoding_s = 31 * warm.tpot_s
    assert cold.ttft_s - warm.ttft_s == pytest.approx(8e-3 * decoding_s / COLD_IDLE_S, rel=0.3)
    assert 0 < cold.tpot_s - warm.tpot_s < 0.2e-3
