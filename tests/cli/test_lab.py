"""`fourlane lab`: labs come up, are entered and end; what is wrong is said in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fourlane.errors import EnvironmentMissing
from fourlane.lab.namespaces import Namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    try:
        Namespaces(["a"]).close()
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    made = Lab(tmp_path)
    yield made
    made("down", "--all")


class Lab:
    """The command, with a folder of its own for what is up."""

    def __init__(self, folder: Path) -> None:
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fourlane", "lab", *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def runs(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_detached_lab_is_entered_and_ended(lab: Lab) -> None:
    shown = lab("up", "--detach", "--hosts", "2", "--name", "one")
    assert shown.returncode == 0, shown.stderr
    assert "10.201.0.2" in shown.stdout
    assert "nsenter --target" in shown.stdout
    assert lab("up", "--detach", "--hosts", "2", "--name", "two").returncode == 0
    again = lab("up", "--detach", "--name", "one")
    assert again.returncode == 2
    assert "is up already" in again.stderr
    inside = lab("enter", "--name", "one", "h1", "ip", "-br", "address")
    assert "10.202.0.2/24" in inside.stdout
    assert lab("enter", "--name", "one", "h1", "sh", "-c", "exit 7").returncode == 7
    holder = int(shown.stdout.partition("held by process ")[2].split()[0])
    assert lab("down", "one").returncode == 0
    assert not runs(holder)
    assert lab("enter", "--name", "two", "h0", "true").returncode == 0


def test_a_lab_whose_holder_was_killed_is_not_up(lab: Lab) -> None:
    shown = lab("up", "--detach", "--hosts", "2")
    holder = int(shown.stdout.partition("held by process ")[2].split()[0])
    os.kill(holder, 9)
    deadline = time.monotonic() + 5
    while lab("enter", "h0", "true").returncode == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = lab("down")
    assert ended.returncode == 2
    assert "lab 'lab' is not up (up: none)" in ended.stderr


def test_the_doctor_says_what_there_is(lab: Lab) -> None:
    findings = {each["name"]: each for each in json.loads(lab("doctor", "--json").stdout)}
    assert {"ip", "tc", "network namespaces", "veth", "bridge", "htb", "bfifo", "u32", "nft", "eBPF"} <= set(findings)
    assert findings["network namespaces"]["status"] == "ok"
    assert all(each["mend"] for each in findings.values() if each["status"] != "ok")


def test_an_experiment_writes_picture_page_and_figures(lab: Lab, tmp_path: Path) -> None:
    run = lab("run", "incast", "--repeats", "1", "--rate", "200Mbps", "-o", str(tmp_path / "shown"))
    assert run.returncode in (0, 1), run.stderr
    assert "starved, 16 KiB" in run.stdout
    assert "verdict: " in run.stdout
    assert (tmp_path / "shown" / "incast.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "shown" / "incast.html").read_text() or (
        "<img" in (tmp_path / "shown" / "incast.html").read_text()
    )
    figures = json.loads((tmp_path / "shown" / "incast.json").read_text())
    assert figures["passed"] == (run.returncode == 0)
    assert figures["verdict"]["valid"] == ("verdict: valid" in run.stdout)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("run", "isolation", "--rate", "400"), '--rate: expected a rate such as "400Gbps", got "400"'),
        (("run", "isolation", "--plan", "nowhere.toml"), "nowhere.toml"),
        (("up", "--spread"), "--spread: a star has no spines"),
        (("up", "--rate", "fast"), '--rate: expected a rate such as "400Gbps", got "fast"'),
        (("down", "other"), "lab 'other' is not up"),
        (("enter", "h0", "true"), "lab 'lab' is not up"),
    ],
)
def test_wrong_use_is_one_sentence_and_status_2(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    run = Lab(tmp_path)(*words)
    assert run.returncode == 2
    assert complaint in run.stderr
    assert "Traceback" not in run.stderr
