"""Lanes of a plan as the simulator's arrays: the plan's figures, the real maps, and what of a plan is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from fourlane.errors import SpecError
from fourlane.lanes.buffers import switch_budget
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import LanePlan, Pfc
from fourlane.lanes.ports import switches
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass
from fourlane.twin.fabric import Scenario, all_to_all, between, concatenated, incast, leaf_spine, permutation, rail_clos
from fourlane.twin.fabric.reference import simulate
from fourlane.units import Rate, Size

if TYPE_CHECKING:
    from fourlane.spec.cluster import Cluster
    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.topology import Topology

EXPERT, KV, CONTROL, DEFAULT = (TrafficClass(name) for name in ("expert", "kv", "control", "default"))


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("h800-ft")


@pytest.fixture(scope="module")
def plan(cluster: Cluster) -> LanePlan:
    return default_plan(cluster)


@pytest.fixture(scope="module")
def hpn(cluster: Cluster) -> Topology:
    return rail_clos(cluster, nvlink=False)


@pytest.fixture(scope="module")
def small() -> Topology:
    return leaf_spine(leaves=2, hosts_per_leaf=3, spines=2)


def with_lane(plan: LanePlan, kind: TrafficClass, **fields: object) -> LanePlan:
    return replace(plan, classes={**plan.classes, kind: replace(plan.classes[kind], **fields)})


def every_class(net: Topology, *kinds: str) -> Flows:
    return concatenated([permutation(net, "10kB", traffic=kind) for kind in kinds])


def test_queues_stand_in_the_plans_order_with_its_figures(small: Topology, plan: LanePlan) -> None:
    flows = every_class(small, "expert", "collective", "control")
    made = Scenario(small, flows, plan=plan).compile()
    queue = {name: number for number, name in enumerate(made.queue_names)}
    assert made.queue_names == ("default", "bulk", "kv", "collective", "expert", "control")
    quanta, weights = made.queue_weight, {kind.value: lane.weight for kind, lane in plan.classes.items()}
    assert quanta[queue["control"]] == 0
    for name in ("expert", "collective", "bulk", "kv", "default"):
        assert quanta[queue[name]] * weights["default"] == quanta[queue["default"]] * weights[name]
    assert quanta[quanta > 0].min() >= 4160
    assert made.queue_cap_q16[queue["control"]] == 65536 * 100 // 5
    assert made.queue_alpha_q16[queue["collective"]] == 65536 // 8
    assert made.queue_reserved[queue["expert"]] == plan.classes[EXPERT].reserved
    assert made.queue_lossless.tolist() == [plan.classes[TrafficClass(name)].lossless for name in queue]
    collective = plan.classes[TrafficClass("collective")].marking
    assert collective is not None
    assert made.queue_kmin[queue["collective"]] == collective.kmin
    assert made.queue_kmin[queue["expert"]] == -1
    assert made.class_names == ("expert", "collective", "control")
    assert [made.queue_names[number] for number in made.class_queue] == ["expert", "collective", "control"]
    assert [made.queue_names[number] for number in made.class_cnp_queue] == ["control"] * 3
    assert made.class_routing.tolist() == [4, 0, 0]
    assert made.class_cc.tolist() == [0, 1, 0]
    assert made.class_ecn.tolist() == [0, 1, 0]


def test_a_full_switch_shares_what_the_planner_says(cluster: Cluster, plan: LanePlan, hpn: Topology) -> None:
    made = Scenario(hpn, permutation(hpn, "10kB"), plan=plan).compile()
    for kind in switches(cluster):
        if kind.network == "hpn":
            node = hpn.node_named(f"{kind.role}0")
            ports = hpn.node_first_port[node + 1] - hpn.node_first_port[node]
            assert ports == len(kind.ports)
            assert made.node_shared[node] == switch_budget(plan, kind).shared


def test_each_ports_headroom_is_the_planners(cluster: Cluster, plan: LanePlan, hpn: Topology) -> None:
    from fourlane.lanes.buffers import headroom_of

    made = Scenario(hpn, permutation(hpn, "10kB"), plan=plan).compile()
    leaf = next(kind for kind in switches(cluster) if kind.name == "hpn-leaf")
    node = hpn.node_named("leaf0")
    expected = set()
    for port in leaf.ports:
        room = headroom_of(plan, leaf, port)
        assert room is not None
        expected.add(int(room.xoff))
    found = made.port_headroom[hpn.node_first_port[node] : hpn.node_first_port[node + 1]]
    assert set(found.tolist()) == expected


def test_the_expert_lane_of_the_default_plan_loses_nothing_under_incast(hpn: Topology, plan: LanePlan) -> None:
    flows = incast(hpn, "200kB", sources=range(8, 40, 4), destination=0)
    raw = simulate(Scenario(hpn, flows, plan=plan).compile())
    assert raw["status"] == "done"
    assert raw["data_packets_dropped"] == 0


def test_senders_that_mark_wrongly_land_where_switches_put_their_mark(small: Topology, plan: LanePlan) -> None:
    flows = permutation(small, "10kB")
    made = Scenario(small, flows, plan=plan, classes={"expert": {"dscp": 8}}).compile()
    assert made.queue_names[made.class_queue[0]] == "bulk"
    unmarked = Scenario(small, flows, plan=plan, classes={"expert": {"dscp": 0}}).compile()
    assert unmarked.queue_names[unmarked.class_queue[0]] == "default"


def test_a_scenario_may_change_what_the_plan_says(small: Topology, plan: LanePlan) -> None:
    changed = Scenario(
        small,
        permutation(small, "10kB"),
        plan=plan,
        queues={"expert": {"ecn": {"kmin": "5kB", "kmax": "9kB", "pmax": 1.0}}},
        classes={"expert": {"congestion": "dcqcn", "ecn": True}},
    ).compile()
    expert = changed.queue_names.index("expert")
    assert (changed.queue_kmin[expert], changed.class_cc[0], changed.class_ecn[0]) == (5000, 1, 1)


def test_the_watchdog_is_the_plans_unless_the_scenario_says_otherwise(small: Topology, plan: LanePlan) -> None:
    flows = permutation(small, "10kB")
    made = Scenario(small, flows, plan=plan).compile()
    assert (made.watchdog_detection, made.watchdog_drop) == (plan.pfc.detection, 1)
    assert Scenario(small, flows, plan=plan, pauses={"watchdog": False}).compile().watchdog_detection == 0
    sooner = Scenario(small, flows, plan=plan, pauses={"detection": "1ms", "action": "forward"}).compile()
    assert (sooner.watchdog_detection, sooner.watchdog_restoration) == (10**9, plan.pfc.restoration)
    assert sooner.watchdog_drop == 0


def test_trimmed_packets_travel_on_as_the_plan_says(small: Topology, plan: LanePlan) -> None:
    lossy = with_lane(plan, EXPERT, lossless=False, trim=True)
    made = Scenario(small, permutation(small, "10kB"), plan=lossy).compile()
    assert made.class_trim.tolist() == [1]
    assert made.trim_wire == plan.trimming.size
    assert made.queue_names[made.trim_queue] == plan.trimming.to.value
    assert made.class_rto[0] > 0


def test_planes_and_nvlink_belong_to_the_hpn(plan: LanePlan) -> None:
    planes = rail_clos(replace(load_cluster("dual-plane-10k"), servers=4), nvlink=False)
    flows = between(planes, [0], [9], "10kB", network="hpn.1")
    own = default_plan(load_cluster("dual-plane-10k"))
    assert Scenario(planes, flows, plan=own).compile().class_names == ("expert",)
    inside = rail_clos(replace(load_cluster("h800-ft"), servers=2))
    flows = between(inside, [0], [3], "10kB", network="nvlink")
    assert simulate(Scenario(inside, flows, plan=plan).compile())["status"] == "done"


@pytest.mark.parametrize(
    ("change", "traffic", "message"),
    [
        (
            {DEFAULT: {"accept": ("1-7",)}},
            "expert",
            r"plan: classes.default.accept: no class takes DSCP 9-17, 19-25.* on the hpn; add it to an accept list",
        ),
        ({}, "kv", "plan: classes.kv.network: flows of this class use hpn, but its lane is on dcn only"),
        ({}, "video", "plan: classes.video: flows are of this class, but the plan has only expert, collective"),
        ({EXPERT: {"alpha": 256.0}}, "expert", "queues.expert.alpha: expected above 0 and up to 128, got 256"),
        ({EXPERT: {"reserved": Size(16 << 20)}}, "expert", "leaf0: headroom and reservations .* nothing to share"),
    ],
)
def test_a_plan_that_does_not_do_is_refused_by_field(
    small: Topology, plan: LanePlan, change: dict[TrafficClass, dict[str, object]], traffic: str, message: str
) -> None:
    for kind, fields in change.items():
        plan = with_lane(plan, kind, **fields)
    with pytest.raises(SpecError, match=message):
        Scenario(small, permutation(small, "10kB", traffic=traffic), plan=plan).compile()


def test_a_mark_that_leads_nowhere_is_refused(small: Topology, plan: LanePlan) -> None:
    holes = with_lane(plan, DEFAULT, accept=("1-7",))
    with pytest.raises(SpecError) as caught:
        Scenario(small, permutation(small, "10kB"), plan=holes, classes={"expert": {"dscp": 20}}).compile()
    assert any(
        fault.startswith("classes.expert.dscp: 20 leads to no class of the plan") for fault in caught.value.faults
    )


def test_a_port_without_a_published_headroom_is_refused_until_one_is_given(plan: LanePlan, cluster: Cluster) -> None:
    spine = replace(cluster.hpn.spine, switch="arista-7060x6") if cluster.hpn.spine else None
    leaf = replace(cluster.hpn.leaf, switch="arista-7060x6")
    arista = replace(cluster, hpn=replace(cluster.hpn, leaf=leaf, spine=spine), gpu=None)
    net = rail_clos(arista)
    flows = all_to_all(net, "10kB", hosts=range(4))
    with pytest.raises(SpecError, match=r"plan: pfc.headroom: no figure is published for arista-7060x6 at 400Gbps"):
        Scenario(net, flows, plan=plan).compile()
    given = replace(plan, pfc=Pfc(headroom=Size(200_000)))
    made = Scenario(net, flows, plan=given).compile()
    assert made.port_headroom.max() == 200_000
    assert Scenario(net, flows, plan=given, pauses={"headroom": "90kB"}).compile().port_headroom.max() == 90_000


def test_settings_and_structs_say_the_same(small: Topology, plan: LanePlan) -> None:
    from fourlane.twin.fabric import ClassSettings

    table = Scenario(small, permutation(small), plan=plan, classes={"expert": {"window": "1MB"}})
    struct = Scenario(small, permutation(small), plan=plan, classes={"expert": ClassSettings(window=Size(10**6))})
    assert msgspec.json.encode(table.settings, enc_hook=str) == msgspec.json.encode(struct.settings, enc_hook=str)
    assert np.array_equal(table.compile().class_window, struct.compile().class_window)


def test_headroom_for_faster_links_and_longer_cables_is_larger() -> None:
    def room(**equipment: str) -> int:
        net = leaf_spine(leaves=2, hosts_per_leaf=2, spines=2, **equipment)
        return int(Scenario(net, permutation(net)).compile().port_headroom.max())

    assert room() < room(propagation="1us")
    assert room(propagation="1us") < room(propagation="1us", rate=str(Rate.parse("800Gbps")))
