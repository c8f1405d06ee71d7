"""`fourlane bench kv` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fourlane.engine.kv_transfer.nixl import find_nixl

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "fourlane", "bench", "kv"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False)


def test_it_prints_each_transport_beside_its_yardstick_and_writes_json_and_a_plot(tmp_path: Path) -> None:
    which = ("--transport", "tcp", "--transport", "shared_memory", "--set", "kv_transfer.streams=2")
    files = ("--json", tmp_path / "kv.json", "--plot", tmp_path / "kv.png")
    out = run(*which, "--sizes", "1MiB,64KiB", "--repeats", "3", *files)
    assert (out.returncode, out.stderr) == (0, "")
    lines = out.stdout.splitlines()
    assert lines[0] == "KV, median rate"
    assert lines[1].split() == ["64.0", "KiB", "1.00", "MiB"]
    assert [line.split()[0] for line in lines[2:6]] == ["memcpy", "line:", "shared_memory", "tcp"]
    assert "shared_memory / memcpy" in out.stdout
    assert "tcp / line" in out.stdout
    figures = json.loads((tmp_path / "kv.json").read_text())
    assert [(series["way"], series["size"]) for series in figures["series"]] == [
        (way, size) for way in ("memcpy", "line", "shared_memory", "tcp") for size in (1 << 16, 1 << 20)
    ]
    assert all(len(series["seconds"]) == 3 and min(series["seconds"]) > 0 for series in figures["series"])
    assert all(share < 0.2 for ends in figures["idle_cpu_cores"].values() for share in ends.values())
    assert (tmp_path / "kv.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sizes", "64"), "--sizes: "),
        (("--sizes", "10KiB"), "--sizes: expected multiples of 16KiB up to 4GiB, got 10KiB"),
        (("--sizes", "8GiB,0B"), "got 8GiB"),
        (("--transport", "pigeon"), 'expected one of shared_memory, tcp, nixl, mooncake, got "pigeon"'),
        (("--set", "kv_transfer.streams=none"), "kv_transfer.streams"),
        (("--repeats", "0"), "--repeats"),
    ],
)
def test_wrong_options_are_refused_with_code_2(arguments: tuple[str, ...], said: str) -> None:
    out = run(*arguments)
    assert out.returncode == 2
    assert said in out.stderr
    assert "Traceback" not in out.stderr


@pytest.mark.skipif(find_nixl() is not None, reason="NIXL is installed here")
def test_a_transport_asked_for_that_is_not_here_ends_with_code_3() -> None:
    out = run("--transport", "nixl")
    assert out.returncode == 3
    assert 'pip install "fourlane[nixl]"' in out.stderr


def test_an_address_that_is_not_here_fails_with_one_message() -> None:
    out = run("--transport", "tcp", "--sizes", "64KiB", "--set", "kv_transfer.address=203.0.113.7")
    assert out.returncode == 1
    assert "203.0.113.7" in out.stdout + out.stderr
    assert "Traceback" not in out.stderr
