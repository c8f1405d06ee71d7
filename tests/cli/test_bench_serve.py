"""`fourlane bench serve` as a person runs it, against a scripted service."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAKE = Path(__file__).parents[1] / "unit" / "gateway" / "fake_completions_service.py"
COMMAND = [sys.executable, "-m", "fourlane", "bench", "serve"]


@pytest.fixture
def fake_url() -> Iterator[Callable[..., str]]:
    """Start scripted services; each call returns the URL of another."""
    started: list[subprocess.Popen[str]] = []

    def start(answer: str = "plain", token_s: float = 0.001) -> str:
        process = subprocess.Popen([sys.executable, str(FAKE), answer, str(token_s)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_it_prints_tables_and_writes_json_and_a_plot(fake_url: Callable[..., str], tmp_path: Path) -> None:
    url = fake_url()
    out = run("--url", url, "--requests", "12", "--concurrency", "3", "--input-len", "16", "--output-len", "6",
              "--slo-ttft", "5s", "--json", tmp_path / "o.json", "--plot", tmp_path / "o.png")  # fmt: skip
    assert (out.returncode, out.stderr) == (0, "")
    assert out.stdout.startswith(f"12 requests, 3 at a time, 16 tokens in, 6 out to {url}, model fake\n")
    for said in ("time to first token (TTFT)", "12 of 12", "192 / 0 / 72", "100.0 % of requests"):
        assert said in out.stdout
    figures = json.loads((tmp_path / "o.json").read_text())
    assert figures["summary"]["output_tokens"] == 72
    assert len(figures["requests"]) == 12
    assert figures["settings"]["slo_ttft_s"] == 5.0
    assert (tmp_path / "o.png").stat().st_size > 10_000


def test_the_api_key_is_not_written_to_the_json(fake_url: Callable[..., str], tmp_path: Path) -> None:
    out = run("--url", fake_url(), "--requests", "1", "--api-key", "s3cr3t", "--json", tmp_path / "o.json")
    assert out.returncode == 0
    assert "s3cr3t" not in (tmp_path / "o.json").read_text() + out.stdout


def test_failed_requests_end_in_exit_code_1_and_a_table_of_errors(fake_url: Callable[..., str]) -> None:
    out = run("--url", fake_url("refuse"), "--requests", "5", "--warmup", "0")
    assert out.returncode == 1
    assert "status 429: 256 requests wait" in out.stdout
    assert "5 of 5 requests failed" in out.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "0"),
        ("--rate", "2", "--concurrency", "4"),
        ("--input-len", "0"),
        ("--timeout", "5"),
        ("--trace", "missing.csv"),
        ("--prompts", "missing.txt"),
        ("--model", "another"),
        ("--set", "gateway.port=1"),
        ("--no-such-option",),
    ],
)
def test_wrong_options_end_in_exit_code_2(fake_url: Callable[..., str], arguments: tuple[str, ...]) -> None:
    out = run("--url", fake_url(), *arguments)
    assert out.returncode == 2
    assert "Traceback" not in out.stderr
    assert out.stderr.strip()


def test_no_service_there_ends_in_exit_code_3() -> None:
    out = run("--url", "http://127.0.0.1:9")
    assert out.returncode == 3
    assert "no connection to http://127.0.0.1:9" in out.stderr


def test_ctrl_c_prints_what_was_measured_so_far(fake_url: Callable[..., str]) -> None:
    url = fake_url("plain", 0.01)
    process = subprocess.Popen(
        [*COMMAND, "--url", url, "--requests", "1000", "--concurrency", "2", "--output-len", "8", "--warmup", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("1000 requests")
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "requests answered" in out
    assert "Traceback" not in errors
