"""A reduced run of the experts' benchmark reaches its bars; its pages come from what was recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bench_experts
import expert_page
import numpy as np
import pytest
import recorded_parts
import result_page
from expert_cases import SIZES, baseline, baseline_value, named_loads
from recorded_parts import Bar, Part, Section, read_parts, record

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 3
MISSED = ("local counts alone over global",)  # docs/validation/experts.md says by how much


@pytest.mark.parametrize("name", ["balance", "repair", "split-32"])
def test_a_few_layers_reach_the_bars(name: str) -> None:
    bars = [bar for bar in bench_experts.PARTS[name](LAYERS).bars if not any(known in bar.claim for known in MISSED)]
    assert bars
    assert [f"{bar.claim}: wanted {bar.wanted}, found {bar.found}" for bar in bars if not bar.met] == []


def test_the_bundled_models_routing_is_never_placed_worse_than_by_eplb() -> None:
    part = bench_experts.PARTS["bundled"](LAYERS)
    assert [bar.found for bar in part.bars] == ["0 layers worse"]


def test_the_baselines_second_copies_on_a_rank_are_left_empty() -> None:
    size, load_LE = SIZES[1], named_loads(8)["single hot"]
    slot_of_LP = baseline(load_LE, size)
    value = baseline_value(slot_of_LP, size)
    emptied = value.slot_of_LP != slot_of_LP
    assert emptied.any()
    assert (value.slot_of_LP[emptied] == -1).all()


def test_pages_say_which_bars_were_missed_and_hold_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_page, "FOLDER", tmp_path)
    monkeypatch.setattr(expert_page, "FOLDER", tmp_path)
    monkeypatch.setattr(expert_page, "DOCS", tmp_path)
    monkeypatch.setattr(expert_page, "IMAGES", tmp_path / "images")
    results = tmp_path / "experts_here_202611.json"
    found = {name: [1.02, 1.04] for name in ("EPLB", "ours", "for splitting", "bound")}
    bars = [Bar("balance", "<= 1.002", "1.001", met=True), Bar("speed", "< 100 ms", "120 ms", met=False)]
    sections = [Section("a table", ("size", "ours"), [("EP32+32", "1.0010")])]
    part = Part(title="Placement", text="What it is.", sections=sections, bars=bars, figures={"EP32+32/decode": found})
    record("balance", Part(title="old", text="", sections=[]), results)
    record("balance", part, results)
    assert read_parts(results)["balance"].bars == bars
    (tmp_path / "live_balance_here_202611.md").write_text("# Live\n\nbalance | 1.05\n\n## How\n\n- date\n")
    page, docs, picture = expert_page.write(results, order=["times", "balance"])
    text = docs.read_text()
    assert "**1 of 2 bars are reached.**" in text
    assert "| speed | < 100 ms | 120 ms | **miss** |" in text
    assert "| EP32+32 | 1.0010 |" in text
    assert f"](images/{picture.name})" in text
    assert "balance | 1.05" in text
    assert "- date" not in text
    assert "- MISS: speed: < 100 ms; found 120 ms" in page.read_text()
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_run_ends_with_status_1_where_a_bar_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for met, status in ((True, 0), (False, 1)):
        part = Part(title="t", text="", sections=[], bars=[Bar("claim", "1", "2", met=met)])
        monkeypatch.setitem(bench_experts.PARTS, "balance", lambda _layers, part=part: part)
        monkeypatch.setattr("sys.argv", ["bench_experts.py", "--part", "balance"])
        assert bench_experts.main() == status
        assert ("MISS" in capsys.readouterr().out) is not met


def test_counts_of_real_routing_hold_every_choice_once() -> None:
    from expert_split_bench import _batches

    chosen_LTK = np.random.default_rng(0).integers(0, 32, size=(2, 1200, 4))
    batches = _batches(chosen_LTK, SIZES[0]._replace(ranks=4, experts=32))
    assert len(batches) == 2  # 300 tokens a rank
    assert batches[0].sum(axis=(1, 2)).tolist() == [4 * 128 * 4] * 2
    assert (batches[1][1, 3] == np.bincount(chosen_LTK[1, 900 + 128 : 900 + 256].ravel(), minlength=32)).all()


def test_records_name_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--part", "times", "--write"])
    record("times", Part(title="t", text="", sections=[]), tmp_path / "r.json")
    assert read_parts(tmp_path / "r.json")["times"].command == "python benchmarks/bench_experts.py --part times --write"
    assert recorded_parts.results_file().name.startswith("experts_")
