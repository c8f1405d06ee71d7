"""The NIC scripts, run for real: by a shell, against tools that keep state and a sysfs of files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fake_nic_tools
import pytest
from hypothesis import HealthCheck, given, settings
from lane_cases import sound_cases
from lane_goldens import CLUSTERS, kept, rendered
from msgspec.structs import replace

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import DSCPS
from fourlane.lanes.render.nic import render_nic
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

TOOLS = ("mlnx_qos", "dcb", "cma_roce_tos", "mlxconfig", "mlxreg")
SHELL_TOOLS = ("sh", "awk", "sed", "tr", "cat", "basename")
STAND_IN = f"""#!{sys.executable} -ISs
import sys
sys.path.insert(0, {str(Path(fake_nic_tools.__file__).parent)!r})
from fake_nic_tools import main
sys.exit(main("{{tool}}"))
"""
PORTS = {"rdma0": "mlx5_0", "rdma1": "mlx5_1"}


def with_ports(cluster: Cluster) -> Cluster:
    """Return a cluster whose servers have two HPN ports, so that a test need not set eight."""
    return replace(cluster, hpn=replace(cluster.hpn, interfaces=tuple(PORTS), devices=tuple(PORTS.values())))


@pytest.fixture
def cluster() -> Cluster:
    return with_ports(load_cluster("h800-ft"))


@pytest.fixture
def plan(cluster: Cluster) -> LanePlan:
    return default_plan(cluster)


@dataclass
class Server:
    """A server: its sysfs, its tools, and a script to run on it."""

    folder: Path

    @classmethod
    def equip(cls, folder: Path, tools: tuple[str, ...] = TOOLS) -> Server:
        """Make a server as it comes: ports at their defaults, firmware without adaptive routing."""
        server = cls(folder)
        (folder / "bin").mkdir()
        for tool in SHELL_TOOLS:
            (folder / "bin" / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool} here"))
        for tool in tools:
            program = folder / "bin" / tool
            program.write_text(STAND_IN.format(tool=tool))
            program.chmod(0o755)
        for number, (interface, device) in enumerate(PORTS.items()):
            server.make_sysfs(interface, device, pci=f"0000:{number + 26:02x}:00.0")
        ports = [
            fake_nic_tools.fresh(interface, device, f"0000:{number + 26:02x}:00.0")
            for number, (interface, device) in enumerate(PORTS.items())
        ]
        server.save({"ports": ports, "calls": []})
        return server

    def make_sysfs(self, interface: str, device: str, *, pci: str) -> None:
        net = self.folder / "sys/class/net" / interface
        for side in ("roce_np", "roce_rp"):
            (net / "ecn" / side / "enable").mkdir(parents=True)
            for priority in range(8):
                (net / "ecn" / side / "enable" / str(priority)).write_text("1\n" if priority == 3 else "0\n")
        (net / "ecn/roce_np/cnp_dscp").write_text("48\n")
        (net / "ecn/roce_np/cnp_802p_prio").write_text("6\n")
        (self.folder / "sys/devices" / pci).mkdir(parents=True)
        (net / "device").symlink_to(f"../../../devices/{pci}")
        tc = self.folder / "sys/class/infiniband" / device / "tc/1"
        tc.mkdir(parents=True)
        (tc / "traffic_class").write_text("")

    def load(self) -> dict:
        return fake_nic_tools.load(str(self.folder / "state"))

    def save(self, state: dict) -> None:
        fake_nic_tools.save(str(self.folder / "state"), state)

    def port(self, name: str = "rdma0") -> dict:
        return next(port for port in self.load()["ports"] if port["interface"] == name)

    def change(self, interface: str, **values: object) -> None:
        state = self.load()
        next(port for port in state["ports"] if port["interface"] == interface).update(values)
        self.save(state)

    def restart_firmware(self) -> None:
        state = self.load()
        for port in state["ports"]:
            port["adaptive_now"], port["forced"] = port["adaptive_next"], 0
        self.save(state)

    def changing_calls(self) -> list[list[str]]:
        """Return the calls that were to change something, and forget them all."""
        state = self.load()
        calls = [call for call in state["calls"] if not reads(call)]
        self.save({**state, "calls": []})
        return calls

    def sysfs(self, path: str) -> Path:
        return self.folder / "sys/class" / path

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        file = self.folder / "nic.sh"
        file.write_text(script)
        environment = {
            "PATH": str(self.folder / "bin"),
            "FOURLANE_SYSFS": str(self.folder / "sys"),
            "FAKE_NIC_STATE": str(self.folder / "state"),
        }
        return subprocess.run(
            ["sh", str(file), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )


def reads(call: list[str]) -> bool:
    tool, *rest = call
    return {
        "mlnx_qos": rest[2:] == ["-a"],
        "dcb": "show" in rest,
        "cma_roce_tos": "-t" not in rest,
        "mlxconfig": "query" in rest,
        "mlxreg": "--get" in rest,
    }[tool]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server.equip(tmp_path)


@pytest.fixture
def script(plan: LanePlan, cluster: Cluster) -> str:
    return render_nic(plan, cluster)["hpn.sh"]


def configure(server: Server, script: str) -> None:
    """Bring a server to the plan: apply, restart its firmware, apply."""
    server.run(script, "--apply")
    server.restart_firmware()
    done = server.run(script, "--apply")
    assert done.returncode == 0, done.stdout + done.stderr
    server.changing_calls()


@pytest.fixture(scope="module")
def configured_once(tmp_path_factory: pytest.TempPathFactory) -> Server:
    cluster = with_ports(load_cluster("h800-ft"))
    server = Server.equip(tmp_path_factory.mktemp("server"))
    configure(server, render_nic(default_plan(cluster), cluster)["hpn.sh"])
    return server


@pytest.fixture
def configured(configured_once: Server, tmp_path: Path) -> Server:
    """Return a copy of a server that is as planned."""
    shutil.copytree(configured_once.folder, tmp_path / "server", symlinks=True)
    return Server(tmp_path / "server")


@pytest.mark.parametrize("arguments", [(), ("--apply", "--check"), ("apply",)])
def test_without_being_told_nothing_is_run_and_the_script_says_what_it_would_do(
    server: Server, script: str, arguments: tuple[str, ...]
) -> None:
    done = server.run(script, *arguments)
    assert done.returncode == 2
    assert "priority 5  expert      DSCP 46  70 %" in done.stdout + done.stderr
    assert "usage:" in done.stdout + done.stderr
    assert server.load()["calls"] == []


@pytest.mark.parametrize("tools", [TOOLS, TOOLS[1:]], ids=["mlnx_qos", "dcb"])
def test_apply_sets_what_the_plan_says_and_a_second_time_changes_nothing(
    tmp_path: Path, script: str, tools: tuple[str, ...]
) -> None:
    server = Server.equip(tmp_path, tools)
    configure(server, script)
    for name in PORTS:
        port = server.port(name)
        assert (port["dcbx"], port["trust"], port["cable"]) == ("host", "dscp", 5)
        assert [port["dscp"][dscp] for dscp in (46, 26, 48, 8, 0, 18, 63)] == [5, 3, 6, 1, 0, 0, 0]
        assert port["pfc"] == [0, 0, 0, 0, 0, 1, 0, 0]
        assert port["prio_tc"] == [0, 1, 0, 3, 0, 5, 6, 0]
        assert port["tsa"] == ["ets"] * 6 + ["strict", "ets"]
        assert port["bw"] == [5, 5, 0, 20, 0, 70, 0, 0]
        assert port["rate"] == [0, 0, 0, 0, 0, 0, 20, 0]
        assert port["buffer"] == [0, 0, 0, 0, 0, 1, 0, 0]
        assert (port["adaptive_next"], port["forced"]) == (1, 1)
        enable = [server.sysfs(f"net/{name}/ecn/roce_rp/enable/{priority}").read_text() for priority in range(8)]
        assert enable == ["1\n"] * 8
    before = server.load()["ports"]
    again = server.run(script, "--apply")
    assert (again.returncode, again.stdout) == (0, "hpn: as planned\n")
    assert server.changing_calls() == []
    assert server.load()["ports"] == before
    checked = server.run(script, "--check")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "hpn: as planned\n", "")


CHANGES = {
    "dscp": ([5] * 46 + [0] + [0] * 17, "priority of DSCP 46: found 0, wanted 5"),
    "pfc": ([0, 0, 0, 1, 0, 1, 0, 0], "PFC of priority 3: found 1, wanted 0"),
    "cable": (7, "cable, metres: found 7, wanted 5"),
    "bw": ([5, 5, 0, 60, 0, 30, 0, 0], "percent of traffic class 5: found 30, wanted 70"),
    "tsa": (["ets"] * 8, "scheduler of traffic class 6: found ets, wanted strict"),
    "prio_tc": ([0] * 8, "traffic class of priority 5: found 0, wanted 5"),
    "rate": ([0] * 8, "Gbit/s at most (0: no limit) of traffic class 6: found 0, wanted 20"),
    "dcbx": ("firmware", "DCBX, run by: found firmware, wanted host"),
    "buffer": ([0] * 8, "receive buffer of priority 5: found 0, that of priorities without PFC; wanted one of its own"),
    "cm_tos": (106, "ToS of RDMA-CM connections that set none: found 106, wanted 0"),
    "forced": (0, "adaptive_routing_forced_en: found 0, wanted 1"),
    "adaptive_next": (0, "ROCE_ADAPTIVE_ROUTING_EN at the next start of the firmware: found 0, wanted 1"),
}


@pytest.mark.parametrize("fields", [["dscp"], ["trust"], [*CHANGES]], ids=["one", "trust", "all"])
def test_check_shows_what_was_changed_and_apply_mends_it(configured: Server, script: str, fields: list[str]) -> None:
    expected = {**CHANGES, "trust": ("pcp", "priority taken from: found pcp, wanted dscp")}
    configured.change("rdma1", **{field: expected[field][0] for field in fields})
    checked = configured.run(script, "--check")
    assert checked.returncode == 1
    lines = checked.stdout.splitlines()
    for field in fields:
        assert f"rdma1=mlx5_1: {expected[field][1]}" in lines, checked.stdout
    assert not any(line.startswith("rdma0") for line in lines)
    assert configured.changing_calls() == []
    mended = configured.run(script, "--apply")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert mended.stdout.endswith("reading back\nhpn: as planned\n")


def test_a_receive_buffer_without_room_is_reported_and_left_to_the_driver(configured: Server, script: str) -> None:
    configured.change("rdma1", buffer_size=[9, 0, 0, 0, 0, 0, 0, 0])
    done = configured.run(script, "--apply")
    assert done.returncode == 1
    assert "receive buffer of priority 5: found 1, of 0 bytes; wanted room for a pause" in done.stdout
    assert configured.changing_calls() == []


def test_receive_buffers_may_be_numbered_otherwise_by_the_driver(configured: Server, script: str) -> None:
    configured.change("rdma1", buffer=[0, 0, 0, 0, 0, 2, 0, 0], buffer_size=[9, 0, 9, 0, 0, 0, 0, 0])
    assert configured.run(script, "--check").returncode == 0


def test_a_network_of_strict_classes_alone_has_no_weighted_traffic_class(plan: LanePlan, cluster: Cluster) -> None:
    strict = {kind: replace(lane, scheduler="strict", weight=None) for kind, lane in plan.classes.items()}
    text = render_nic(replace(plan, classes=strict), cluster)["hpn.sh"]
    assert "TSA_OF_TC='strict strict strict strict strict strict strict strict'" in text


def test_dry_run_prints_the_commands_and_runs_none(server: Server, script: str) -> None:
    done = server.run(script, "--dry-run")
    assert done.returncode == 1
    assert server.changing_calls() == []
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "would run: mlnx_qos -i rdma0 --trust dscp" in lines
    assert "would run: mlnx_qos -i rdma0 --pfc 0,0,0,0,0,1,0,0 --cable_len 5" in lines
    tsa = "ets,ets,ets,ets,ets,ets,strict,ets"
    assert f"would run: mlnx_qos -i rdma0 --prio_tc 0,1,0,3,0,5,6,0 --tsa {tsa} --tcbw 5,5,0,20,0,70,0,0" in lines
    assert "would run: mlxconfig -d 0000:1a:00.0 -y set ROCE_ADAPTIVE_ROUTING_EN=1" in lines
    assert f"would run: echo 1 > {server.sysfs('net/rdma1/ecn/roce_np/enable/5')}" in lines


def test_a_tos_forced_on_all_queue_pairs_is_reported_and_taken_away(configured: Server, script: str) -> None:
    server = configured
    file = server.sysfs("infiniband/mlx5_1/tc/1/traffic_class")
    file.write_text("Global tclass=106\n")
    checked = server.run(script, "--check")
    assert checked.returncode == 1
    assert f"ToS forced on all kernel queue pairs ({file}): found Global tclass=106, wanted none" in checked.stdout
    assert server.run(script, "--apply").returncode == 0
    assert file.read_text() == "-1\n"


def test_adaptive_routing_waits_for_the_firmware_to_start_anew_and_says_so(configured: Server, script: str) -> None:
    configured.change("rdma0", adaptive_next=0, adaptive_now=0, forced=0)
    first = configured.run(script, "--apply")
    assert first.returncode == 1
    assert "cannot be set before the firmware has started anew" in first.stdout
    assert "mlxfwreset -d 0000:1a:00.0 reset" in first.stdout
    assert (configured.port()["adaptive_next"], configured.port()["forced"]) == (1, 0)


@pytest.mark.parametrize("absent", ["cma_roce_tos", "mlxconfig", "mlxreg"])
def test_a_missing_tool_is_named_before_anything_is_read(tmp_path: Path, script: str, absent: str) -> None:
    server = Server.equip(tmp_path, tuple(tool for tool in TOOLS if tool != absent))
    done = server.run(script, "--apply")
    assert done.returncode == 3
    assert f"not found: {absent}" in done.stderr
    assert server.load()["calls"] == []


def test_without_mlnx_qos_and_dcb_both_are_named(tmp_path: Path, script: str) -> None:
    done = Server.equip(tmp_path, TOOLS[2:]).run(script, "--check")
    assert done.returncode == 3
    assert "mlnx_qos (mlnx-tools) or dcb (iproute2)" in done.stderr


def test_a_driver_without_the_ecn_switches_and_an_absent_interface_are_named(configured: Server, script: str) -> None:
    server = configured
    shutil.rmtree(server.sysfs("net/rdma0/ecn"))
    shutil.rmtree(server.sysfs("net/rdma1"))
    done = server.run(script, "--check")
    assert done.returncode == 3
    assert f"{server.sysfs('net/rdma0/ecn')} (it comes with the MLNX_OFED or DOCA-OFED driver)" in done.stderr
    assert "there is no interface rdma1" in done.stderr
    assert "as planned" not in done.stdout


def test_a_command_that_fails_is_named_and_the_script_fails(server: Server, script: str) -> None:
    wrong = script.replace("WEIGHT_OF_TC='5 5 0 20 0 70 0 0'", "WEIGHT_OF_TC='5 5 0 20 0 71 0 0'")
    done = server.run(wrong, "--apply")
    assert done.returncode == 1
    assert "failed: mlnx_qos -i rdma0 --prio_tc" in done.stderr
    assert "wanted 71" in done.stdout


def test_a_nic_that_can_switches_congestion_control_off_for_expert_traffic_alone(
    server: Server, plan: LanePlan, cluster: Cluster
) -> None:
    older = replace(cluster, hpn=replace(cluster.hpn, nic="connectx-6", rate=cluster.hpn.rate.parse("200Gbps")))
    configure(server, render_nic(plan, older)["hpn.sh"])
    for side in ("roce_np", "roce_rp"):
        enable = [server.sysfs(f"net/rdma0/ecn/{side}/enable/{priority}").read_text() for priority in range(8)]
        assert [line.strip() for line in enable] == list("01010000")  # bulk and collective are marked


def test_two_lossless_classes_and_a_capped_one_are_set(tmp_path: Path) -> None:
    cluster = with_ports(load_cluster("one-network"))
    plan = default_plan(cluster)
    collective = replace(plan.classes[TrafficClass.COLLECTIVE], lossless=True)
    plan = replace(plan, classes={**plan.classes, TrafficClass.COLLECTIVE: collective})
    server = Server.equip(tmp_path, TOOLS[1:])
    server.run(render_nic(plan, cluster)["hpn.sh"], "--apply")
    port = server.port("rdma1")
    assert port["pfc"] == [0, 0, 0, 1, 0, 1, 0, 0]
    assert port["rate"] == [0, 0, 200, 0, 0, 0, 20, 0]
    assert port["bw"] == [5, 5, 10, 20, 0, 60, 0, 0]


def test_a_nic_with_one_switch_for_all_priorities_is_not_said_to_have_more(script: str) -> None:
    assert "CC_OF_PRIORITY='1 1 1 1 1 1 1 1'" in script
    assert "one switch for all priorities" in script
    assert "known issue\n# 4394475" in script or "known issue 4394475" in script


def test_without_marked_classes_congestion_control_is_off_for_all(plan: LanePlan, cluster: Cluster) -> None:
    classes = {kind: replace(lane, ecn="off") for kind, lane in plan.classes.items()}
    assert "CC_OF_PRIORITY='0 0 0 0 0 0 0 0'" in render_nic(replace(plan, classes=classes), cluster)["hpn.sh"]


@pytest.mark.parametrize(
    ("nic", "fabric", "said"),
    [
        ("ethernet", "ethernet", "data centre bridging"),
        ("erdma", "erdma", "elastic RDMA has neither priorities nor pauses"),
        ("connectx-7", "infiniband", "subnet manager"),
    ],
)
def test_a_network_that_cannot_be_set_says_so_and_nothing_else(
    plan: LanePlan, cluster: Cluster, nic: str, fabric: str, said: str
) -> None:
    changed = replace(cluster, hpn=replace(cluster.hpn, nic=nic, fabric=fabric))
    script = render_nic(plan, changed)["hpn.sh"]
    for mode, code in (("--check", 0), ("--apply", 0), ("", 2)):
        done = subprocess.run(
            ["sh", "-s", "--", *filter(None, [mode])],
            input=script,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, said in done.stdout) == (code, True)
    assert "mlnx_qos" not in script
    assert "dcb " not in script


def test_every_code_point_has_a_priority_and_strangers_get_the_default_classs(plan: LanePlan, cluster: Cluster) -> None:
    line = next(
        line for line in render_nic(plan, cluster)["dcn.sh"].splitlines() if line.startswith("PRIORITY_OF_DSCP")
    )
    priorities = [int(word) for word in line.split("'")[1].split()]
    assert len(priorities) == len(DSCPS)
    assert priorities[plan.classes[TrafficClass.KV].dscp] == 2
    assert priorities[plan.classes[TrafficClass.EXPERT].dscp] == 0  # expert traffic is not on this network


def test_names_cannot_leave_their_comment(plan: LanePlan, cluster: Cluster) -> None:
    script = render_nic(replace(plan, name="a\nrm -rf /"), replace(cluster, name="b\n'; reboot"))["hpn.sh"]
    assert "\nrm" not in script
    assert "\n'; reboot" not in script


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_scripts_are_the_golden_ones(name: str) -> None:
    assert rendered(name, "nic") == kept(name, "nic")


@given(case=sound_cases())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_sound_plan_gives_a_script_a_shell_can_read(case: tuple[Cluster, LanePlan]) -> None:
    cluster, plan = case
    files = render_nic(plan, cluster)
    assert set(files) == {f"{name}.sh" for name in cluster.networks()}
    for text in files.values():
        subprocess.run(["sh", "-n"], input=text, text=True, timeout=30, check=True)
        settings_of = dict(line.split("=", 1) for line in text.splitlines() if line.startswith(("WEIGHT", "PFC")))
        if settings_of:
            assert sum(int(word) for word in settings_of["WEIGHT_OF_TC"].strip("'").split()) == 100


@pytest.mark.parametrize("name", CLUSTERS)
def test_shells_and_shellcheck_find_no_fault(name: str, tmp_path: Path) -> None:
    cluster = load_cluster(name)
    files = []
    for path, text in render_nic(default_plan(cluster), cluster).items():
        files.append(tmp_path / path)
        files[-1].write_text(text)
        subprocess.run(["sh", "-n", str(files[-1])], timeout=30, check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here")
    done = subprocess.run(
        ["shellcheck", *map(str, files)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.stdout == ""
