"""Times of a hardware profile behind the twin's protocols."""

from __future__ import annotations

import msgspec
import pytest
from measured_profiles import two_cores

from fourlane.errors import SpecError
from fourlane.spec.architecture_file import load_architecture
from fourlane.spec.hardware_profile import HardwareProfile, MeasuredOverheads, MeasuredPart, MeasuredPhase
from fourlane.spec.twin import TwinPool
from fourlane.twin.measured_times import (
    MeasuredExchange,
    MeasuredKvPath,
    MeasuredMemory,
    MeasuredTimes,
    PassLoad,
    check_measured_for,
    pass_seconds,
    seconds_of,
)
from fourlane.twin.times import RankLoad
from fourlane.units import Size

LINE = MeasuredPart(rows=(2.0, 4.0, 8.0), seconds=(1.0, 2.0, 6.0))


def a_phase(seconds: float) -> MeasuredPhase:
    part = MeasuredPart(rows=(1.0, 11.0), seconds=(seconds, 2 * seconds))
    return MeasuredPhase(
        parts={
            "embedding": part,
            "attention 0": part,
            "attention 1": msgspec.structs.replace(part, attended_s=1e-3),
            "experts": MeasuredPart(rows=(4.0, 44.0), seconds=(seconds, 2 * seconds)),
            "output": part,
        },
        exchange={"dispatch": part, "combine": part},
        beside=MeasuredPart(rows=(1.0, 2.0), seconds=(0.5, 0.7)),
    )


@pytest.fixture
def profile() -> HardwareProfile:
    bare = {"overheads": MeasuredOverheads(), "crowding": None}
    return msgspec.structs.replace(two_cores(), prefill=a_phase(10.0), decode=a_phase(1.0), **bare)


def a_load(*, prefill: float = 0.0, decode: float = 0.0) -> RankLoad:
    rows = prefill + decode
    return RankLoad(prefill, 5 * prefill, decode, 7 * decode, rows, 4 * rows, 4.0, 16.0)


@pytest.mark.parametrize(("rows", "seconds"), [(2, 1.0), (3, 1.5), (6, 4.0), (8, 6.0), (10, 8.0), (1, 1.0), (0, 0.0)])
def test_between_numbers_measured_there_are_straight_lines(rows: float, seconds: float) -> None:
    assert seconds_of(LINE, rows) == pytest.approx(seconds)


def test_steps_with_prompts_are_timed_as_prefill(profile: HardwareProfile) -> None:
    times = MeasuredTimes(profile)
    assert times.part("attention 0", a_load(prefill=1)).seconds == pytest.approx(10.0)
    assert times.part("attention 0", a_load(decode=1)).seconds == pytest.approx(1.0)
    assert times.part("attention 1", a_load(decode=1)).seconds == pytest.approx(1.0 + 7e-3)
    assert times.part("router", a_load(decode=1)).seconds == 0.0
    assert times.part("experts 0", a_load(decode=1)).seconds == pytest.approx(0.5)


def test_what_a_step_takes_beside_its_pass_counts_as_output(profile: HardwareProfile) -> None:
    output = MeasuredTimes(profile).part("output", a_load(decode=1))
    assert output.seconds == pytest.approx(1.0 + 0.7)  # one row a rank: two of the unit
    assert output.bound == "measured"
    assert "a test" in output.source


def test_exchange_and_kv_are_those_measured(profile: HardwareProfile) -> None:
    exchange = MeasuredExchange(profile, "decode")
    assert exchange.operation("combine", 6.0, 1.3).seconds == pytest.approx(1.5)
    path = MeasuredKvPath(profile)
    assert path.seconds(2e6) == pytest.approx(3e-3)
    assert path.background(1e9) == 0.0


def test_a_pass_is_the_sum_of_its_parts(profile: HardwareProfile) -> None:
    load = PassLoad(rows=1.0, attended=10.0, logits=1.0, mean=1.0)
    layers = profile.architecture.layers
    expected = 2.0 + layers * (5.0 + 10e-3)
    assert pass_seconds(profile.decode, profile.architecture, load) == pytest.approx(expected)


def test_a_profile_of_another_model_or_number_of_ranks_is_refused(profile: HardwareProfile) -> None:
    other = msgspec.structs.replace(load_architecture("bundled"), layers=4, experts=16)
    with pytest.raises(SpecError) as raised:
        check_measured_for(profile, other, {"prefill": 2, "decode": 4})
    assert "differs in layers, experts" in str(raised.value)
    assert "decode.ranks: expected units of 2 ranks" in str(raised.value)
    check_measured_for(profile, profile.architecture, {"prefill": 2, "decode": 2})


def test_memory_is_what_the_pool_asks_for(profile: HardwareProfile) -> None:
    pool = TwinPool(ranks=2, kv_memory=Size(1 << 20))
    memory = MeasuredMemory.of(profile.architecture, pool, weights=100, kv="fp32", block_size=16)
    assert memory.kv_blocks == (1 << 20) // (16 * profile.architecture.kv_bytes_per_token("fp32"))
    with pytest.raises(SpecError, match="kv_memory: expected at least a block"):
        MeasuredMemory.of(profile.architecture, TwinPool(ranks=2), weights=100, kv="fp32", block_size=16)
