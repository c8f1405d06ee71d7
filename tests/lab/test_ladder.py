"""The ladder in small, with the live engine; and its KV load between two hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fourlane.lab.network import Lab

LADDER = [sys.executable, "-m", "fourlane", "lab", "run", "ladder"]


def test_kv_objects_arrive_whole_and_near_line_rate(two_hosts: Lab) -> None:
    address = two_hosts.address("h1", "hpn")
    receiver = two_hosts.call("h1", "fourlane.lab.kv_flows:receive_objects", address=address)
    target = (address, receiver.heard(10))
    sender = two_hosts.call(
        "h0",
        "fourlane.lab.kv_flows:send_objects",
        source=two_hosts.address("h0", "hpn"),
        targets=[target],
        size=1 << 20,
        per_s=20.0,
        seed=3,
    )
    sender.heard(10)
    time.sleep(1.0)
    tally = sender.stop().result(10)
    assert receiver.stop().result(10) >= len(tally["seconds"]) > 3
    assert tally["offered_bytes"] >= tally["object_bytes"] * len(tally["seconds"])
    fastest = min(tally["seconds"])
    ideal = (1 << 20) * 8 / 500e6
    assert 0.95 * ideal < fastest < 1.5 * ideal
    kv = two_hosts.count(two_hosts.topology.nic("h0", "hpn"))
    assert sum(lane.sent_bytes for lane in kv.values()) > tally["object_bytes"] * len(tally["seconds"])


def test_kv_that_nobody_receives_names_the_target(two_hosts: Lab) -> None:
    source, address = two_hosts.address("h0", "hpn"), two_hosts.address("h1", "hpn")
    sender = two_hosts.call(
        "h0",
        "fourlane.lab.kv_flows:send_objects",
        source=source,
        targets=[(address, 9)],
        size=1000,
        per_s=100.0,
        seed=1,
    )
    with pytest.raises(Exception, match=rf"KV of 1000 bytes from {source} to {address}:9: .*refused"):
        sender.result(20)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.usefixtures("two_hosts")  # skips where no lab is possible
def test_lanes_and_a_network_for_kv_shorten_token_times(tmp_path: Path) -> None:
    options = ["--repeats", "1", "--requests", "8", "--step", "3", "--step", "5", "-o", str(tmp_path / "out")]
    ran = subprocess.run([*LADDER, *options], capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 0 or "the run is invalid" in ran.stderr, ran.stderr
    result = json.loads((tmp_path / "out" / "ladder.json").read_text())
    steps: dict[str, Any] = {step["name"]: step for step in result["steps"]}
    assert list(steps) == ["1", "3", "5"]
    assert not any(step["failed"] for step in steps.values())
    assert steps["3"]["ratios"]["exchange_p99_s"] < 0.75  # 0.15 on an idle machine
    assert steps["5"]["ratios"]["tpot_p99_s"] < 0.75  # 0.2
    assert steps["5"]["ratios"]["kv_share"] > 1.1  # 1.7
    assert steps["3"]["uplink_share"] < 0.55
    assert (tmp_path / "out" / "ladder.png").stat().st_size > 10_000
    assert "verdict: " in ran.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("two_hosts")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_ladder_and_everything_in_it(tmp_path: Path, number: signal.Signals, status: int) -> None:
    process = subprocess.Popen(
        [*LADDER],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "ranks" in line or "gateway" in line:  # the service is coming up
            break
    inside = descendants(process.pid)
    assert len(inside) > 10
    process.send_signal(number)
    process.communicate(timeout=40)
    assert process.returncode == status
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 5  # the kernel may still be taking them down
    while any(map(alive, inside)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in inside if alive(pid)] == []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Return all processes below one, by the kernel's account."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--rate", "100"], r'--rate: expected a rate such as "400Gbps"'),
        (["--step", "6"], "--step: expected one of 1, 2, 3, 4a, 4b, 5, got 6"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(option: list[str], message: str) -> None:
    ran = subprocess.run([*LADDER, *option], capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 2
    assert message in ran.stderr.replace(r"\"", '"')
