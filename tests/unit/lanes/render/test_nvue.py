"""NVUE commands: of the forms NVIDIA documents, complete, and in NVUE's units."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from lane_cases import sound_cases
from lane_goldens import CLUSTERS, kept, rendered
from msgspec.structs import replace

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import DSCPS, LanePlan
from fourlane.lanes.ports import switches
from fourlane.lanes.render.nvue import port_ranges, render_nvue
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Size

PORTS = r"swp[0-9a-z,swp-]+"
PROFILE = r"fourlane-[0-9a-z.-]+"
ALPHA = r"alpha_(?:1_)?[0-9]+|alpha_infinity"
BUFFER = "nv set qos advance-buffer-config default-global"
DOCUMENTED = [
    r"nv set qos mapping default-global trust l3",
    r"nv set qos mapping default-global dscp [0-9]+(?:,[0-9]+)* switch-priority [0-7]",
    r"nv set qos egress-queue-mapping default-global switch-priority [0-7] traffic-class [0-7]",
    r"nv set qos egress-scheduler default-global traffic-class [0-7] mode (?:dwrr|strict)",
    r"nv set qos egress-scheduler default-global traffic-class [0-7] bw-percent (?:[1-9][0-9]?|100)",
    rf"nv set qos egress-shaper {PROFILE} traffic-class [0-7] max-rate [1-9][0-9]*",
    r"nv set qos congestion-control default-global traffic-class [0-7] (?:ecn|red) (?:enable|disable)",
    r"nv set qos congestion-control default-global traffic-class [0-7] (?:min|max)-threshold [0-9]+",
    r"nv set qos congestion-control default-global traffic-class [0-7] probability (?:[1-9][0-9]?|100)",
    r"nv set qos traffic-pool default-(?:lossless|lossy) memory-percent [0-9]+",
    rf"{BUFFER} (?:ingress|egress)-lossless-buffer shared-alpha (?:{ALPHA})",
    rf"{BUFFER} egress-lossy-buffer traffic-class [0-7] shared-alpha (?:{ALPHA})",
    rf"{BUFFER} egress-lossy-buffer traffic-class [0-7] reserved [0-9]+",
    rf"nv set qos pfc {PROFILE} switch-priority [0-7](?:,[0-7])*",
    rf"nv set qos pfc {PROFILE} (?:tx|rx) enable",
    rf"nv set qos pfc {PROFILE} cable-length [1-9][0-9]*",
    r"nv set qos pfc-watchdog polling-interval [0-9]+",
    r"nv set qos pfc-watchdog robustness [1-9][0-9]*",
    r"nv set system forwarding packet-trim remark dscp [0-9]+",
    r"nv set system forwarding packet-trim size [0-9]+",
    r"nv set system forwarding packet-trim switch-priority [0-7]",
    r"nv set system forwarding packet-trim state enabled",
    r"nv set router adaptive-routing state enabled",
    rf"nv set interface {PORTS} qos (?:egress-shaper|pfc) profile {PROFILE}",
    rf"nv set interface {PORTS} qos pfc-watchdog state enable",
    rf"nv set interface {PORTS} packet-trim egress-eligibility traffic-class [0-7]",
    rf"nv set interface {PORTS} router adaptive-routing state enabled",
]
FORM = re.compile("|".join(f"(?:{form})" for form in DOCUMENTED))


def commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def numbers(text: str, pattern: str) -> list[int]:
    return [int(found) for found in re.findall(pattern, text)]


def leaf(plan: LanePlan | None = None, *overrides: str, **changes: Any) -> str:
    cluster = load_cluster("one-network", overrides=overrides)
    wanted = plan or default_plan(cluster)
    expert = replace(wanted.classes[TrafficClass.EXPERT], **changes)
    wanted = replace(wanted, classes={**wanted.classes, TrafficClass.EXPERT: expert})
    return render_nvue(wanted, cluster)["hpn-leaf.nvue"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_example_clusters_render_as_kept(name: str) -> None:
    assert rendered(name, "nvue") == kept(name, "nvue")


def test_only_switches_with_cumulus_are_rendered_and_say_that_no_device_ran_it() -> None:
    files = rendered("one-network", "nvue")
    assert set(files) == {"hpn-leaf.nvue", "hpn-spine.nvue"}
    assert all(text.startswith("# Not run on a device") for text in files.values())
    assert rendered("h800-ft", "nvue") == {}


@given(case=sound_cases())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_command_has_a_documented_form_and_the_sums_are_right(case: tuple[Any, LanePlan]) -> None:
    cluster, plan = case
    for text in render_nvue(plan, cluster, every_switch=True).values():
        assert [line for line in commands(text) if not FORM.fullmatch(line)] == []
        dscps = [int(dscp) for listed in re.findall(r" dscp ([0-9,]+) switch", text) for dscp in listed.split(",")]
        assert sorted(dscps) == list(DSCPS)
        assert sum(numbers(text, r"bw-percent ([0-9]+)")) == 100
        assert sum(numbers(text, r"memory-percent ([0-9]+)")) in (0, 100)
        used = set(re.findall(rf"profile ({PROFILE})", text))
        assert used == set(re.findall(rf"qos (?:egress-shaper|pfc) ({PROFILE})", text))


def test_caps_are_in_kilobits_and_thresholds_in_bytes() -> None:
    text = leaf()
    assert "egress-shaper fourlane-400g traffic-class 6 max-rate 20000000\n" in text  # 5 % of 400 Gbit/s
    assert "traffic-class 2 min-threshold 1600000\n" in text


def test_ecn_is_switched_off_by_name_also_where_cumulus_has_it_on() -> None:
    assert "congestion-control default-global traffic-class 5 ecn disable\n" in leaf()
    assert "congestion-control default-global traffic-class 0 ecn disable\n" in leaf()


def test_what_nvue_has_no_words_for_is_said() -> None:
    plan = default_plan(load_cluster("one-network"))
    pfc = replace(plan.pfc, action="forward", shared_headroom=True, headroom=Size.parse("300KiB"))
    text = leaf(replace(plan, pfc=pfc))
    for missing in ("classes.expert.reserved", "pfc.headroom", "pfc.shared_headroom", "pfc.action", "pfc.restoration"):
        assert f"# Not rendered: {missing}" in text


def test_trimming_names_queues_mark_and_size_within_its_limits() -> None:
    plan = default_plan(load_cluster("one-network"))
    text = leaf(
        replace(plan, trimming=replace(plan.trimming, size=Size(100))), "hpn.leaf.up_ports=1", lossless=False, trim=True
    )
    assert "packet-trim egress-eligibility traffic-class 5\n" in text
    assert "packet-trim size 256\n" in text
    assert "# Not rendered: trimming.size = 100B; NVUE takes 256 to 1024" in text
    assert "packet-trim remark dscp 48\n" in text


def test_ports_are_listed_by_front_port_and_part() -> None:
    overrides = ("hpn.leaf.down_ports=3", "hpn.leaf.up_ports=2", "hpn.spine.down_ports=2")
    switch = switches(load_cluster("one-network", overrides=overrides))[0]
    assert port_ranges(switch, switch.ports) == "swp3-4,swp1s0-1,swp2s0"
    text = leaf(None, *overrides)
    assert "# Counts on: nv set interface swp1-2 link breakout 2x\n" in text
    assert "nv set interface swp3-4 router adaptive-routing state enabled\n" in text
