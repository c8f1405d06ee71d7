"""Labs come up, carry packets through their queues, and leave nothing behind."""

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
from plain_user import python_as_plain_user

from fourlane.errors import CheckFailed, LabError, SpecError
from fourlane.lab.network import Lab
from fourlane.lab.topology import star
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.render.host import host_queues
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass, dscp_to_tos
from fourlane.units import Rate, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLDER = Path(__file__).parents[1] / "support" / "lab_holder.py"
RATE = Rate.parse("500Mbps")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pids: list[int], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [pid for pid in pids if alive(pid)] == []


def namespaces_in_use() -> set[str]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(entry.readlink()))
        except OSError:
            continue
    return found


@pytest.fixture(params=["as this user", "as a plain user"])
def holder(request: pytest.FixtureRequest, four_hosts: Lab) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    del four_hosts  # skips where no lab is possible
    plain = python_as_plain_user() if request.param == "as a plain user" else ([sys.executable], dict(os.environ))
    if isinstance(plain, str):
        pytest.skip(plain)
    words, environment = plain
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([*words, str(HOLDER)], **pipes, text=True, env=environment) as it:
        line = it.stdout.readline()
        complaint = "" if line else it.stderr.read().strip()
        if "EnvironmentMissing" in complaint:
            pytest.skip(complaint.splitlines()[-1])
        assert complaint == ""
        told = json.loads(line)
        yield it, told
        it.kill()


