"""PFC headroom by formula, against the vendor's own table."""

from __future__ import annotations

import pytest

from fourlane.lanes.headroom import formula_xoff, port_headroom
from fourlane.spec.hardware import switch_models
from fourlane.units import Length, Rate, Size

SN5600 = switch_models()["sn5600"]
ARISTA = switch_models()["arista-7060x6"]


@pytest.mark.parametrize(
    ("rate", "cable", "xoff"),
    [
        ("400Gbps", "5m", 231_424),
        ("400Gbps", "40m", 283_648),
        ("400Gbps", "300m", 677_888),
        ("800Gbps", "5m", 257_024),
        ("800Gbps", "40m", 362_496),
        ("800Gbps", "300m", 1_150_976),
    ],
)
def test_the_formula_gives_the_published_figures_of_sn5600(rate: str, cable: str, xoff: int) -> None:
    assert formula_xoff(SN5600, Rate.parse(rate), Length.parse(cable), lossless_mtu=Size(1024)) == xoff


def test_what_is_reserved_is_never_below_the_vendors_figure() -> None:
    room = port_headroom(SN5600, Rate.parse("400Gbps"), Length.parse("40m"))
    assert room is not None
    assert room.xoff >= 283_648 + 1024
    assert room.size > room.xoff


def test_longer_cables_and_faster_ports_need_more() -> None:
    def xoff(rate: str, cable: str) -> int:
        room = port_headroom(SN5600, Rate.parse(rate), Length.parse(cable))
        assert room is not None
        return room.xoff

    assert xoff("400Gbps", "5m") < xoff("400Gbps", "40m") < xoff("800Gbps", "40m") < xoff("800Gbps", "300m")


def test_a_chip_without_a_published_figure_has_none_until_one_is_given() -> None:
    assert port_headroom(ARISTA, Rate.parse("200Gbps"), Length.parse("5m")) is not None
    assert port_headroom(ARISTA, Rate.parse("800Gbps"), Length.parse("5m")) is None
    given = port_headroom(ARISTA, Rate.parse("800Gbps"), Length.parse("5m"), given=Size(500_000))
    assert given is not None
    assert given.xoff == 500_000


def test_the_formula_refuses_a_chip_of_unknown_cell_size() -> None:
    with pytest.raises(ValueError, match="needs the cell size"):
        formula_xoff(ARISTA, Rate.parse("100Gbps"), Length.parse("5m"), lossless_mtu=Size(1024))
