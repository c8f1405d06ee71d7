"""`fourlane plan`: files where they belong, exit codes, messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from fourlane.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_twin_of_the_catalog_is_rendered_into_a_folder(tmp_path: Path) -> None:
    done = run("plan", "render", "deepseek-h800", "--engine", "vllm", "--target", "bash", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "start-all.sh").stat().st_mode & 0o100
    for name in ("README.md", "twin.toml", "pd_router.py", "lanes/lanes.toml", "lanes/nic"):
        assert (tmp_path / name).exists(), name
    again = run(
        "plan", "render", tmp_path / "twin.toml", "--engine", "sglang", "--target", "kubernetes", "-o", tmp_path
    )
    assert again.exit_code == 0, again.output
    assert "20-units.yaml" in again.output


def test_what_cannot_be_launched_is_refused_and_nothing_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("plan", "render", "deepseek-h800", "--engine", "fourlane", "--target", "bash", "-o", out)
    assert done.exit_code == 2
    assert "use --engine sglang or vllm" in done.output
    assert not out.exists()


def test_a_row_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = run("plan", "render", "deepseek-h800", "--row", 2, "--engine", "vllm", "--target", "bash", "-o", tmp_path)
    assert done.exit_code == 2
    assert "has one row, got 2" in done.output


PLAN = """
model = "qwen3-30b-a3b"
cluster = "h800-ft"
gpus = 32
experts = { popularity = "uniform", lean = 0.0 }
workload = { input_len = "2048", output_len = "256" }
slo = { ttft = "1s", tpot = "30ms" }

[search]
prefill_ranks = [8]
decode_ranks = [8]
redundant_experts = [0]
max_running = [64]
overlap = ["never"]
points = 4
"""


def test_a_plan_is_a_table_and_files_and_its_rows_can_be_launched(tmp_path: Path) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "plan"
    file.write_text(PLAN, encoding="utf-8")
    done = run("plan", file, "-o", out, "--row", 1)
    assert done.exit_code == 0, done.output
    assert "x EP8" in done.output
    assert "serves" in done.output
    assert {path.name for path in out.iterdir()} == {"plan.json", "index.html", "pareto.png", "row-1.toml"}
    launch = tmp_path / "launch"
    words = ("plan", "render", out / "plan.json", "--row", 1, "--engine", "vllm", "--target", "bash", "-o", launch)
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert (launch / "twin.toml").read_text(encoding="utf-8") == (out / "row-1.toml").read_text(encoding="utf-8")
    assert "time to first token" in (launch / "README.md").read_text(encoding="utf-8")


def test_rows_are_simulated_beside_what_they_promise(tmp_path: Path) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "plan"
    file.write_text(PLAN, encoding="utf-8")
    done = run("plan", file, "--set", "workload.rate=20", "--simulate", 1, "-o", out)
    assert done.exit_code == 0, done.output
    assert "Simulated, request by request" in done.output
    seen = json.loads((out / "plan.json").read_text(encoding="utf-8"))["rows"][0]["simulated"]
    assert (seen["requests"], seen["answered"]) == (900, 600)  # 45 s of 20 a second, of which two thirds count
    assert seen["tpot_s"]["p50"] < 0.03  # within the SLO, as promised


def test_a_row_alone_is_a_twin_file(tmp_path: Path) -> None:
    from fourlane.spec.load import load_twin

    file, row = tmp_path / "mine.toml", tmp_path / "row.toml"
    file.write_text(PLAN, encoding="utf-8")
    done = run("plan", file, "--row", 1)
    row.write_text(done.stdout, encoding="utf-8")
    assert load_twin(row).model == "qwen3-30b-a3b"


def test_where_nothing_meets_the_slo_the_exit_code_says_so_and_the_message_what_binds(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(PLAN, encoding="utf-8")
    done = run("plan", file, "--set", "slo.tpot=1ms")
    assert done.exit_code == 1
    assert "Nothing that was tried meets the SLO" in done.stderr
    assert "TPOT binds" in done.stderr
