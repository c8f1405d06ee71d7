"""Quantities come back from their text unchanged."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.units import Duration, Rate, Size

KINDS = [Rate, Duration, Size]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_parsing_what_was_formatted_gives_the_same(kind: type[Rate | Duration | Size], data: st.DataObject) -> None:
    exact = st.integers(0, 10**24)
    round_in_some_unit = st.builds(
        lambda count, unit: count * unit[1], st.integers(0, 10**6), st.sampled_from(kind.scale_of)
    )
    value = kind(data.draw(exact | round_in_some_unit))
    assert kind.parse(str(value)) == value


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=12))
def test_any_text_is_read_or_refused_with_a_message(kind: type[Rate | Duration | Size], text: str) -> None:
    with contextlib.suppress(ValueError):
        assert kind.parse(text) >= 0


@pytest.mark.parametrize("kind", KINDS)
@given(count=st.integers(0, 10**9), data=st.data())
def test_every_unit_is_read_at_its_scale(kind: type[Rate | Duration | Size], count: int, data: st.DataObject) -> None:
    unit, scale = data.draw(st.sampled_from(kind.scale_of))
    assert kind.parse(f"{count}{unit}") == count * scale
    assert kind.parse(f"{count} {unit}") == count * scale
