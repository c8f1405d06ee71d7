"""Every trap of the libraries' environment variables, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.environment.lint import lint_environment
from fourlane.lanes.environment.variables import wanted_variables
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.lanes.environment.finding import Finding
    from fourlane.lanes.environment.lint import Report, Row
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

Case = tuple["LanePlan", "Cluster"]


def case_of(cluster: Cluster) -> Case:
    return default_plan(cluster), cluster


@pytest.fixture
def roce() -> Case:
    """Two RoCE networks: expert over DeepEP V2, collectives over NCCL, KV over UCX and Mooncake on the DCN."""
    return case_of(load_cluster("h800-ft"))


@pytest.fixture
def infiniband(roce: Case) -> Case:
    plan, cluster = roce
    return plan, replace(cluster, hpn=replace(cluster.hpn, fabric="infiniband"))


@pytest.fixture
def sockets() -> Case:
    return case_of(load_cluster("lab"))


def carrying(case: Case, **carriers: tuple[str, ...]) -> Case:
    """Return a case whose classes travel on other libraries."""
    plan, cluster = case
    changed = {
        kind: replace(lane, carriers=carriers.get(kind.value, lane.carriers)) for kind, lane in plan.classes.items()
    }
    return replace(plan, classes=changed), cluster


def as_planned(case: Case) -> dict[str, str]:
    parts = wanted_variables(*case, "decode").values()
    return {variable.name: variable.value for part in parts for variable in part.variables}


def changed(case: Case, *without: str, **values: str) -> Report:
    env = {name: value for name, value in as_planned(case).items() if name not in without}
    return lint_environment({**env, **values}, case)


def only(report: Report, severity: str = "error") -> Finding:
    found = [finding for finding in report.findings if finding.severity == severity]
    assert len(found) == 1, [str(finding) for finding in report.findings]
    return found[0]


def told(report: Report) -> dict[str, str]:
    return {finding.place: f"{finding.severity}: {finding.does}" for finding in report.findings}


def row(report: Report, stream: str) -> Row:
    return next(row for row in report.rows if row.stream == stream)


@pytest.mark.parametrize("name", ["h800-ft", "lab", "one-network"])
def test_what_the_plan_wants_contradicts_nothing(name: str) -> None:
    case = case_of(load_cluster(name))
    report = lint_environment(as_planned(case), case)
    assert not report.contradicts
    assert [finding for finding in report.findings if finding.severity == "warning"] == []


def test_a_dscp_where_a_tos_byte_belongs_is_another_dscp_and_ect(roce: Case) -> None:
    report = changed(roce, NCCL_IB_TC="46")
    finding = only(report)
    assert finding.place == "NCCL_IB_TC"
    assert "ToS byte 46 is DSCP 11 with ECN bits 10: it lands in the class default, not in collective" in finding.does
    assert "46 is the DSCP of expert" in finding.does
    assert finding.mend == "export NCCL_IB_TC=106"
    nccl = row(report, "NCCL")
    assert (nccl.tos, nccl.dscp, nccl.ecn, nccl.lands_in, nccl.wanted) == (46, 11, 2, "default", "collective")


def test_without_a_plan_a_value_that_looks_like_a_dscp_is_warned_of() -> None:
    finding = only(lint_environment({"NCCL_IB_TC": "46"}), "warning")
    assert "it looks like the DSCP 46 itself" in finding.does
    assert finding.mend == "if DSCP 46 is meant, export NCCL_IB_TC=184 (or 186 with ECT(0))"


@pytest.mark.parametrize(("value", "ecn"), [("105", "ECN bits 01, ECT(1)"), ("107", "ECN bits 11, CE")])
def test_an_odd_tos_byte_marks_congestion_by_itself(roce: Case, value: str, ecn: str) -> None:
    finding = only(changed(roce, NCCL_IB_TC=value))
    assert ecn in finding.does
    assert finding.mend == "export NCCL_IB_TC=106"
    assert ecn in only(lint_environment({"NCCL_IB_TC": value})).does


def test_ect_on_a_class_with_ecn_off_and_none_on_a_marked_one_are_errors(roce: Case) -> None:
    finding = only(changed(roce, NCCL_GIN_IB_TC="186"))
    assert "ToS byte 186 has DSCP 46 as planned, but it is declared ECN-capable" in finding.does
    finding = only(changed(roce, NCCL_IB_TC="104"))
    assert "not declared ECN-capable" in finding.does


def test_nccl_ib_tc_beats_what_communicators_ask_for(roce: Case) -> None:
    assert "beats the trafficClass of every communicator" in told(lint_environment({"NCCL_IB_TC": "106"}))["NCCL_IB_TC"]
    several = carrying(roce, expert=("nccl",))
    assert "NCCL_IB_TC" not in as_planned(several)
    finding = only(changed(several, NCCL_IB_TC="106"))
    assert "for all of expert, collective: it beats" in finding.does
    assert finding.mend == "unset NCCL_IB_TC, and give each communicator its trafficClass: expert 184, collective 106"
    assert told(changed(several))["NCCL_IB_TC"].startswith("note: unset, so that communicators")


def test_nccl_without_a_class_sends_unmarked_and_its_traffic_class_becomes_the_service_level(roce: Case) -> None:
    report = changed(roce, "NCCL_IB_TC", "NCCL_IB_SL")
    assert "error: NCCL: ToS byte 0 is DSCP 0" in told(report)["NCCL_IB_TC"]
    assert "a communicator's trafficClass becomes its service level" in told(report)["NCCL_IB_SL"]
    assert row(report, "NCCL").decided_by == "default"


def test_clear_to_send_goes_with_the_data_unless_it_is_told_apart(roce: Case) -> None:
    finding = only(changed(roce, "NCCL_IB_FIFO_TC"))
    assert finding.place == "NCCL_IB_FIFO_TC"
    assert "lands in the class collective, not in control" in finding.does
    assert finding.mend == "export NCCL_IB_FIFO_TC=192"


def test_without_a_value_of_its_own_deepep_goes_with_nccl(roce: Case) -> None:
    report = changed(roce, "NCCL_GIN_IB_TC")
    finding = only(report)
    assert "NCCL GIN: ToS byte 106 is DSCP 26" in finding.does
    assert "NCCL's own value holds for DeepEP too" in finding.does
    assert finding.mend == "export NCCL_GIN_IB_TC=184"
    assert row(report, "NCCL GIN").decided_by == "NCCL_IB_TC"
    assert "from NCCL 2.30.7 on" in f"from{told(changed(roce))['NCCL_GIN_IB_TC'].partition('from')[2]}"


def test_deepeps_service_level_is_a_tos_byte_on_roce(roce: Case) -> None:
    report = changed(roce, "NCCL_GIN_IB_TC", "NCCL_IB_TC", EP_OVERRIDE_RDMA_SL="5")
    said = [finding for finding in report.findings if finding.place == "EP_OVERRIDE_RDMA_SL"]
    assert any("ToS byte 5 is DSCP 1 with ECN bits 01" in finding.does for finding in said)
    assert all(finding.mend.endswith("export NCCL_GIN_IB_TC=184") for finding in said)
    alone = only(lint_environment({"EP_OVERRIDE_RDMA_SL": "4"}), "warning")
    assert "hands 4 to NCCL GIN as the ToS byte, DSCP 1 with ECN bits 00" in alone.does


def test_deepeps_service_level_is_beaten_by_either_variable_of_nccl(roce: Case) -> None:
    assert "NCCL_GIN_IB_TC beats it" in told(changed(roce, EP_OVERRIDE_RDMA_SL="5"))["EP_OVERRIDE_RDMA_SL"]
    report = lint_environment({"EP_OVERRIDE_RDMA_SL": "5", "NCCL_IB_TC": "184"})
    assert told(report)["EP_OVERRIDE_RDMA_SL"] == "note: does nothing: NCCL_IB_TC beats it"


def test_deepeps_default_marks_its_packets_as_congested(roce: Case) -> None:
    report = changed(roce, "NCCL_GIN_IB_TC", "NCCL_IB_TC")
    gin = row(report, "NCCL GIN")
    assert (gin.tos, gin.dscp, gin.ecn, gin.decided_by) == (3, 0, 3, "default")


def test_on_infiniband_service_levels_count_and_tos_bytes_do_nothing(infiniband: Case) -> None:
    assert not changed(infiniband).contradicts
    report = changed(infiniband, NCCL_IB_TC="106", EP_OVERRIDE_RDMA_SL="3")
    assert told(report)["NCCL_IB_TC"].startswith("warning: does nothing on InfiniBand")
    finding = only(report)
    assert (finding.place, finding.mend) == ("EP_OVERRIDE_RDMA_SL", "export EP_OVERRIDE_RDMA_SL=5")
    assert "service level 3, not that of expert" in finding.does
    assert row(report, "NCCL GIN").lands_in == "collective"


def test_on_infiniband_nccls_service_level_beats_deepeps(infiniband: Case) -> None:
    finding = only(changed(infiniband, NCCL_IB_SL="3"))
    assert (finding.place, finding.mend) == ("NCCL_IB_SL", "unset NCCL_IB_SL")
    assert "it beats DeepEP's own service level" in finding.does


def test_nvshmems_traffic_class_breaks_it_on_infiniband(infiniband: Case) -> None:
    case = carrying(infiniband, expert=("deepep-v1",))
    assert not changed(case).contradicts
    finding = only(changed(case, NVSHMEM_IB_TRAFFIC_CLASS="184"))
    assert (finding.place, finding.mend) == ("NVSHMEM_IB_TRAFFIC_CLASS", "unset NVSHMEM_IB_TRAFFIC_CLASS")
    assert "IBGDA fails to start" in finding.does


def test_nvshmems_list_of_devices_does_nothing_alone(roce: Case) -> None:
    finding = only(lint_environment({"NVSHMEM_HCA_LIST": "mlx5_0:1", "NVSHMEM_IB_GID_INDEX": "3"}))
    assert finding.place == "NVSHMEM_HCA_LIST"
    assert finding.mend == "export NVSHMEM_ENABLE_NIC_PE_MAPPING=1"
    case = carrying(roce, expert=("deepep-v1",))
    assert not changed(case).contradicts
    assert changed(case, NVSHMEM_ENABLE_NIC_PE_MAPPING="0").contradicts
    assert changed(case, NVSHMEM_ENABLE_NIC_PE_MAPPING="true").contradicts is False


def test_nvshmem_leaves_ecn_bits_to_the_nic_and_goes_unmarked_by_default(roce: Case) -> None:
    case = carrying(roce, expert=("deepep-v1",))
    assert row(changed(case, NVSHMEM_IB_TRAFFIC_CLASS="186"), "NVSHMEM").ecn is None
    assert not changed(case, NVSHMEM_IB_TRAFFIC_CLASS="186").contradicts
    finding = only(changed(case, "NVSHMEM_IB_TRAFFIC_CLASS"))
    assert "ToS byte 0 is DSCP 0" in finding.does
    assert "older versions take index 0" in told(changed(case, "NVSHMEM_IB_GID_INDEX"))["NVSHMEM_IB_GID_INDEX"]


def test_nvshmem_does_not_run_on_elastic_rdma(roce: Case) -> None:
    plan, cluster = carrying(roce, expert=("deepep-v1",))
    elastic = replace(cluster, hpn=replace(cluster.hpn, fabric="erdma", nic="erdma"))
    report = lint_environment({"NVSHMEM_IB_TRAFFIC_CLASS": "184"}, (plan, elastic))
    assert "is on erdma: DeepEP V1 does not run" in told(report)["NVSHMEM_IB_TRAFFIC_CLASS"]
    assert report.contradicts


def test_adaptive_routing_under_deepep_v1_is_told(roce: Case) -> None:
    report = changed(carrying(roce, expert=("deepep-v1",)))
    assert "took packets to arrive in order" in told(report)["NVSHMEM_IB_TRAFFIC_CLASS"]


@pytest.mark.parametrize("value", [None, "auto"])
def test_ucx_by_default_has_the_class_of_dscp_26(roce: Case, value: str | None) -> None:
    given = {} if value is None else {"UCX_IB_TRAFFIC_CLASS": value}
    report = changed(roce, "UCX_IB_TRAFFIC_CLASS", **given)
    finding = only(report)
    assert "UCX: ToS byte 106 is DSCP 26 with ECN bits 10: it lands in the class collective, not in kv" in finding.does
    assert row(report, "UCX").decided_by == "default"


def test_ucxs_dscp_is_a_tos_byte(roce: Case) -> None:
    report = changed(roce, UCX_IB_TRAFFIC_CLASS="18")
    assert "18 is the DSCP of kv, and a ToS byte is four times the DSCP" in only(report).does
    assert "though UCX's help calls it a DSCP" in told(changed(roce))["UCX_IB_TRAFFIC_CLASS"]


def test_mooncake_is_unmarked_by_default_and_loses_to_what_the_device_forces(roce: Case) -> None:
    assert "Mooncake: ToS byte 0 is DSCP 0" in only(changed(roce, MC_IB_TC="-1")).does
    report = lint_environment(as_planned(roce), roce, forced={"mlx5_8": 184})
    assert row(report, "Mooncake").lands_in == "expert"
    assert row(report, "UCX").tos == 184
    assert row(report, "NCCL").tos == 106  # another device
    finding = only(report)
    assert finding.place == "/sys/class/infiniband/mlx5_8/tc/1/traffic_class"
    assert "ToS byte 184, DSCP 46 (expert), is forced on every queue pair of mlx5_8" in finding.does
    assert finding.mend.startswith("echo -1 > ")


def test_a_forced_tos_does_not_reach_gpu_initiated_queue_pairs(roce: Case) -> None:
    report = lint_environment(as_planned(roce), roce, forced={"mlx5_0": 106})
    assert (row(report, "NCCL GIN").tos, row(report, "NCCL clear-to-send").tos) == (184, 106)
    assert only(lint_environment({}, forced={"mlx5_0": 106}), "warning").place.startswith(
        "/sys/class/infiniband/mlx5_0"
    )


def test_gloo_chooses_a_network_and_no_class(sockets: Case) -> None:
    report = changed(sockets)
    assert "no class: Gloo cannot mark its sockets" in told(report)["GLOO_SOCKET_IFNAME"]
    assert "lets dcn through, not on the network of collective" in only(changed(sockets, GLOO_SOCKET_IFNAME="dcn")).does
    finding = only(changed(sockets, "GLOO_SOCKET_IFNAME"))
    assert finding.mend == "export GLOO_SOCKET_IFNAME=hpn"


def test_nccls_lists_are_prefixes(roce: Case) -> None:
    plan, cluster = roce
    devices = tuple(f"mlx5_{number}" for number in range(10, 18))
    wide = plan, replace(cluster, hpn=replace(cluster.hpn, devices=devices))
    other = replace(wide[1].dcn, devices=("mlx5_1", "mlx5_2")) if wide[1].dcn else None
    report = changed((plan, replace(wide[1], dcn=other)), NCCL_IB_HCA="mlx5_1")
    assert only(report).does.startswith("lets mlx5_1 through, not on the network of")
    said = [finding.does for finding in report.findings if finding.place == "NCCL_IB_HCA"]
    assert any('is a list of prefixes: "mlx5_1" means mlx5_10, mlx5_11' in does for does in said)
    alone = only(lint_environment({"NCCL_IB_HCA": "mlx5_1"}), "warning")
    assert alone.mend == "export NCCL_IB_HCA==mlx5_1"
    assert lint_environment({"NCCL_IB_HCA": "=mlx5_1", "NCCL_SOCKET_IFNAME": "eth"}).findings[0].severity == "note"


def test_a_prefix_that_is_meant_as_one_is_no_fault(roce: Case) -> None:
    assert "NCCL_SOCKET_IFNAME" not in told(changed(roce, NCCL_SOCKET_IFNAME="dcn"))
    assert told(changed(roce, NCCL_SOCKET_IFNAME="eth"))["NCCL_SOCKET_IFNAME"].startswith(
        "warning: matches no interface"
    )


@pytest.mark.parametrize(
    ("value", "severity"),
    [
        ("=mlx5_0:1,mlx5_1:1", "warning"),  # six are idle
        ("^=mlx5_8,mlx5_9", None),
        ("^=mlx5_8", "error"),
        ("=mlx5_8", "error"),
        ("=none", "error"),
        ("mlx5", "error"),
    ],
)
def test_the_devices_nccl_may_use_are_worked_out(roce: Case, value: str, severity: str | None) -> None:
    found = [
        finding.severity for finding in changed(roce, NCCL_IB_HCA=value).findings if finding.place == "NCCL_IB_HCA"
    ]
    assert found[0] == severity if severity else found == []


def test_devices_left_open_reach_the_other_network(roce: Case) -> None:
    report = changed(roce, "NCCL_IB_HCA", "UCX_NET_DEVICES")
    places = {finding.place for finding in report.findings if finding.severity == "error"}
    assert places == {"NCCL_IB_HCA", "UCX_NET_DEVICES"}
    assert "mlx5_8, mlx5_9 are not on the network of collective, expert" in told(report)["NCCL_IB_HCA"]
    assert only(changed(roce, UCX_NET_DEVICES="all")).place == "UCX_NET_DEVICES"


def test_a_gid_index_other_than_the_clusters_is_another_address(roce: Case) -> None:
    finding = only(changed(roce, NCCL_IB_GID_INDEX="0"))
    assert (finding.place, finding.mend) == ("NCCL_IB_GID_INDEX", "export NCCL_IB_GID_INDEX=3")
    plan, cluster = roce
    assert cluster.dcn is not None
    elastic = plan, replace(cluster, dcn=replace(cluster.dcn, fabric="erdma", nic="erdma", gid_index=1))
    assert only(changed(elastic, "MC_GID_INDEX")).mend == "export MC_GID_INDEX=1"


def test_a_wrong_ethernet_priority_is_warned_of(roce: Case) -> None:
    assert only(changed(roce, NCCL_IB_SL="5"), "warning").mend == "export NCCL_IB_SL=3"


def test_nccl_over_sockets_has_no_marks(roce: Case, sockets: Case) -> None:
    assert only(changed(roce, NCCL_IB_DISABLE="1")).place == "NCCL_IB_DISABLE"
    plain = carrying(sockets, collective=("nccl",))
    assert told(changed(plain, NCCL_IB_TC="106"))["NCCL_IB_TC"].startswith("warning: does nothing: this network has no")
    assert only(changed(plain, "NCCL_SOCKET_IFNAME")).place == "NCCL_SOCKET_IFNAME"


def test_collectives_routed_adaptively_need_nccl_to_know(roce: Case) -> None:
    plan, cluster = roce
    collective = replace(plan.classes[TrafficClass.COLLECTIVE], routing="adaptive")
    adaptive = replace(plan, classes={**plan.classes, TrafficClass.COLLECTIVE: collective}), cluster
    assert not changed(adaptive).contradicts
    finding = only(changed(adaptive, "NCCL_IB_ADAPTIVE_ROUTING"), "warning")
    assert finding.mend == "export NCCL_IB_ADAPTIVE_ROUTING=1"


@pytest.mark.parametrize(
    ("name", "value", "read_as", "said"),
    [
        ("NCCL_IB_TC", "0x6a", 106, ""),
        ("NCCL_IB_TC", "0152", 106, "octal"),
        ("NCCL_IB_TC", "106 # collectives", 106, "it is read as 106"),
        ("NCCL_IB_TC", "DSCP26", 0, "it is read as 0"),
        ("NCCL_IB_TC", "362", 106, "what does not fit is cut off"),
        ("NCCL_IB_TC", "$TOS", 0, "it is read as 0"),
        ("MC_IB_TC", "0x4a", 0, "it is read as 0"),
        ("MC_IB_TC", "300", 0, "Mooncake ignores it"),
        ("MC_IB_TC", "abc", 0, "Mooncake ignores it"),
        ("UCX_IB_TRAFFIC_CLASS", "0x4a", 106, "UCX refuses to start"),
        ("NVSHMEM_IB_TRAFFIC_CLASS", "x", 0, "it is read as 0"),
    ],
)
def test_values_are_read_as_each_library_reads_them(name: str, value: str, read_as: int, said: str) -> None:
    report = lint_environment({name: value})
    assert report.rows[0].tos == read_as
    faults = [f.does for f in report.findings if f.place == name and f.severity == "error" and "expected" in f.does]
    octal = [f.does for f in report.findings if "octal" in f.does]
    assert any(said in does for does in [*faults, *octal]) if said else faults == []


def test_nvshmem_under_ecmp_has_one_path(roce: Case) -> None:
    plan, cluster = carrying(roce, expert=("deepep-v1",))
    classes = {kind: replace(lane, routing="ecmp") for kind, lane in plan.classes.items()}
    said = told(changed((replace(plan, classes=classes), cluster)))["NVSHMEM_IB_TRAFFIC_CLASS"]
    assert said.startswith("note: all queue pairs send from one UDP port")


def test_other_libraries_marks_are_shown_and_hccls_must_be_a_dscp(roce: Case) -> None:
    report = changed(roce, HCCL_RDMA_TC="26", UCCL_P2P_RDMA_TC="104", HYBRID_EP_IB_TC="184")
    assert only(report).mend == "export HCCL_RDMA_TC=104"
    assert row(report, "UCCL").lands_in == "collective"
    assert row(lint_environment({"HCCL_RDMA_SL": "4"}), "HCCL").tos == 132
    assert row(lint_environment({"UCCL_P2P_RDMA_SL": "4"}), "UCCL").tos is None
    assert "merged ones read NCCL_IB_TC" in told(report)["HYBRID_EP_IB_TC"]


def test_libraries_the_plan_does_not_speak_of_are_shown_and_not_judged(roce: Case) -> None:
    report = changed(roce, NVSHMEM_IB_TRAFFIC_CLASS="104", NVSHMEM_IB_GID_INDEX="3")
    assert row(report, "NVSHMEM").wanted is None
    assert not report.contradicts


def test_an_empty_environment_without_a_plan_says_nothing() -> None:
    report = lint_environment({})
    assert (report.rows, report.findings) == ((), ())
