"""Every check refuses what it is there to refuse, names the place, and lets the rest pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from fourlane.lanes.check import CHECKS, check_plan, errors_of
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import parse_plan
from fourlane.spec.cluster import Cluster
from fourlane.spec.load import load_cluster, parse, render
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.lanes.check import Finding

# (check, severity, cluster, changes of the plan, changes of the cluster, what is said)
LOSSLESS_KV = ("classes.kv.lossless=true", "classes.kv.ecn.kmin=1MB")
SINS = [
    ("networks", "error", "one-network", ['classes.kv.network="dcn"'], [], "cluster one-network has the hpn only"),
    ("second-network", "error", "h800-ft", [], ['dcn.interfaces=["rdma7", "dcn1"]'], "rdma7 is on the hpn too"),
    ("second-network", "error", "h800-ft", [], ['dcn.devices=["mlx5_0", "mlx5_9"]'], "mlx5_0 is on the hpn too"),
    ("fabric", "warning", "one-network", [], ['hpn.fabric="infiniband"'], "InfiniBand has service levels"),
    ("carriers", "warning", "lab", ['classes.expert.carriers=["deepep-v2"]'], [], 'the fabric of hpn is "ethernet"'),
    ("ports", "error", "h800-ft", [], ["hpn.leaf.down_ports=128"], "take 768 serial lanes, but sn5600 has 512"),
    (
        "limits",
        "error",
        "h800-ft",
        ["classes.expert.queue=9"],
        [],
        "queue 9, but a port of hpn-leaf (sn5600) has queues 0 to 7",
    ),
    (
        "limits",
        "error",
        "h800-ft",
        ["classes.expert.alpha=256.0"],
        [],
        "256 is 2^8, but hpn-leaf (sn5600) has 2^-7 to 2^7",
    ),
    ("dscp-mapped", "error", "h800-ft", ['classes.default.accept=["1-7"]'], [], "no class takes DSCP 9-17, 19-25"),
    ("dscp-mapped", "error", "h800-ft", ['classes.default.network="hpn"'], [], "no class takes DSCP 0-7"),
    ("dscp-once", "error", "h800-ft", ['classes.kv.accept=["46-47"]'], [], "DSCP 46 is claimed by expert already"),
    ("dscp-once", "error", "h800-ft", ["classes.kv.dscp=46"], [], "DSCP 46 is claimed by expert already"),
    (
        "dscp-priority",
        "warning",
        "h800-ft",
        ["classes.kv.priority=7"],
        [],
        "an unconfigured NIC gives DSCP 18 priority 2",
    ),
    (
        "queue-closure",
        "error",
        "one-network",
        ["classes.kv.dscp=46"],
        [],
        "leads to traffic class 5 and queue 5, not 2",
    ),
    (
        "pfc-group",
        "error",
        "h800-ft",
        ["classes.expert.priority=0", "classes.default.priority=5"],
        [],
        "lossless with priority 0",
    ),
    (
        "pfc-closure",
        "error",
        "h800-ft",
        ["classes.expert.priority=0", "classes.default.priority=5"],
        [],
        "shares priority group 0 with a lossless class",
    ),
    ("pfc-possible", "error", "lab", ["classes.expert.lossless=true"], [], 'the fabric is "ethernet"'),
    ("pfc-possible", "error", "h800-ft", [], ['hpn.nic="ethernet"'], "NICs of model ethernet cannot pause"),
    (
        "pfc-possible",
        "error",
        "h800-ft",
        ["classes.expert.lossless=true"],
        ['hpn.leaf.switch="linux"', 'hpn.rate="1Gbps"', 'hpn.leaf.up_rate="10Gbps"'],
        "hpn-leaf (linux) cannot pause",
    ),
    ("watchdog", "error", "h800-ft", ["pfc.watchdog=false"], [], "off, but expert may pause"),
    ("watchdog-timers", "error", "h800-ft", ['pfc.poll="50ms"'], [], "50ms, but switches take 100ms to 1s"),
    ("watchdog-timers", "error", "h800-ft", ['pfc.detection="6s"'], [], "6s, but switches take 100ms to 5s"),
    ("watchdog-timers", "error", "h800-ft", ['pfc.poll="300ms"'], [], "200ms is shorter than pfc.poll = 300ms"),
    ("watchdog-timers", "error", "h800-ft", ['pfc.restoration="400500us"'], [], "no whole number of ms"),
    ("watchdog-drop", "note", "h800-ft", [], [], "for up to 100ms + 200ms + 400ms = 700ms"),
    (
        "weights",
        "error",
        "h800-ft",
        ["classes.expert.weight=75"],
        [],
        "expert 75 + collective 20 + bulk 5 + default 5 = 105, not 100",
    ),
    ("weights", "error", "h800-ft", ["classes.kv.weight=80"], [], "kv 80 + bulk 5 + default 5 = 90, not 100"),
    ("strict-cap", "error", "h800-ft", ["classes.control.cap="], [], "strict without a cap"),
    ("strict-cap", "warning", "h800-ft", ["classes.control.cap=30"], [], "strict up to 30 %"),
    ("strict-sum", "warning", "h800-ft", ["classes.control.cap=60"], [], "leave 40 % to all others"),
    ("strict-sum", "error", "h800-ft", ["classes.control.cap=100"], [], "leave 0 % to all others"),
    ("cap-weight", "error", "h800-ft", ["classes.expert.cap=60"], [], "60 % of the link, below the 70 %"),
    ("kv-shared", "warning", "one-network", ["classes.kv.cap="], [], "no cap"),
    ("kv-shared", "warning", "one-network", ['classes.kv.ecn="off"'], [], "ECN off: its queue grows"),
    ("kv-shared", "warning", "one-network", ["classes.kv.lossless=true"], [], "its pauses stop links"),
    ("kv-shared", "warning", "one-network", ["classes.kv.weight=60", "classes.kv.cap=60"], [], "weight 60, not below"),
    (
        "headroom",
        "error",
        "h800-ft",
        ["classes.kv.lossless=true"],
        [],
        "no headroom is published for 800Gbps ports of arista-7060x6",
    ),
    ("buffer", "error", "h800-ft", ['pfc.headroom="5MB"'], [], "the buffer does not hold the plan: 64 x"),
    ("buffer", "error", "h800-ft", ['classes.bulk.reserved="2MB"'], [], "of 158.2 MB"),
    ("buffer", "warning", "h800-ft", ['pfc.headroom="1300kB"'], [], "are left to share"),
    ("lossless-cost", "note", "h800-ft", ["classes.collective.lossless=true"], [], "2 lossless classes take"),
    (
        "shared-headroom",
        "error",
        "one-network",
        ["classes.collective.lossless=true", "pfc.shared_headroom=true"],
        [],
        "serves one lossless class, not 2",
    ),
    ("ecn-thresholds", "error", "h800-ft", ["classes.bulk.alpha=0.0078125"], [], "it drops before it ever marks"),
    (
        "ecn-thresholds",
        "warning",
        "h800-ft",
        ['classes.bulk.ecn.kmax="50MB"'],
        [],
        "it drops before it marks every packet",
    ),
    (
        "ecn-percent",
        "error",
        "h800-ft",
        ["classes.bulk.ecn.pmax=0.125"],
        [],
        "0.125 is no whole percent, and eos, sonic take no other",
    ),
    (
        "ecn-off",
        "error",
        "h800-ft",
        ["classes.expert.lossless=false"],
        [],
        "neither lossless with a watchdog nor trimmed",
    ),
    ("ecn-off", "error", "h800-ft", ['classes.expert.routing="ecmp"'], [], 'routing is not "adaptive"'),
    ("ecn-off", "error", "h800-ft", ['classes.control.network="dcn"'], [], "does not travel here"),
    ("ecn-off", "error", "h800-ft", ['classes.kv.ecn="off"'], [], "classes.kv.ecn"),
    ("ecn-bits", "error", "h800-ft", ["classes.expert.ect=true"], [], "its ToS byte 186 (0xBA) says ECN-capable"),
    ("ecn-capable", "warning", "h800-ft", ["classes.collective.ect=false"], [], "switches drop what they may not mark"),
    ("ecn-nic", "note", "h800-ft", [], [], "connectx-7 configures congestion control for all priorities alike"),
    ("adaptive-routing", "warning", "h800-ft", [], [], "hpn-leaf runs SONiC"),
    ("adaptive-routing", "error", "h800-ft", [], ['hpn.nic="ethernet"'], "ethernet does not put packets back in order"),
    (
        "flag-after-data",
        "warning",
        "h800-ft",
        ['classes.expert.carriers=["deepep-v1"]'],
        [],
        "deepep-v1 writes a flag after its data",
    ),
    ("trimming", "error", "h800-ft", ["classes.kv.trim=true"], [], "dcn-leaf (arista-7060x6) cannot trim packets"),
    (
        "trimming",
        "error",
        "h800-ft",
        ["classes.bulk.trim=true", 'trimming.to="bulk"'],
        [],
        "whose queue is the full one",
    ),
    (
        "trimming",
        "error",
        "h800-ft",
        ["classes.bulk.trim=true", 'trimming.to="kv"'],
        [],
        "kv, which does not travel on hpn",
    ),
]


def findings(name: str, plan_changes: list[str], cluster_changes: list[str]) -> list[Finding]:
    """Check the default plan of a cluster of the catalog, both changed."""
    cluster = load_cluster(name)
    plan = parse_plan(render(default_plan(cluster)), source="plan", overrides=plan_changes)
    return check_plan(plan, parse(render(cluster), Cluster, cluster_changes, source="cluster"))


@pytest.mark.parametrize(("check", "severity", "cluster", "plan_changes", "cluster_changes", "said"), SINS)
def test_what_makes_no_sense_is_found_and_named(
    check: str,
    severity: str,
    cluster: str,
    plan_changes: list[str],
    cluster_changes: list[str],
    said: str,
) -> None:
    found = [finding for finding in findings(cluster, plan_changes, cluster_changes) if finding.check == check]
    assert any(finding.severity == severity and said in f"{finding.place}: {finding.found}" for finding in found), found
    assert all(finding.mend for finding in found)


def test_every_check_can_find_something() -> None:
    assert {sin[0] for sin in SINS} | {"form"} == set(CHECKS)


@pytest.mark.parametrize("name", ["h800-ft", "lab", "one-network"])
def test_the_default_plans_of_the_catalog_pass(name: str) -> None:
    assert errors_of(findings(name, [], [])) == []


def test_an_error_of_a_plan_that_was_not_read_from_a_file_is_a_finding_of_form() -> None:
    cluster = load_cluster("h800-ft")
    plan = default_plan(cluster)
    twice = replace(plan.classes[TrafficClass.KV], queue=5)
    (finding,) = check_plan(replace(plan, classes={**plan.classes, TrafficClass.KV: twice}), cluster)
    assert (finding.check, finding.severity) == ("form", "error")
    assert "queue 5 is that of expert already" in str(finding)


def test_ecn_off_is_fine_for_tcp_and_with_trimming() -> None:
    def ecn_off(name: str, changes: list[str]) -> bool:
        return any(finding.check == "ecn-off" for finding in findings(name, changes, []))

    assert not ecn_off("lab", ["classes.expert.routing=ecmp"])
    assert not ecn_off("one-network", ["classes.expert.lossless=false", "classes.expert.trim=true"])
    assert ecn_off("one-network", ["classes.expert.lossless=false"])
