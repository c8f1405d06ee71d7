"""`fourlane bench exchange` as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from fourlane.cli.bench import exchange, groups
from fourlane.cli.bench.exchange_tables import exchange_tables
from fourlane.engine.exchange.measure import IMPLEMENTATIONS, MEMCPY, Measured
from fourlane.errors import EnvironmentMissing

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "fourlane", "bench", "exchange"]
SHORT = ("--seconds", "0.02", "--rounds", "1")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False)


def test_it_prints_every_implementation_beside_gloo_and_memcpy_and_writes_json_and_a_plot(tmp_path: Path) -> None:
    files = ("--json", tmp_path / "found.json", "--plot", tmp_path / "found.png")
    out = run("--ranks", "3,2", "--sizes", "64KiB,2KiB", *SHORT, *files)
    assert (out.returncode, out.stderr) == (0, "")
    titles = [line for line in out.stdout.splitlines() if line.endswith("ranks")]
    assert titles == [
        "All-to-all of equal blocks, 2 ranks",
        "All-to-all of equal blocks, 3 ranks",
        "Dispatch and combine, back to back: period of a pair, 2 ranks",
        "Dispatch and combine, back to back: period of a pair, 3 ranks",
    ]
    figures = json.loads((tmp_path / "found.json").read_text())
    plain = {
        (each["ranks"], each["implementation"], each["size"])
        for each in figures["operations"]
        if each["way"] == "plain"
    }
    assert plain == {(g, name, size) for g in (2, 3) for name in (*MEMCPY, *IMPLEMENTATIONS) for size in (2048, 65536)}
    assert all(len(each["seconds"]) >= 8 and min(each["seconds"]) > 0 for each in figures["operations"])
    for each in figures["summary"]:
        assert 0 < each["p50_s"] <= each["p90_s"] <= each["p99_s"]
        if each["implementation"] == "torch_all_to_all":
            assert each["times_faster_than_gloo"] == 1
        if each["implementation"] == "memcpy":
            assert each["share_of_memcpy"] == 1
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_tokens_may_travel_as_float8_and_are_as_far_off_as_that_allows(tmp_path: Path) -> None:
    files = ("--json", tmp_path / "found.json")
    out = run("--ranks", "2", "--sizes", "16KiB", "--dispatch", "float8", *SHORT, *files)
    assert (out.returncode, out.stderr) == (0, "")
    figures = json.loads((tmp_path / "found.json").read_text())
    travels = {each["way"]: each["travels"] for each in figures["operations"]}
    assert travels == {"plain": 16384, "pair": 16384 + 8 * 528}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sizes", "64"), "--sizes: "),
        (("--sizes", "3KiB"), "--sizes: expected multiples of 2KiB up to 64MiB, got 3KiB"),
        (("--ranks", "1,x"), '--ranks: expected numbers from 2 to 16, got "x"'),
        (("--implementation", "pigeon"), "--implementation: expected one of torch_all_to_all, tcp"),
        (("--link", "fast"), "--link: "),
        (("--seconds", "0"), "--seconds: expected 0.01 to 600, got 0"),
        (("--rounds", "0"), "--rounds"),
    ],
)
def test_wrong_options_are_refused_with_code_2(arguments: tuple[str, ...], said: str) -> None:
    out = run(*arguments)
    assert out.returncode == 2
    assert said in out.stderr
    assert "Traceback" not in out.stderr


@pytest.mark.parametrize("processes", [3, 5, 7])
def test_ctrl_c_ends_it_at_once_and_leaves_no_rank_behind(processes: int) -> None:
    words = [*COMMAND, "--ranks", "4", "--sizes", "1MiB", "--seconds", "60"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    # itself, Python's own two helpers, then up to four ranks
    while len(_session(process.pid)) < processes and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (130, "", "interrupted\n")
    while _session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _session(process.pid) == []


def test_without_namespaces_the_ranks_sockets_are_paced_to_the_links_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EnvironmentMissing("lab: no namespaces for this test")

    monkeypatch.setattr(groups, "_lab", refuse)
    sizes = {"ranks": "2", "sizes": "256KiB", "dispatch": "activations"}
    bench = exchange._Bench.read(implementations=(), link="200Mbps", mtu=1500, seconds=0.3, rounds=1, **sizes)
    found, notes = bench.measure()
    assert notes == ["no lab here, so sockets are paced and there are no queues: lab: no namespaces for this test"]
    line_s = 256 * 1024 * 8 / 200e6
    for each in found:
        if (each.way, each.implementation) == ("plain", "tcp"):
            # the kernel lets a sender that was kept waiting catch up at up to twice its pace
            assert sorted(each.seconds)[len(each.seconds) // 2] > 0.45 * line_s


def test_who_waited_for_whom_is_a_table_of_its_own_for_the_largest_size() -> None:
    pair = {"ranks": 2, "way": "pair", "implementation": "tcp", "travels": 1, "seconds": [1e-3]}
    small = Measured(**pair, size=2048, waited_s=[[0.0, 1e-6], [1e-6, 0.0]])
    large = Measured(**pair, size=4096, waited_s=[[0.0, 2e-6], [5e-4, 0.0]])
    _, waits = exchange_tables([small, large], link=None)
    assert waits.title == "tcp, 2 ranks, 4.00 KiB a pair: waits in a dispatch and combine"
    assert waits.columns == ("", "for rank 0", "for rank 1")
    assert waits.rows == (("rank 0 waited", "", "2.00 us"), ("rank 1 waited", "500 us", ""))


def _session(leader: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    listed = subprocess.run(["ps", "-eo", "pid=,sid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, session, state in rows if int(session) == leader and not state.startswith("Z")]
