"""A simulation request by request as tables and as a page: what is told is what was simulated."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from twin_stand_in import stand_in

from fourlane.report.cluster_tables import cluster_tables, link_uses
from fourlane.report.page import write_page
from fourlane.report.serving_page import serving_page
from fourlane.report.serving_tables import against_steady_table, bounds_table, serving_tables
from fourlane.report.tables import plain_lines
from fourlane.spec.twin import Slo, Workload
from fourlane.twin.cluster_use import ClusterLoad, ClusterUse, Slowdown
from fourlane.twin.flow_level.port_use import LinkUse, TierUse
from fourlane.twin.operating_point import operating_point
from fourlane.twin.serving.simulation import simulate
from fourlane.units import Duration

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.twin.serving.results import ServingResults

USE = ClusterUse(
    gpus=32,
    load=ClusterLoad(prefill=0.4, decode=0.3, kv_rate=1e9),
    slowdown={"prefill": Slowdown(1.25, 1.1, 1.4, 2.0), "decode": Slowdown(1.5, 1.0, 1.5, 1.75)},
    kv_slowdown=3.25,
    tiers=(TierUse("hpn", "leaf to spine", 128, 0.22, 0.61, {"expert": 0.2, "kv": 0.02, "bulk": 0.0}),),
    busiest=(LinkUse(7, "leaf3 -> spine1", 0.61, {"expert": 0.6, "kv": 0.01}),),
    draws=12,
    source="flow level: max-min rates",
)


@pytest.fixture(scope="module")
def results() -> ServingResults:
    workload = Workload(rate=20.0, requests=60, input_len="512..2048", output_len="8..32")
    slo = Slo(ttft=Duration.parse("60ms"), tpot=Duration.parse("12ms"))
    return simulate(stand_in(workload, slo=slo))


def test_tables_tell_what_was_simulated(results: ServingResults) -> None:
    told = {table.title: plain_lines(table) for table in serving_tables(results)}
    assert "60 of 60" in told["Throughput"][2]
    assert f"{results.attainment.share * 100:.1f} %" in told["Throughput"][2]
    assert told["Latency"][2].split()[-3:-2] == ["60ms"]
    assert "Not answered" not in told
    assert f"{results.prefill.steps:,}" in told["Units"][2].split()


def test_bounds_add_up_to_all_of_the_time(results: ServingResults) -> None:
    rows = {row[0]: row[1:] for row in bounds_table(results).rows}
    assert rows["compute"] == ("100.0 %", "100.0 %")
    assert rows["steps in two streams"] == ("0.0 %", "0.0 %")


def test_requests_that_were_not_answered_are_told_with_the_reason(results: ServingResults) -> None:
    short = replace(results, failures={"its prompt has 9,000 tokens": 3})
    assert plain_lines(serving_tables(short)[-1])[-1] == "its prompt has 9,000 tokens         3"


def test_the_steady_state_stands_beside_what_was_simulated(results: ServingResults) -> None:
    rows = against_steady_table(results, operating_point(results.assembly)).rows
    assert [row[0] for row in rows][:2] == ["TTFT, mean", "TTFT, p99"]
    assert all(re.fullmatch(r"-?[\d.]+ %", row[3]) for row in rows)


def test_the_page_holds_every_picture_and_table_and_every_source(results: ServingResults, tmp_path: Path) -> None:
    page = serving_page(results, operating_point(results.assembly), USE)
    write_page(tmp_path / "index.html", page)
    text = (tmp_path / "index.html").read_text()
    assert text.count("<svg") == sum(len(section.figures) for section in page.sections) >= 4
    for said in ("leaf3 -&gt; spine1", "made up", "3.25 x", "60 requests, 20 a second"):
        assert said in text


def test_a_page_without_a_simulated_network_has_no_links(results: ServingResults) -> None:
    page = serving_page(results, operating_point(results.assembly), None)
    links = next(section for section in page.sections if section.title == "Links")
    assert not links.figures
    assert not links.tables


def test_links_are_told_by_tier_and_by_lane_without_lanes_that_carry_nothing() -> None:
    slowdowns, tiers, busiest = cluster_tables(USE)
    assert slowdowns.rows[0] == ("prefill exchange", "1.25 x", "1.10 x", "1.40 x", "2.00 x")
    assert tiers.columns[-2:] == ("expert", "kv")
    assert busiest.rows == (("leaf3 -> spine1", "61.0 %", "expert 60.0 %, kv 1.00 %"),)
    assert [use.name for use in link_uses(USE)] == ["hpn: leaf to spine", "leaf3 -> spine1"]
