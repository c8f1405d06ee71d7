"""The host scripts, run for real on an interface of a lab's host: applied, checked, changed by hand, removed."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.render import render
from fourlane.lanes.render.host import host_queues
from fourlane.lanes.render.host_script import host_buffer
from fourlane.spec.load import load_cluster

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.lab.network import Lab
    from fourlane.spec.cluster import NetworkName


class Host:
    """A script in a host of a lab, for one of its interfaces."""

    def __init__(self, lab: Lab, script: Path, interface: str) -> None:
        self._lab, self._script, self._interface = lab, script, interface

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        process = self._lab.start(
            "h0",
            ["sh", str(self._script), *words],
            env={**os.environ, "FOURLANE_INTERFACES": self._interface},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out, complaints = process.communicate(timeout=30)
        return subprocess.CompletedProcess(words, process.returncode, out, complaints)


def script_of(cluster: str, network: str, folder: Path) -> Path:
    path = folder / f"{cluster}-{network}.sh"
    loaded = load_cluster(cluster)
    path.write_text(render(default_plan(loaded), loaded, "host")[f"host/{network}.sh"])
    return path


@pytest.mark.parametrize(
    ("cluster", "network"),
    [("lab", "hpn"), ("lab", "dcn"), ("one-network", "hpn"), ("h800-ft", "hpn"), ("h800-ft", "dcn")],
)
def test_what_a_script_applies_checks_as_planned_and_reads_back_as_the_plan(
    two_hosts: Lab, tmp_path: Path, cluster: str, network: NetworkName
) -> None:
    host = Host(two_hosts, script_of(cluster, network, tmp_path), network)
    assert host("check").returncode == 1
    applied = host("apply")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert applied.stdout == f"{network}: as planned\n"
    loaded = load_cluster(cluster)
    on = loaded.networks()[network]
    wanted = host_queues(default_plan(loaded), network, on.rate, buffer=host_buffer(on))
    assert two_hosts.read_back(two_hosts.topology.nic("h0", network)) == wanted
    assert host("apply").returncode == 0
    assert host("remove").returncode == 0
    assert host("check").returncode == 1


def test_a_check_says_what_differs(two_hosts: Lab, tmp_path: Path) -> None:
    host = Host(two_hosts, script_of("lab", "hpn", tmp_path), "hpn")
    assert host("apply").returncode == 0
    change = "tc class change dev hpn parent 1:1 classid 1:15 htb rate 100mbit ceil 500mbit prio 1 quantum 1514"
    two_hosts.run("h0", change.split())
    two_hosts.run(
        "h0", ["tc", "qdisc", "change", "dev", "hpn", "parent", "1:60", "handle", "160:", "bfifo", "limit", "5000"]
    )
    checked = host("check")
    assert checked.returncode == 1
    assert sorted(checked.stdout.splitlines()[1:]) == [
        "  + class 1:15 prio 1 rate 100000000 ceil 500000000",
        "  + fifo 1:60 limit 5000",
        "  - class 1:15 prio 1 rate 332500000 ceil 500000000",
        "  - fifo 1:60 limit 116508",
    ]


def test_marks_are_put_on_what_is_named_by_address_or_port(two_hosts: Lab, tmp_path: Path) -> None:
    if shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("nft (nftables) is not installed")
    host = Host(two_hosts, script_of("lab", "hpn", tmp_path), "hpn")
    applied = host("apply", "expert=udp dport 9", f"collective=ip saddr {two_hosts.address('h0', 'hpn')} udp dport 10")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    nic = two_hosts.topology.nic("h0", "hpn")
    for kind, port in (("expert", 9), ("collective", 10)):
        before = two_hosts.count(nic)
        address = two_hosts.address("h1", "hpn")
        send = f"import socket; s = socket.socket(2, 2); [s.sendto(bytes(9), ('{address}', {port})) for _ in range(7)]"
        two_hosts.run("h0", ["python3", "-S", "-c", send])
        moved = {each.value: new.since(before[each]).sent_packets for each, new in two_hosts.count(nic).items()}
        assert moved[kind] == 7
    two_hosts.run("h0", ["nft", "flush", "table", "inet", "fourlane_hpn"])
    checked = host("check", "expert=udp dport 9")
    assert checked.returncode == 1
    assert "marks: wanted 2 rules in the nftables table fourlane_hpn, found 0" in checked.stdout


def test_wrong_use_changes_nothing(two_hosts: Lab, tmp_path: Path) -> None:
    host = Host(two_hosts, script_of("lab", "hpn", tmp_path), "hpn")
    before = two_hosts.read_back(two_hosts.topology.nic("h0", "hpn"))
    assert host().returncode == 2
    refused = host("apply", "parcels=tcp dport 1")
    assert refused.returncode == 2
    assert "expected CLASS=MATCH with one of expert:46" in refused.stderr
    absent = Host(two_hosts, script_of("lab", "hpn", tmp_path), "nowhere0")("apply")
    assert absent.returncode == 3
    assert "no interface nowhere0 here" in absent.stderr
    assert two_hosts.read_back(two_hosts.topology.nic("h0", "hpn")) == before
