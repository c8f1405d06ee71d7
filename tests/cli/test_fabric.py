"""`fourlane fabric run` and `compare`: figures, files, what is said of runs that do not end, wrong use."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fourlane.twin.fabric import Results

if TYPE_CHECKING:
    from pathlib import Path

TWO_CLASSES = """
[topology]
builder = "leaf-spine"
leaves = 4
hosts_per_leaf = 2
spines = 2

[workloads.experts]
pattern = "all-to-all"
size = "16KiB"

[workloads.kv]
pattern = "kv"
size = "256KiB"
prefill = "0, 2"
decode = "5, 7"

[sampling]
interval = "1us"
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "two_classes.toml"
    file.write_text(TWO_CLASSES)
    return file


def fabric(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fourlane", "fabric", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_named_scenario_ends_when_theory_says() -> None:
    run = fabric("run", "I64_64K")
    assert run.returncode == 0, run.stderr
    assert "all flows finished: 64 of 64, the last after 89.2515 us" in run.stdout
    assert "leaf0:0 -> host0" in run.stdout


def test_a_run_writes_results_figures_and_a_picture(scenario: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    run = fabric("run", scenario, "--json", "-o", found, "--plot", tmp_path / "run.html")
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    assert figures == json.loads((found / "summary.json").read_text())
    assert [each["name"] for each in figures["classes"]] == ["expert", "kv"]
    results = Results.load(found / "results.npz")
    assert results.makespan_us == figures["makespan_us"]
    assert len(results.sample_us) > 5
    assert (found / "run.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "run.html").read_text()
    assert "<svg" in page
    assert "two_classes" in page


def test_fields_of_files_and_of_named_scenarios_can_be_set(scenario: Path) -> None:
    short = json.loads(fabric("run", scenario, "--json", "--set", "workloads.kv.size=4KiB").stdout)
    assert short["classes"][1]["payload_bytes"] == 2 * 4096
    spread = json.loads(fabric("run", "A64_64K", "--json", "--set", "every.routing=spray", "--set", "seed=4").stdout)
    assert spread["seed"] == 4
    assert spread["makespan_us"] < json.loads(fabric("run", "A64_64K", "--json").stdout)["makespan_us"]


def test_a_run_that_reaches_a_limit_shows_what_is_known_and_fails(scenario: Path, tmp_path: Path) -> None:
    run = fabric("run", scenario, "--set", "limits.events=2000", "--plot", tmp_path / "part.png")
    assert run.returncode == 1
    assert "NOT ENDED (budget)" in run.stdout
    assert "unfinished:" in run.stdout
    assert "error: max_events: the limit of 2,000 events was reached" in run.stderr
    assert (tmp_path / "part.png").exists()


def test_ctrl_c_shows_what_is_known() -> None:
    words = [sys.executable, "-m", "fourlane", "fabric", "run", "I64_1M", "--set", "packets.payload=16B"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "NOT ENDED (interrupted)" in out
    assert error.endswith("interrupted\n")


def test_a_comparison_is_a_table_a_picture_and_figures(scenario: Path, tmp_path: Path) -> None:
    run = fabric("compare", scenario, "-o", tmp_path / "compared")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "two_classes: class expert"
    assert [tuple(line.split()[:3]) for line in lines[2:]] == [
        (routing, queue, ecn)
        for routing in ("ecmp", "adaptive", "spray")
        for queue in ("shared", "own")
        for ecn in ("on", "off")
    ]
    figures = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert min(each["factor"] for each in figures) == 1.0
    assert (tmp_path / "compared" / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("run", "A64_64"), "A64_64: expected a scenario file or one of P1024_2MB, "),
        (("run", "A64_64"), '(did you mean "A64_64K"?)'),
        (("run", "absent.toml"), "absent.toml: expected a readable TOML file"),
        (("run", "ONE_4K", "--set", "every.routing=fastest"), "every.routing"),
        (("run", "ONE_4K", "--plot", "absent/run.png"), "absent/run.png: the plot cannot be written"),
        (("compare", "A16s_64K", "--class", "kv"), 'compare: expected a class of the flows (expert), got "kv"'),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(words: tuple[str, ...], complaint: str) -> None:
    run = fabric(*words)
    assert run.returncode == 2
    assert complaint in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_the_scenarios_of_the_catalog_run() -> None:
    run = fabric("run", "expert-beside-kv", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["finished"] == 127 * 128 + 128