def test_nothing_survives_when_the_holding_process_is_killed(
    holder: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    process, told = holder
    assert told["rate"] == "500Mbps"
    assert told["user"] == (told["uid"] != 0)
    assert all(map(alive, told["pids"]))
    assert told["namespace"] in namespaces_in_use()
    process.send_signal(signal.SIGKILL)
    process.wait(5)
    wait_until_gone(told["pids"])
    assert told["namespace"] not in namespaces_in_use()


def test_nothing_is_left_after_an_orderly_end(holder: tuple[subprocess.Popen[str], dict[str, Any]]) -> None:
    process, told = holder
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0
    wait_until_gone(told["pids"])


def test_two_labs_at_once_do_not_meet(four_hosts: Lab) -> None:
    with Lab(star(2)) as other:
        assert other.address("h1", "hpn") == four_hosts.address("h1", "hpn")
        before = other.count(other.topology.nic("h1", "hpn"))[TrafficClass.DEFAULT].sent_packets
        send_marked(four_hosts, "h1", four_hosts.address("h0", "hpn"), dscp=0)
        after = other.count(other.topology.nic("h1", "hpn"))[TrafficClass.DEFAULT].sent_packets
        assert after - before < 5  # the kernel's own IPv6 greetings may be among them, the five packets are not
    assert "hpn" in four_hosts.run("h0", ["ip", "link"])


def send_marked(lab: Lab, host: str, to: str, *, dscp: int, count: int = 5) -> None:
    """Send UDP packets; nobody needs to listen."""
    family, level, option = ("AF_INET6", 41, 67) if ":" in to else ("AF_INET", 0, 1)
    code = (
        f"import socket; s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n"
        f"s.setsockopt({level}, {option}, {dscp_to_tos(dscp)})\n"
        f"for _ in range({count}): s.sendto(bytes(100), ('{to}', 9))"
    )
    lab.run(host, [sys.executable, "-S", "-c", code])


@pytest.mark.parametrize("network", ["hpn", "dcn"])
@pytest.mark.parametrize("address", [Lab.address, Lab.address6])
def test_packets_queue_by_their_mark_at_nic_and_switch(two_hosts: Lab, network: Any, address: Any) -> None:
    plan, topology = default_plan(load_cluster("lab")), two_hosts.topology
    two_hosts.lanes(lambda port: host_queues(plan, port.network, RATE, buffer=Size(1 << 20)))
    ports = [topology.nic("h0", network), topology.switch_port("h1", network)]
    for kind, lane in plan.on(network).items():
        before = [two_hosts.count(port) for port in ports]
        send_marked(two_hosts, "h0", address(two_hosts, "h1", network), dscp=lane.dscp)
        for port, earlier in zip(ports, before, strict=True):
            moved = {name: counted.since(earlier[name]).sent_packets for name, counted in two_hosts.count(port).items()}
            # The default lane also carries neighbour discovery.
            others = {name for name, packets in moved.items() if packets and name is not TrafficClass.DEFAULT}
            assert moved[kind] >= 5
            assert others <= {kind}


@pytest.mark.parametrize("cluster", ["lab", "one-network"])
@pytest.mark.parametrize("rate", ["500Mbps", "1Gbps", "25Gbps", "400Gbps"])
def test_what_the_kernel_holds_reads_back_as_the_plan(two_hosts: Lab, cluster: str, rate: str) -> None:
    plan = default_plan(load_cluster(cluster))
    networks = [name for name in ("hpn", "dcn") if sum(lane.weight or 0 for lane in plan.on(name).values()) == 100]
    for network in networks:
        wanted = host_queues(plan, network, Rate.parse(rate), buffer=Size(1_000_001))
        two_hosts.lanes(lambda _port, wanted=wanted: wanted, network=network)
        for port in two_hosts.topology.ports(network):
            assert two_hosts.read_back(port) == wanted


def test_what_somebody_changed_by_hand_is_noticed(two_hosts: Lab) -> None:
    port = two_hosts.topology.nic("h0", "hpn")
    plan = default_plan(load_cluster("lab"))
    wanted = host_queues(plan, "hpn", RATE, buffer=Size(1 << 20))
    two_hosts.lanes(lambda _port: wanted, network="hpn")
    change = "tc class change dev hpn parent 1:1 classid 1:15 htb rate 100mbit ceil 500mbit prio 1 quantum 1514"
    two_hosts.run("h0", change.split())
    with pytest.raises(CheckFailed, match=r"h0: hpn: class 1:15: a share of 21.05 % is no lane's"):
        two_hosts.read_back(port)
    two_hosts.lanes(lambda _port: wanted, network="hpn")
    two_hosts.run("h0", ["tc", "filter", "del", "dev", "hpn", "parent", "1:", "protocol", "ipv6", "prio", "11"])
    with pytest.raises(CheckFailed, match="the filters of IPv4 and IPv6 differ"):
        two_hosts.read_back(port)
    two_hosts.run("h0", ["tc", "qdisc", "del", "dev", "hpn", "root"])
    with pytest.raises(CheckFailed, match="h0: hpn: expected an HTB root queue, found"):
        two_hosts.read_back(port)


def test_functions_run_in_a_host_and_fail_by_name(four_hosts: Lab) -> None:
    settings = {"net/ipv4/ip_default_ttl": "33"}
    four_hosts.call("h1", "fourlane.lab.settings:write_sysctls", settings=settings).result(10)
    assert four_hosts.run("h1", ["cat", "/proc/sys/net/ipv4/ip_default_ttl"]) == "33\n"
    assert four_hosts.run("h0", ["cat", "/proc/sys/net/ipv4/ip_default_ttl"]) == "64\n"
    with pytest.raises(LabError, match="h1: nothing: ModuleNotFoundError"):
        four_hosts.call("h1", "no_such_module:nothing").result(10)
    with pytest.raises(LabError, match=r"h1: write_sysctls: FileNotFoundError: .*net/no/such"):
        four_hosts.call("h1", "fourlane.lab.settings:write_sysctls", settings={"net/no/such": "1"}).result(10)


def test_a_function_that_is_silent_is_named_after_its_time(four_hosts: Lab) -> None:
    call = four_hosts.call("h1", "fourlane.lab.settings:wait_for_the_end")
    with pytest.raises(LabError, match=r"h1: wait_for_the_end: nothing heard for 0.1 s"):
        call.result(0.1)
    assert call.stop().result(10) is None


def test_a_command_that_fails_is_named_with_its_line(four_hosts: Lab) -> None:
    with pytest.raises(LabError, match=r'h0: ip -batch -: Cannot find device "nowhere"; .*line 2: link set nowhere up'):
        four_hosts.spaces.run("h0", ["ip", "-batch", "-"], text="link show\nlink set nowhere up\n")


def test_a_topology_refuses_names_that_interfaces_cannot_have() -> None:
    with pytest.raises(SpecError) as refused:
        star(("h0", "h0", "a-very-long-name"))
    assert "host 'a-very-long-name': expected a letter" in str(refused.value)
    assert "expected different names" in str(refused.value)
    with pytest.raises(SpecError, match="expected 2 to 32, got 1"):
        star(1)
