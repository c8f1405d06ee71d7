"""EOS text: what Arista's own AVD makes of the same configuration, in EOS's units."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from lane_cases import sound_cases
from lane_goldens import CLUSTERS, kept, rendered
from msgspec.structs import replace

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.ports import switches
from fourlane.lanes.render.eos import eos_structured, render_eos
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass
from fourlane.units import Duration

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster


def said(text: str) -> list[str]:
    """Return the configuration without its remarks."""
    return [line for line in text.splitlines() if not line.startswith("! ")]


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_example_clusters_render_as_kept(name: str) -> None:
    assert rendered(name, "eos") == kept(name, "eos")


def test_only_switches_with_eos_are_rendered_and_say_that_no_device_ran_it() -> None:
    files = rendered("h800-ft", "eos")
    assert set(files) == {"dcn-leaf.eos.cfg", "dcn-spine.eos.cfg"}
    assert all(text.startswith("! Not run on a device") for text in files.values())
    assert rendered("one-network", "eos") == {}


AVD = """
import json, sys
import pyavd
answers = []
for structured in json.load(sys.stdin):
    violations = pyavd.validate_structured_config(structured).validation_result.violations
    said = [str(violation.message) for violation in violations]
    answers.append({"violations": said, "text": pyavd.get_device_config(structured)})
json.dump(answers, sys.stdout)
"""


def asked_of_avd(structured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what pyavd says of configurations, from a process of its own: it leaves odd modules behind."""
    if importlib.util.find_spec("pyavd") is None:
        pytest.skip("pyavd, Arista's validator and templates, is not installed")
    question = json.dumps(structured)
    done = subprocess.run(
        [sys.executable, "-c", AVD], input=question, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def drawn_cases(count: int) -> list[tuple[Cluster, LanePlan]]:
    """Return sound cases, the same each time."""
    cases: list[tuple[Cluster, LanePlan]] = []

    @given(case=sound_cases())
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    def draw(case: tuple[Cluster, LanePlan]) -> None:
        cases.append(case)

    draw()
    return cases


def test_avd_accepts_every_sound_plan_and_writes_the_same_text() -> None:
    texts, structured = [], []
    for cluster, plan in [
        *((load_cluster(name), default_plan(load_cluster(name))) for name in CLUSTERS),
        *drawn_cases(6),
    ]:
        files = render_eos(plan, cluster, every_switch=True)
        texts += [said(files[f"{switch.name}.eos.cfg"]) for switch in switches(cluster)]
        structured += [eos_structured(plan, switch) for switch in switches(cluster)]
    for text, answer in zip(texts, asked_of_avd(structured), strict=True):
        assert answer["violations"] == []
        assert text == answer["text"].strip("\n").splitlines()


def test_avd_refuses_what_its_schema_does_not_have() -> None:
    cluster = load_cluster("h800-ft")
    structured = eos_structured(default_plan(cluster), switches(cluster)[2])
    structured["qos_profiles"][0]["uc_tx_queues"][0]["priority"] = "first"
    ((violation,),) = (answer["violations"] for answer in asked_of_avd([structured]))
    assert "not among the valid values" in violation


def test_queues_have_weights_caps_and_marks_in_units_of_eos() -> None:
    text = rendered("h800-ft", "eos")["dcn-leaf.eos.cfg"]
    kv = "   uc-tx-queue 2\n      no priority\n      bandwidth percent 90\n"
    assert f"{kv}      random-detect ecn minimum-threshold 800000 bytes maximum-threshold 3200000 bytes" in text
    assert "   uc-tx-queue 6\n      priority strict\n      shape rate 10000000 kbps\n" in text  # 5 % of 200 Gbit/s
    assert "qos random-detect ecn allow non-ect\n" in text
    assert "interface Ethernet1/3\n   service-profile FOURLANE-200G\n" in text


def test_pauses_have_a_watchdog_in_seconds() -> None:
    cluster = load_cluster("h800-ft", overrides=["hpn.leaf.down_ports=2", "hpn.leaf.up_ports=2"])
    plan = default_plan(cluster)
    pfc = replace(plan.pfc, detection=Duration.parse("216ms"), action="forward")
    text = render_eos(replace(plan, pfc=pfc), cluster, every_switch=True)["hpn-leaf.eos.cfg"]
    assert "   priority-flow-control priority 5 no-drop\n   priority-flow-control pause watchdog\n" in text
    assert "pause watchdog default timeout 0.22\n" in text
    assert "pause watchdog action notify-only\n" in text
    assert '! Not rendered: pfc.action = "forward"' in text
    assert "egress unicast queue 5 threshold" not in text
    assert "! Not rendered: headroom" in text


def test_a_class_that_trims_is_said_to_be_beyond_eos() -> None:
    cluster = load_cluster("h800-ft")
    plan = default_plan(cluster)
    kv = replace(plan.classes[TrafficClass.KV], trim=True, alpha=16.0)
    text = render_eos(replace(plan, classes={**plan.classes, TrafficClass.KV: kv}), cluster)["dcn-leaf.eos.cfg"]
    assert "! Not rendered: classes.kv.trim" in text
    assert "! Not rendered: classes.kv.alpha = 16; EOS takes 8 at most" in text
    assert "egress unicast queue 2 threshold 8\n" in text
