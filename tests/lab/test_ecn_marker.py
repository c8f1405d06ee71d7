"""The ECN marker in real network namespaces: two hosts, a switch port of 200 Mbit/s between them, TCP cubic."""

from __future__ import annotations

import os
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from fourlane.errors import EnvironmentMissing
from fourlane.lab import bpf
from fourlane.lab.bpf import Assembler, load_classifier, why_not_loadable
from fourlane.lab.ecn_marker import EcnMarker
from fourlane.lab.traffic_control import in_network_namespace
from fourlane.lanes.plan import Ecn
from fourlane.spec.traffic import dscp_to_tos
from fourlane.units import Rate, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = Rate(200_000_000)
EXPERT, KV = 46, 18
STEP_AT_30_KB = Ecn(kmin=Size(30_000), kmax=Size(30_000), pmax=1.0)
TCP_INFO_RTT = 68  # offset of tcpi_rtt in struct tcp_info, in us


@contextmanager
def namespace() -> Iterator[Path]:
    """Hold an anonymous network namespace as long as a sleeping process."""
    with subprocess.Popen(["unshare", "--net", "sleep", "60"], stderr=subprocess.PIPE) as holder:
        try:
            file = Path(f"/proc/{holder.pid}/ns/net")
            ours, deadline = Path("/proc/self/ns/net").readlink(), time.monotonic() + 5
            while holder.poll() is None and file.readlink() == ours and time.monotonic() < deadline:
                time.sleep(0.005)
            if holder.poll() is not None:
                pytest.skip("this user may not make network namespaces")
            yield file
        finally:
            holder.kill()


def inside(file: Path, *lines: str) -> str:
    """Run commands inside a namespace; return what the last one printed."""
    done = subprocess.CompletedProcess([], 0, "", "")
    for line in lines:
        command = ["nsenter", f"--net={file}", *line.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


@dataclass
class Path2:
    """Sender, switch, receiver; the receiver answers at 10.77.1.2 (sender asks for ECN) and .3 (it does not)."""

    sender: Path
    switch: Path
    receiver: Path


@pytest.fixture
def path() -> Iterator[Path2]:
    if missing := [tool for tool in ("ip", "tc", "nsenter", "unshare") if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if reason := why_not_loadable():
        pytest.skip(reason)
    with ExitStack() as stack:
        sender, switch, receiver = (stack.enter_context(namespace()) for _ in range(3))
        pid = {file: file.parts[2] for file in (sender, receiver)}
        inside(
            switch,
            f"ip link add down0 type veth peer name up0 netns {pid[sender]}",
            f"ip link add down1 type veth peer name up0 netns {pid[receiver]}",
            "ip addr add 10.77.0.1/24 dev down0",
            "ip addr add 10.77.1.1/24 dev down1",
            "ip link set down0 up gso_max_segs 1",
            "ip link set down1 up gso_max_segs 1",
            "tc qdisc add dev down1 root handle 1: htb default 10",
            f"tc class add dev down1 parent 1: classid 1:10 htb rate {int(LINE)}bit burst 16kb quantum 3000",
            "tc qdisc add dev down1 parent 1:10 bfifo limit 400000",
            "sysctl -qw net.ipv4.ip_forward=1",
        )
        ends = ((sender, ("10.77.0.2",), "10.77.0.1"), (receiver, ("10.77.1.2", "10.77.1.3"), "10.77.1.1"))
        for end, addresses, gateway in ends:
            inside(end, "ip link set up0 up gso_max_segs 1", *(f"ip addr add {a}/24 dev up0" for a in addresses))
            inside(end, f"ip route add default via {gateway} congctl cubic")
        inside(sender, "ip route add 10.77.1.2 via 10.77.0.1 congctl cubic features ecn")
        yield Path2(sender, switch, receiver)


class Flows:
    """Bulk TCP flows from sender to receiver, in threads of this process."""

    def __init__(self, path: Path2, address: str, *, flows: int, dscp: int) -> None:
        self.received = 0
        self.senders: list[socket.socket] = []
        self._sockets = ExitStack()
        self._threads: list[threading.Thread] = []
        in_network_namespace(path.receiver, lambda: self._listen(address))
        for _ in range(flows):
            in_network_namespace(path.sender, lambda: self._connect(dscp))

    def _listen(self, address: str) -> None:
        self.listener = self._sockets.enter_context(socket.create_server((address, 0)))
        self.listener.settimeout(5)

    def _connect(self, dscp: int) -> None:
        sender = self._sockets.enter_context(socket.socket())
        sender.settimeout(5)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp_to_tos(dscp))
        sender.connect(self.listener.getsockname())
        receiver = self._sockets.enter_context(self.listener.accept()[0])
        receiver.settimeout(5)
        self.senders.append(sender)
        for run, end in ((self._send, sender), (self._receive, receiver)):
            self._threads.append(threading.Thread(target=run, args=(end,)))
            self._threads[-1].start()

    def _send(self, sender: socket.socket) -> None:
        block = bytes(1 << 16)
        with suppress(OSError):
            while True:
                sender.sendall(block)

    def _receive(self, receiver: socket.socket) -> None:
        with suppress(OSError):
            while got := len(receiver.recv(1 << 18)):
                self.received += got

    def rtt_ms(self) -> list[float]:
        """Return the kernel's smoothed RTT of every flow."""
        infos = (sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192) for sender in self.senders)
        return [struct.unpack_from("=I", info, TCP_INFO_RTT)[0] / 1000 for info in infos]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sender in self.senders:
            with suppress(OSError):
                sender.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._sockets.close()


