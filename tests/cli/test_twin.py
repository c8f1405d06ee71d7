"""`fourlane twin` as a person runs it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace
from twin_values import small_ladder

from fourlane.cli import main
from fourlane.spec.load import load_twin, twins

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.spec.twin import Twin
    from fourlane.twin.ladder_values import LadderResult


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["twin", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_show_lists_the_catalog() -> None:
    assert [line.split()[0] for line in run("show").splitlines()] == twins()


def test_what_show_writes_is_the_same_twin(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(run("show", "deepseek-512", "--set", "decode.units=1"))
    assert load_twin(file) == load_twin("deepseek-512", overrides=["decode.units=1"])


def test_an_unknown_twin_is_wrong_use() -> None:
    assert "did you mean" in run("show", "deepseek-h80", code=2)


QUICK = ("qwen3-rails", "--set", "workload.requests=40")


def test_run_tells_the_steady_state_and_writes_page_and_figures(tmp_path: Path) -> None:
    told = run("run", "qwen3-rails", "--steady", "-o", tmp_path)
    for said in ("2 x EP16", "bound by", "Links, tier by tier", "Where figures come from"):
        assert said in told
    figures = json.loads((tmp_path / "results.json").read_text())
    assert figures["rate"] == 24.0
    assert figures["links"]["gpus"] == 64
    assert "<svg" in (tmp_path / "index.html").read_text()


def test_run_simulates_requests_and_writes_a_window_as_a_trace(tmp_path: Path) -> None:
    told = run("run", *QUICK, "-o", tmp_path, "--window", "1s..1.1s", "--packets", "1")
    assert re.search(r"decode unit \d: (dispatch|combine) +\d+ +[\d,]+ us +[\d.]+ us +[\d.]+ us +-?[\d.]+ %", told)
    assert (tmp_path / "packets.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["answered"] == 40
    assert found["ttft_s"]["p99"] >= found["ttft_s"]["p50"] > 0
    trace = Trace.FromString((tmp_path / "window.pftrace").read_bytes())
    names = {packet.track_descriptor.process.process_name for packet in trace.packet}
    assert {"decode unit 0", "requests"} <= names


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = (json.loads(run("run", *QUICK, "--json")) for _ in range(2))
    for each in (first, second):
        del each["simulated_in_s"]
    assert first == second


def test_an_slo_that_is_not_met_fails_a_check_only() -> None:
    missed = ("run", "qwen3-rails", "--steady", "--set", "slo.ttft=1ms")
    assert "the SLO is not met" in run(*missed, "--check", code=1)
    assert "TTFT" in run(*missed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--window", "1s..2s"], "expected -o FOLDER beside it"),
        (["--window", "1s", "-o", "x"], 'expected two times such as "10s..10.2s"'),
        (["--window", "2s..1s", "-o", "x"], "expected the second time after the first"),
        (["--window", "1..2", "-o", "x"], "--window: expected a duration"),
        (["--packets", "2"], "expected --window FROM..TO beside it"),
        (["--steady", "--set", 'faults=[{kind="kv",target="prefill/0",at="1s"}]'], "--steady: expected no faults"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_simulated(arguments: list[str], said: str) -> None:
    assert said in run("run", "qwen3-rails", *arguments, code=2)


def test_a_window_in_which_nothing_happens_is_refused(tmp_path: Path) -> None:
    assert "nothing happened between" in run("run", *QUICK, "-o", tmp_path, "--window", "1h..2h", code=2)


def test_a_sweep_is_a_table_a_picture_and_rows_that_it_goes_on_from(tmp_path: Path) -> None:
    small = ["--set", "model=qwen3-30b-a3b", "--set", "prefill.ranks=8", "--set", "decode.ranks=8"]
    small += ["--set", "prefill.redundant_experts=0", "--set", "decode.redundant_experts=0", "--set", "workload.rate=2"]
    words = ["sweep", "deepseek-512", *small, "--vary", "decode.units=1, 99", "--processes", "1", "-o", tmp_path]
    said = run(*words)
    assert "decode.units" in said
    assert "1 of 2 points make no service" in said
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    rows = (tmp_path / "sweep.jsonl").read_text().splitlines()
    assert len(rows) == 3
    assert json.loads(run(*words, "--json"))["resumed"] == 2
    assert (tmp_path / "sweep.jsonl").read_text().splitlines() == rows
    assert "begun with other inputs" in run(*words, "--set", "seed=1", code=2)


def test_values_to_vary_that_are_none_are_wrong_use() -> None:
    assert 'expected a field and its values such as "decode.ranks=32,64"' in run(
        "sweep", "deepseek-512", "--vary", "decode.ranks", code=2
    )
    assert "is there twice" in run("sweep", "deepseek-512", "--vary", "seed=1", "--vary", "seed=2", code=2)
    assert "--vary: seed:" in run("sweep", "deepseek-512", "--vary", "seed=[1", code=2)
    assert "did you mean" in run("sweep", "deepseek-512", "--vary", "decode.rankes=8", code=2)


def test_ladder_prints_tables_and_writes_picture_page_and_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def climb(twin: Twin, **_: object) -> LadderResult:
        asked.append(twin)
        return small_ladder()

    monkeypatch.setattr("fourlane.twin.ladder.ladder", climb)
    told = run("ladder", "deepseek-512", "--set", "decode.units=1", "-o", tmp_path)
    assert [twin.decode.units for twin in asked] == [1]
    assert "What each measure brings, over the rung before" in told
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert "Own queue" in (tmp_path / "ladder.html").read_text()
    rungs = json.loads((tmp_path / "ladder.json").read_text())["rungs"]
    assert [rung["name"] for rung in rungs] == ["Baseline", "Adaptive routing", "Own queue"]
    assert json.loads(run("ladder", "deepseek-512", "--json"))["rungs"] == rungs
