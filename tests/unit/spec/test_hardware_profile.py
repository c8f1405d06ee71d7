"""Hardware profiles: written, read back, and refused where they mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from measured_profiles import two_cores

from fourlane.errors import SpecError
from fourlane.spec.hardware_profile import (
    Crowding,
    HardwareProfile,
    MeasuredPart,
    MeasuredPhase,
    load_profile,
)
from fourlane.spec.writing import render

if TYPE_CHECKING:
    from pathlib import Path


def a_phase() -> MeasuredPhase:
    part = MeasuredPart(rows=(1, 8), seconds=(1e-4, 4e-4))
    attention = msgspec.structs.replace(part, attended_s=1e-8)
    return MeasuredPhase(
        parts={"attention 0": part, "attention 1": attention, "experts": part, "output": part},
        exchange={"dispatch": part, "combine": part},
        beside=part,
    )


@pytest.fixture
def profile() -> HardwareProfile:
    return msgspec.structs.replace(two_cores(), prefill=a_phase(), decode=a_phase())


def test_a_profile_is_read_back_as_it_was_written(profile: HardwareProfile, tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(render(profile))
    assert load_profile(path) == profile


def test_every_fault_of_a_profile_is_told_with_its_place(profile: HardwareProfile, tmp_path: Path) -> None:
    wrong = MeasuredPart(rows=(8, 1), seconds=(1e-4, -1.0))
    changed = msgspec.structs.replace(
        profile,
        cores=0,
        decode=msgspec.structs.replace(profile.decode, beside=wrong, exchange={"dispatch": wrong}),
        crowding=Crowding(prefill=0.5, decode=2.0, prefill_lone=1.4, decode_lone=2.0),
    )
    path = tmp_path / "profile.toml"
    path.write_text(render(changed))
    with pytest.raises(SpecError) as raised:
        load_profile(path)
    text = str(raised.value)
    for place in ("cores", "decode.beside.rows", "decode.exchange.dispatch", "decode.exchange: ", "crowding.prefill"):
        assert f"profile.toml: {place}" in text


def test_numbers_of_rows_and_of_seconds_must_agree(profile: HardwareProfile, tmp_path: Path) -> None:
    short = msgspec.structs.replace(profile.prefill, beside=MeasuredPart(rows=(1, 2), seconds=(1.0,)))
    path = tmp_path / "profile.toml"
    path.write_text(render(msgspec.structs.replace(profile, prefill=short)))
    with pytest.raises(SpecError, match=r"prefill.beside: expected as many seconds as rows, at least one, got 1, 2"):
        load_profile(path)
