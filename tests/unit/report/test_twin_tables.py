"""A service in steady state, and its ladder, as tables, pictures and pages."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from twin_values import DECODE_STEP, PREFILL_STEP, small_ladder, small_point

from fourlane.report.page import write_page
from fourlane.report.tables import plain_lines, time_text
from fourlane.report.twin_ladder import ladder_page, ladder_tables, ladder_waterfall
from fourlane.report.twin_tables import latency_table, point_tables, sources_table, step_table, units_text, where_from
from fourlane.spec.load import load_twin

if TYPE_CHECKING:
    from pathlib import Path

TWIN = load_twin("deepseek-512")


def test_latencies_stand_beside_what_the_slo_asks_for() -> None:
    lines = plain_lines(latency_table(small_point(), TWIN.slo))
    assert lines[2].split() == ["TTFT", "900", "ms", "810", "ms", "1.35", "s", "1.98", "s", "2s", "97.5", "%"]
    assert lines[3].split()[-3:] == ["50ms", "99.0", "%"]
    free = load_twin("deepseek-512", overrides=["slo.ttft=", "slo.tpot="])
    assert plain_lines(latency_table(small_point(), free.slo))[2].split()[-2:] == ["-", "-"]


def test_units_are_counted_in_words() -> None:
    twin = load_twin("deepseek-512", overrides=["prefill.units=1"])
    assert units_text(twin) == "1 prefill unit of 32 and 2 decode units of 144"


def test_every_part_of_an_operating_point_is_told() -> None:
    text = "\n".join(line for table in point_tables(TWIN, small_point()) for line in plain_lines(table))
    for said in ("4 x EP32", "2 x EP144", "6,000 tokens", "96.0 sequences", "1.31 x mean", "no limit"):
        assert said in text
    assert "KV cache still travelling" in text


def test_a_step_says_what_of_its_travelling_is_hidden() -> None:
    lines = plain_lines(step_table("prefill", PREFILL_STEP))
    assert lines[0] == "A prefill step: 500 ms, two streams"
    assert lines[-1].split() == ["travelling,", "hidden", "250", "ms", "50.0", "%"]
    assert plain_lines(step_table("decode", DECODE_STEP))[-1].startswith("travelling, not hidden")


def test_times_are_written_in_the_unit_that_suits_them() -> None:
    given = [3.21, 0.0456, 7.89e-6, 0.0, float("inf"), None]
    assert [time_text(seconds) for seconds in given] == ["3.21 s", "45.6 ms", "7.89 us", "0 ms", "-", "-"]


def test_figures_of_one_source_are_told_together() -> None:
    table = sources_table(where_from(small_point()))
    assert [row[0] for row in table.rows] == ["TTFT", "prefill: experts; decode: experts", "prefill: dispatch"]
    three = sources_table({"decode: dispatch": "packets", "decode: combine": "packets", "kv": "packets"})
    assert three.rows == (("decode: dispatch, combine; kv", "packets"),)


def test_the_ladder_tells_gains_with_their_signs_and_what_was_left_out() -> None:
    gained = ladder_tables(small_ladder())[1]
    assert gained.rows[0][2:] == ("-4.8 %", "0.0 %", "-12.0 %", "+10.0 %", "0.0 %")
    assert gained.rows[1][2:] == ("+110.0 %", "+90.0 %", "+150.0 %", "-54.5 %", "-50.0 %")
    assert gained.rows[-1][:2] == ("KV on the DCN", "left out: the cluster has one network")


def test_the_waterfall_shows_only_what_measures_change_and_when() -> None:
    drawn = ladder_waterfall(small_ladder())
    assert [setting.name for setting in drawn.settings] == ["Routing", "Expert queue"]
    assert drawn.settings[1].values == ("one for all classes",) * 2 + ("own queue, weight and buffer",)
    assert drawn.quantities[0].values == (420.0, 400.0, 840.0)
    assert "416 GPUs" in drawn.subtitle
    assert "all at 100 requests/s" in drawn.subtitle
    assert [each.title for each in drawn.quantities if not each.headline] == ["Prefill alone", "Decode alone"]


def test_the_page_of_a_ladder_holds_picture_tables_and_sources(tmp_path: Path) -> None:
    write_page(tmp_path / "ladder.html", ladder_page(small_ladder()))
    text = (tmp_path / "ladder.html").read_text()
    assert text.count("<svg") == 1
    assert "packets, Own queue" in text
    assert re.search(r'card good"><span>Throughput per GPU</span><b>.2.00</b>', text)


def test_a_service_that_does_not_keep_up_is_told_without_a_figure() -> None:
    nothing = float("inf")
    point = small_point()
    drowned = replace(point, stable=False, ttft=type(point.ttft)(nothing, nothing, nothing, nothing))
    assert plain_lines(latency_table(drowned, TWIN.slo))[2].split()[:5] == ["TTFT", "-", "-", "-", "-"]
