"""A lane plan in a running service: its marks, and addresses that do not fit its networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import pytest

from fourlane.engine.rank_config import RankConfig, rank_configs
from fourlane.errors import SpecError
from fourlane.lanes import live
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.live import lane_cautions, plan_marks
from fourlane.lanes.marking import default_marks
from fourlane.spec.deployment import Deployment, Exchange, Gateway, KvTransfer, Pool
from fourlane.spec.load import load_cluster, load_deployment, render
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from pathlib import Path

    from fourlane.lanes.plan import LanePlan


@pytest.fixture
def plan() -> LanePlan:
    return default_plan(load_cluster("h800-ft"))


def changed(plan: LanePlan) -> LanePlan:
    """Return the plan with KV's DSCP and priority swapped for those of bulk."""
    kv, bulk = plan.classes[TrafficClass.KV], plan.classes[TrafficClass.BULK]
    swapped = {
        TrafficClass.KV: msgspec.structs.replace(kv, dscp=bulk.dscp, priority=bulk.priority, queue=bulk.queue),
        TrafficClass.BULK: msgspec.structs.replace(bulk, dscp=kv.dscp, priority=kv.priority, queue=kv.queue),
    }
    return msgspec.structs.replace(plan, classes=plan.classes | swapped)


def test_without_a_plan_marks_are_those_of_the_default_plan(plan: LanePlan) -> None:
    assert plan_marks(None) == plan_marks(plan) == default_marks()


def test_a_plan_named_in_a_file_is_found_beside_it_and_reaches_every_rank_as_numbers(
    plan: LanePlan, tmp_path: Path
) -> None:
    (tmp_path / "plan.toml").write_text(render(changed(plan)), encoding="utf-8")
    (tmp_path / "deployment.toml").write_text('lanes = "plan.toml"\n[prefill]\n[decode]\n', encoding="utf-8")
    configs = rank_configs(load_deployment(tmp_path / "deployment.toml"), tmp_path)
    for config in configs:
        arrived = msgspec.json.decode(msgspec.json.encode(config), type=RankConfig)
        mark = arrived.marks[TrafficClass.KV]
        assert (mark.dscp, mark.priority) == (TrafficClass.BULK.dscp, TrafficClass.BULK.priority)
        assert arrived.marks == plan_marks(changed(plan))


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.toml"):
        rank_configs(Deployment(unified=Pool(), lanes=str(tmp_path / "nowhere.toml")), tmp_path)


def deployed(kv: str, expert: str, **kv_transfer: str) -> Deployment:
    return Deployment(
        prefill=Pool(),
        decode=Pool(),
        kv_transfer=KvTransfer(address=kv, **kv_transfer),
        exchange=Exchange(address=expert),
    )


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"10.0.0.1": "eth0", "10.0.0.2": "eth0", "10.1.0.1": "eth1", "127.0.0.1": "lo"}
    monkeypatch.setattr(live, "interface_of", found.get)


@pytest.mark.usefixtures("interfaces")
@pytest.mark.parametrize(("kv", "said"), [("10.0.0.1", "both are 10.0.0.1"), ("10.0.0.2", "10.0.0.2 and 10.0.0.1")])
def test_kv_planned_for_the_dcn_but_bound_to_the_experts_interface_is_a_caution(
    plan: LanePlan, kv: str, said: str
) -> None:
    (caution,) = lane_cautions(deployed(kv, "10.0.0.1"), plan)
    assert "puts kv on the dcn" in caution
    assert "interface eth0" in caution
    assert said in caution


@pytest.mark.usefixtures("interfaces")
def test_networks_that_are_apart_and_hosts_that_have_none_are_no_caution(plan: LanePlan) -> None:
    assert lane_cautions(deployed("10.1.0.1", "10.0.0.1"), plan) == []
    assert lane_cautions(deployed("127.0.0.1", "127.0.0.1"), plan) == []
    assert lane_cautions(deployed("10.0.0.1", "10.0.0.1", transport="shared_memory"), plan) == []
    assert lane_cautions(deployed("10.0.0.1", "10.0.0.1"), None) == []
    one_network = default_plan(load_cluster("one-network"))
    assert lane_cautions(deployed("10.0.0.1", "10.0.0.1"), one_network) == []


@pytest.mark.parametrize(
    ("device", "launch", "exchange"),
    [
        ("cpu", "local", "shared_memory"),
        ("cpu", "external", "tcp"),
        ("cuda", "local", "torch_all_to_all"),
        ("cuda:1", "external", "torch_all_to_all"),
    ],
)
def test_the_exchange_follows_where_ranks_are_unless_one_is_asked_for(
    device: str, launch: Literal["local", "external"], exchange: str, tmp_path: Path
) -> None:
    wanted = Deployment(unified=Pool(device=device, launch=launch), gateway=Gateway(control="tcp://10.0.0.1:7100"))
    assert [config.exchange for config in rank_configs(wanted, tmp_path)] == [exchange]
    asked = msgspec.structs.replace(wanted, exchange=Exchange(implementation="torch_all_to_all"))
    assert [config.exchange for config in rank_configs(asked, tmp_path)] == ["torch_all_to_all"]
