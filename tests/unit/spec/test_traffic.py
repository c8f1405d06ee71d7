"""Traffic classes and the one conversion between DSCP and ToS."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourlane.spec.traffic import TrafficClass, dscp_to_tos, tos_to_dscp


@given(dscp=st.integers(0, 63), ecn=st.integers(0, 3))
def test_a_dscp_survives_the_way_through_the_tos_byte(dscp: int, ecn: int) -> None:
    assert tos_to_dscp(dscp_to_tos(dscp, ecn=ecn)) == dscp


@pytest.mark.parametrize(("dscp", "tos"), [(46, 184), (26, 104), (18, 72), (34, 136), (48, 192), (0, 0)])
def test_known_tos_bytes(dscp: int, tos: int) -> None:
    assert dscp_to_tos(dscp) == tos


@pytest.mark.parametrize("dscp", [-1, 64, 184])
def test_a_tos_byte_given_as_a_dscp_is_refused(dscp: int) -> None:
    with pytest.raises(ValueError, match="DSCP: expected 0 to 63"):
        dscp_to_tos(dscp)


@pytest.mark.parametrize("tos", [-1, 256])
def test_what_is_not_a_byte_is_no_tos(tos: int) -> None:
    with pytest.raises(ValueError, match="ToS byte"):
        tos_to_dscp(tos)


def test_ecn_bits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="ECN bits"):
        dscp_to_tos(0, ecn=4)


def test_classes_keep_their_published_marks_and_stay_under_priority_7() -> None:
    assert {item.value: (item.dscp, item.priority) for item in TrafficClass} == {
        "expert": (46, 5),
        "collective": (26, 3),
        "kv": (18, 2),
        "control": (48, 6),
        "bulk": (8, 1),
        "default": (0, 0),
    }
