"""Measures one after another as a picture: every change is drawn with its sign, and what is not there says so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from fourlane.report.waterfall import Measured, Setting, Waterfall, plot_waterfall

if TYPE_CHECKING:
    from pathlib import Path

STATES = ("Baseline", "Adaptive routing", "Own queue", "ECN off", "All together")


def waterfall(*quantities: Measured) -> Waterfall:
    return Waterfall(
        title="What each measure brings",
        subtitle="on a cluster",
        states=STATES,
        quantities=quantities,
        settings=(Setting(name="Routing", values=("ECMP", "adaptive", "adaptive", "adaptive")),),
    )


def drawn(folder: Path, *quantities: Measured) -> list[str]:
    """Return the texts of the picture, in order."""
    path = folder / "ladder.svg"
    plot_waterfall([path], waterfall(*quantities))
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_every_measure_has_its_change_and_the_ends_their_values(tmp_path: Path) -> None:
    throughput = Measured(title="Throughput", unit="tokens/s", values=(1000.0, 1100.0, 1650.0, 1650.1), better="higher")
    texts = drawn(tmp_path, throughput)
    for said in (
        "1,000",
        "+10.0 %",
        "+50.0 %",
        "0 %",
        "1,650",
        "\N{MULTIPLICATION SIGN}1.65",
        "ECMP",
        "adaptive",
        *STATES[2:],
    ):
        assert said in texts


def test_what_gets_worse_has_another_colour_than_what_gets_better(tmp_path: Path) -> None:
    better = drawn_colours(tmp_path, (50.0, 45.0, 40.0, 35.0))
    worse = drawn_colours(tmp_path, (50.0, 55.0, 60.0, 65.0))
    assert ("#1a7f5a" in better, "#d9730d" in better) == (True, False)
    assert ("#1a7f5a" in worse, "#d9730d" in worse) == (False, True)


def drawn_colours(folder: Path, values: tuple[float, ...]) -> str:
    path = folder / "colours.svg"
    plot_waterfall(
        [path],
        Waterfall(
            title="t",
            subtitle="s",
            states=STATES,
            quantities=(Measured(title="TPOT", unit="ms", values=values, better="lower"),),
            settings=(),
        ),
    )
    return path.read_text()


def test_a_state_without_a_value_says_so_and_the_measure_after_it_shows_the_whole(tmp_path: Path) -> None:
    ttft = Measured(
        title="TTFT, p99", unit="ms", values=(None, float("inf"), 900.0, 450.0), better="lower", none="drowns"
    )
    texts = drawn(tmp_path, ttft)
    assert texts.count("drowns") == 2
    assert "900" in texts
    assert "\N{MINUS SIGN}50.0 %" in texts
    assert "450 ms" in texts  # of all measures together, without a first to hold it against


def test_nothing_anywhere_is_drawn_too(tmp_path: Path) -> None:
    assert drawn(tmp_path, Measured(title="TTFT", unit="ms", values=(None,) * 4, better="lower")).count("out of") == 5


def test_a_quantity_without_a_value_for_every_state_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 4 values"):
        waterfall(Measured(title="TPOT", unit="ms", values=(1.0, 2.0), better="lower"))


def test_one_picture_is_written_as_a_page_as_well(tmp_path: Path) -> None:
    paths = [tmp_path / "ladder.png", tmp_path / "ladder.html"]
    plot_waterfall(paths, waterfall(Measured(title="TPOT", unit="ms", values=(4.0, 3.0, 2.0, 1.0), better="lower")))
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in paths[1].read_text()
