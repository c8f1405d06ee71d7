"""Specs come back from their TOML unchanged."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.errors import SpecError
from fourlane.spec import deployment
from fourlane.spec.load import load, load_deployment, render
from fourlane.units import Duration, Size

if TYPE_CHECKING:
    from pathlib import Path

st.register_type_strategy(Size, st.integers(0, 10**15).map(Size))
st.register_type_strategy(Duration, st.integers(0, 10**18).map(Duration))
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))  # files hold finite ones only
DEPLOYMENTS = st.from_type(deployment.Deployment)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spec") / "spec.toml"


class Anything(msgspec.Struct, frozen=True):
    """Text, floats, arrays and tables of the awkward sorts."""

    text: str
    number: float
    items: list[str]
    table: dict[str, int]


@given(spec=DEPLOYMENTS)
def test_a_deployment_comes_back_from_its_toml(file: Path, spec: deployment.Deployment) -> None:
    file.write_text(render(spec), encoding="utf-8")
    assert load(file, deployment.Deployment) == spec


@given(
    spec=st.builds(
        Anything,
        text=st.text(),
        number=st.floats(allow_nan=False, allow_infinity=False),
        items=st.lists(st.text()),
        table=st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1)),
    )
)
def test_awkward_text_and_keys_come_back(file: Path, spec: Anything) -> None:
    file.write_text(render(spec), encoding="utf-8")
    assert load(file, Anything) == spec


PLACES = st.sampled_from(["model.path", "gateway.port", "prefill", "prefill.ranks", "kv_cache.block_size", "x.y", "x"])


@given(place=PLACES, value=st.text(max_size=20))
def test_any_override_is_taken_or_refused_as_a_spec_error(place: str, value: str) -> None:
    with contextlib.suppress(SpecError):
        assert load_deployment(overrides=[f"{place}={value}"]).pools()