def rtt_and_goodput(path: Path2, address: str, *, dscp: int) -> tuple[float, float]:
    """Return the median smoothed RTT in ms and the goodput as a fraction of the line, once four flows are settled."""
    with Flows(path, address, flows=4, dscp=dscp) as flows:
        time.sleep(0.7)
        before, begun, rtts = flows.received, time.monotonic(), []
        while time.monotonic() < begun + 1.5:
            rtts += flows.rtt_ms()
            time.sleep(0.01)
        return statistics.median(rtts), (flows.received - before) * 8 / (time.monotonic() - begun) / LINE


def test_marking_empties_the_queue_at_nearly_the_same_throughput(path: Path2) -> None:
    plain_rtt, plain_goodput = rtt_and_goodput(path, "10.77.1.2", dscp=EXPERT)
    marker = EcnMarker(path.switch, "down1", dscp=EXPERT, thresholds=STEP_AT_30_KB, line=LINE)
    rtt, goodput = rtt_and_goodput(path, "10.77.1.2", dscp=EXPERT)
    counts = marker.counts()
    marker.close()
    assert rtt * 3 < plain_rtt
    assert goodput > 0.85 * plain_goodput
    assert 0 < counts.marked <= counts.over < counts.packets


def test_only_senders_that_speak_ecn_and_only_the_class_asked_for_are_marked(path: Path2) -> None:
    expert = EcnMarker(path.switch, "down1", dscp=EXPERT, thresholds=STEP_AT_30_KB, line=LINE)
    kv = EcnMarker(path.switch, "down1", dscp=KV, thresholds=STEP_AT_30_KB, line=LINE)
    rtt, _ = rtt_and_goodput(path, "10.77.1.3", dscp=KV)
    assert expert.counts().packets == 0
    assert kv.counts().over > 100
    assert kv.counts().marked == 0
    assert rtt > 3  # nobody backed off: the buffer of 400 KB, 16 ms, stands well filled


def test_below_kmax_only_some_packets_are_marked(path: Path2) -> None:
    ramp = Ecn(kmin=Size(10_000), kmax=Size(2_000_000), pmax=0.02)
    marker = EcnMarker(path.switch, "down1", dscp=EXPERT, thresholds=ramp, line=LINE)
    rtt_and_goodput(path, "10.77.1.2", dscp=EXPERT)
    counts = marker.counts()
    assert 0 < counts.marked < 0.05 * counts.packets


def test_nothing_of_a_marker_outlives_its_namespace() -> None:
    if reason := why_not_loadable():
        pytest.skip(reason)
    with namespace() as switch:
        inside(switch, "ip link add port0 type veth peer name port1")
        EcnMarker(switch, "port0", dscp=EXPERT, thresholds=STEP_AT_30_KB, line=LINE)
        filters = inside(switch, "tc filter show dev port0 egress")
        program = int(re.search(r"\bid (\d+)\b", filters)[1])
        assert is_loaded(program)
    deadline = time.monotonic() + 10
    while is_loaded(program) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_loaded(program)


def test_a_closed_marker_is_gone_from_its_port_and_others_stay() -> None:
    if reason := why_not_loadable():
        pytest.skip(reason)
    with namespace() as switch:
        inside(switch, "ip link add port0 type veth peer name port1")
        first, second = (
            EcnMarker(switch, "port0", dscp=dscp, thresholds=STEP_AT_30_KB, line=LINE) for dscp in (EXPERT, KV)
        )
        first.close()
        filters = inside(switch, "tc filter show dev port0 egress")
        assert f"ecn-dscp-{EXPERT}" not in filters
        assert f"ecn-dscp-{KV}" in filters
        second.close()
        assert "ecn" not in inside(switch, "tc filter show dev port0 egress")


def is_loaded(program: int) -> bool:
    by_id = 13  # BPF_PROG_GET_FD_BY_ID
    try:
        os.close(bpf._bpf(by_id, struct.pack("=III", program, 0, 0), what="look up a program"))
    except EnvironmentMissing:
        return False
    return True


def test_the_verifiers_words_reach_the_reader() -> None:
    if reason := why_not_loadable():
        pytest.skip(reason)
    unset = Assembler()
    unset.move(0, register=3)
    unset.exit()
    with pytest.raises(EnvironmentMissing, match=r"(?s)cannot load an eBPF program.*R3 !read_ok"):
        load_classifier(unset.assemble(), "unset")


def test_a_marker_on_a_device_that_is_not_there_names_it() -> None:
    if reason := why_not_loadable():
        pytest.skip(reason)
    with pytest.raises(EnvironmentMissing, match="port9: no such device"):
        EcnMarker(None, "port9", dscp=EXPERT, thresholds=STEP_AT_30_KB, line=LINE)


def test_a_plain_user_is_told_what_eBPF_needs() -> None:  # noqa: N802 - its name
    if os.geteuid() != 0:
        pytest.skip("needs root, to become a plain user")
    ask = (  # what is imported may lie where only root may read
        "import encodings.ascii, os; from fourlane.lab.bpf import why_not_loadable; os.setgroups([]); "
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); print(why_not_loadable())"
    )
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=30, check=True).stdout
    assert "run as root, or with CAP_BPF" in said
