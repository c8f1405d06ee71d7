"""The twin of a deployment, on a machine that was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from measured_profiles import LAYER_S, STEP_S, TOKEN_S, two_cores

from fourlane.errors import SpecError
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.load import load_deployment
from fourlane.spec.twin import Workload
from fourlane.spec.writing import render
from fourlane.twin.assembly import assemble
from fourlane.twin.of_deployment import twin_of
from fourlane.twin.serving.simulation import simulate

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.spec.deployment import Deployment

LAYERS = 8


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.toml"
    path.write_text(render(two_cores()))
    return path


@pytest.fixture
def two_by_two() -> Deployment:
    return load_deployment(None, overrides=["prefill.ranks=2", "decode.ranks=2"])


def test_one_request_at_a_time_takes_its_steps_and_what_is_beside_them(two_by_two: Deployment, profile: Path) -> None:
    workload = Workload(concurrency=1, requests=4, input_len="100", output_len="11")
    results = simulate(assemble(twin_of(two_by_two, profile, workload=workload)))
    prompt_s = LAYERS * (LAYER_S + 100 * TOKEN_S) + STEP_S
    assert results.ttft.mean == pytest.approx(3e-3 + prompt_s, rel=0.02)
    token_s = LAYERS * LAYER_S + STEP_S
    assert results.tpot.mean == pytest.approx(token_s + 1.4e-3 / 10, rel=0.05)


def test_the_twin_has_the_pools_and_pages_of_the_deployment(two_by_two: Deployment, profile: Path) -> None:
    twin = twin_of(two_by_two, profile, workload=Workload(concurrency=1))
    assert two_by_two.decode is not None
    assert (twin.decode.units, twin.decode.ranks) == (1, 2)
    assert twin.decode.kv_memory == two_by_two.decode.kv_memory
    assembly = assemble(twin)
    token = load_architecture("bundled").kv_bytes_per_token("fp32")
    assert assembly.decode.memory.kv_blocks == int(two_by_two.decode.kv_memory) // (16 * token)
    assert assembly.cores == 2
    assert "measured on a test" in assembly.sources["hardware"]


def test_prompts_slow_down_who_decodes_beside_them(two_by_two: Deployment, profile: Path) -> None:
    def tpot(concurrency: int) -> float:
        workload = Workload(concurrency=concurrency, requests=24, input_len="200", output_len="16..48")
        return simulate(assemble(twin_of(two_by_two, profile, workload=workload))).tpot.mean

    assert tpot(6) > 1.1 * tpot(1)


def test_a_burst_is_seen_to_one_after_the_other(two_by_two: Deployment, profile: Path) -> None:
    workload = Workload(concurrency=8, requests=8, input_len="16", output_len="2")
    requests = simulate(assemble(twin_of(two_by_two, profile, workload=workload))).requests
    first = sorted(requests.started)
    assert first[0] < first[-1]  # all at once would have been one step


def test_what_a_profile_was_not_measured_with_is_refused(two_by_two: Deployment, profile: Path) -> None:
    four = msgspec.structs.replace(two_by_two, decode=msgspec.structs.replace(two_by_two.decode, ranks=4))
    with pytest.raises(SpecError, match=r"decode\.ranks: expected units of 2 ranks"):
        assemble(twin_of(four, profile, workload=Workload(concurrency=1)))


def test_a_pool_of_both_phases_has_no_twin(profile: Path) -> None:
    unified = load_deployment(None, overrides=["unified.ranks=1"])
    with pytest.raises(SpecError, match=r"expected a deployment with \[prefill\] and \[decode\]"):
        twin_of(unified, profile, workload=Workload(concurrency=1))
