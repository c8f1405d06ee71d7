"""`fourlane demo` as a person runs it, on the bundled model, and the examples."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/run.py"))

pytestmark = pytest.mark.distributed


def descendants(root: int) -> set[int]:
    """Return the pids of all processes begun, directly or not, by a process."""
    parent_of = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = path.read_text(errors="replace")
            parent_of[int(path.parent.name)] = int(text[text.rindex(")") + 2 :].split()[1])
    found = {root}
    while more := {pid for pid, parent in parent_of.items() if parent in found} - found:
        found |= more
    return found - {root}


def ranks(count: str) -> tuple[str, ...]:
    return ("--set", f"prefill.ranks={count}", "--set", f"decode.ranks={count}")


def test_it_answers_measures_and_ends_with_one_table(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    command = [sys.executable, "-m", "fourlane", "demo", *ranks("1")]
    run = subprocess.run(
        [*command, "--requests", "6", "--concurrency", "3", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("bundled: 1 prefill + 1 decode ranks serve after ")
    for said in ("> What is a river?\n", "bread, noun:", "Load: 6 requests, 3 at a time", "6 of 6",
                 "KV time hidden behind prefill", "process start to first token"):  # fmt: skip
        assert said in run.stdout
    assert "\x1b" not in run.stdout

    figures = json.loads(path.read_text())
    assert 0 < figures["first_token_s"] < 60
    assert figures["load"]["output_tokens"] == 6 * 48
    token_bytes = 2 * 4 * _kv_elements_a_token()
    assert figures["kv_bytes"] == figures["load"]["prompt_tokens"] * token_bytes
    assert 0 <= figures["kv_hidden_share"] <= 1
    assert set(figures["pools"]) == {"prefill", "decode"}
    assert all(memory > 1 << 20 for memory in figures["pools"]["decode"]["memory_bytes"].values())


def _kv_elements_a_token() -> int:
    """Return layers x KV heads x head dim of the bundled model."""
    config = json.loads((ROOT / "src/fourlane/engine/model/bundled/config.json").read_text())
    return config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]


def test_answers_are_the_same_in_every_run_and_with_any_ranks() -> None:
    answers = []
    for count in ("1", "2"):
        command = [sys.executable, "-m", "fourlane", "demo", *ranks(count), "--requests", "1"]
        out = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
        answers.append(out[out.index("\n>") : out.index("\nLoad")])
    assert answers[0] == answers[1]


def test_ctrl_c_ends_it_with_130_and_leaves_no_process() -> None:
    command = [sys.executable, "-m", "fourlane", "demo", *ranks("1"), "--requests", "5000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Load"):
            break
    time.sleep(1.0)
    begun = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert len(begun) >= 3  # nursery and two ranks
    assert [pid for pid in begun if Path(f"/proc/{pid}").exists()] == []


def test_a_wrong_override_is_refused_before_anything_starts() -> None:
    command = [sys.executable, "-m", "fourlane", "demo", "--set", "prefill.rank=3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert "prefill.rank" in run.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_prints_what_it_says(example: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(example / "run.py")], capture_output=True, text=True, timeout=100, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == (example / "expected.out").read_text()
