"""The environment files: golden, readable by a shell, one class a variable."""

from __future__ import annotations

import json
import subprocess

import pytest
from lane_goldens import CLUSTERS, kept, rendered
from msgspec.structs import replace

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.environment.variables import ROLES, wanted_variables
from fourlane.lanes.render.env import render_env
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_files_are_the_golden_ones(name: str) -> None:
    assert rendered(name, "env") == kept(name, "env")


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_shell_reads_the_files_as_they_are_meant(name: str) -> None:
    cluster = load_cluster(name)
    plan = default_plan(cluster)
    files = render_env(plan, cluster)
    for role in ROLES:
        wanted = wanted_variables(plan, cluster, role)
        text = "".join(files[f"{role}/{library}.sh"] for library in wanted)
        done = subprocess.run(
            ["sh", "-eu"], input=text + "env -0", capture_output=True, text=True, timeout=30, check=True, env={}
        )
        found = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
        expected = {variable.name: variable.value for part in wanted.values() for variable in part.variables}
        assert {name: found.get(name) for name in expected} == expected
        assert [part["library"] for part in json.loads(files[f"{role}.json"])] == list(wanted)


def test_every_variable_says_its_class_unit_and_source() -> None:
    cluster = load_cluster("h800-ft")
    variables = [
        v for part in wanted_variables(default_plan(cluster), cluster, "decode").values() for v in part.variables
    ]
    assert all(v.traffic_class and v.unit and v.why and v.source for v in variables)
    assert len({v.name for v in variables}) == len(variables)
    values = {v.name: v.value for v in variables}
    assert (values["NCCL_IB_TC"], values["NCCL_GIN_IB_TC"], values["NCCL_IB_FIFO_TC"]) == ("106", "184", "192")
    assert (values["UCX_IB_TRAFFIC_CLASS"], values["MC_IB_TC"]) == ("74", "74")
    assert "EP_OVERRIDE_RDMA_SL" not in values


def test_training_has_no_kv_cache() -> None:
    cluster = load_cluster("h800-ft")
    assert set(wanted_variables(default_plan(cluster), cluster, "training")) == {"nccl", "deepep"}


def test_deepep_v1_is_given_nvshmems_variables_and_on_infiniband_no_traffic_class() -> None:
    cluster = load_cluster("h800-ft")
    plan = default_plan(cluster)
    expert = replace(plan.classes[TrafficClass.EXPERT], carriers=("deepep-v1",))
    plan = replace(plan, classes={**plan.classes, TrafficClass.EXPERT: expert})
    values = {v.name: v.value for v in wanted_variables(plan, cluster, "decode")["nvshmem"].variables}
    assert (values["NVSHMEM_IB_TRAFFIC_CLASS"], values["NVSHMEM_IB_SL"]) == ("184", "5")
    assert values["NVSHMEM_ENABLE_NIC_PE_MAPPING"] == "1"
    over_ib = replace(cluster, hpn=replace(cluster.hpn, fabric="infiniband"))
    names = {v.name for v in wanted_variables(plan, over_ib, "decode")["nvshmem"].variables}
    assert "NVSHMEM_IB_TRAFFIC_CLASS" not in names
    assert "NVSHMEM_IB_SL" in names


def test_names_cannot_leave_their_comment() -> None:
    cluster = load_cluster("h800-ft")
    plan = replace(default_plan(cluster), name="a\nrm -rf /")
    assert "\nrm" not in render_env(plan, replace(cluster, name="b\nreboot"))["decode/nccl.sh"]
