"""Scenario files: those shipped run, and every fault of a file is told at once, by its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fourlane.errors import SpecError
from fourlane.twin.fabric.file_workloads import hosts_of
from fourlane.twin.fabric.scenario_file import load_scenario

EXAMPLE = Path(__file__).parents[4] / "examples" / "02_fabric"
TINY = """
[topology]
builder = "leaf-spine"
leaves = 2
hosts_per_leaf = 2
spines = 2
[workloads.load]
pattern = "permutation"
size = "10kB"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text)
    return path


def faults_of(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_scenario(write(folder, text), overrides=overrides).compile()
    return list(caught.value.faults)


def test_the_example_prints_what_it_says() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    run = subprocess.run(
        [sys.executable, EXAMPLE / "run.py"], capture_output=True, text=True, timeout=100, check=True, env=environment
    )
    assert run.stdout == (EXAMPLE / "expected.out").read_text()


def test_the_incast_of_the_example_has_its_closed_form() -> None:
    assert f"{load_scenario(EXAMPLE / 'incast.toml').run().makespan_us:.1f}" == "1367.2"


def test_the_failure_of_the_example_loses_packets_and_no_flows() -> None:
    result = load_scenario(EXAMPLE / "failure.toml").run()
    assert result.flows_finished == result.flows
    assert result.total("drops") > 0
    assert len(result.sample_us) > 10


def test_layers_of_the_example_follow_each_other_beside_the_training_job() -> None:
    scenario = load_scenario(EXAMPLE / "decode_layers.toml", overrides=["workloads.training.size=1MB"])
    made = scenario.compile()
    assert made.class_names == ("expert", "collective")
    result = scenario.run()
    assert result.flows_finished == result.flows
    first = dict(made.flow_groups)
    ends = [result.delivered_us[first[name]] for name in ("attention 0", "experts 0", "attention 1", "experts 1")]
    assert np.diff(ends).min() > 40
    assert result.percentile("expert", 99) > 0


def test_overrides_change_any_field(tmp_path: Path) -> None:
    path = write(tmp_path, TINY)
    overrides = ["topology.spines=1", "workloads.load.size=2MB", "every.routing=adaptive", "seed=7"]
    scenario = load_scenario(path, overrides=overrides)
    assert scenario.topology.switches == 3
    assert scenario.flows.size.tolist() == [2_000_000]
    assert scenario.compile().class_routing.tolist() == [4]
    assert scenario.settings.seed == 7


def test_workloads_wait_for_those_they_name(tmp_path: Path) -> None:
    later = '[workloads.later]\npattern = "incast"\nsize = "1kB"\nafter = ["load"]\ndelay = "3us"\ntraffic = "kv"\n'
    result = load_scenario(write(tmp_path, TINY + later)).run()
    assert result.class_names == ("expert", "kv")
    earlier = result.delivered_us[result.flows_of("expert")].max()
    assert result.start_us[result.flows_of("kv")].min() == pytest.approx(earlier + 3)


@pytest.mark.parametrize("pattern", ["expert-dispatch", "expert-combine"])
@pytest.mark.parametrize("kernels", ["low-latency", "normal"])
def test_expert_traffic_can_be_asked_for(tmp_path: Path, pattern: str, kernels: str) -> None:
    text = f"""
plan = "default"
[topology]
cluster = "h800-ft"
servers = 2
[workloads.exchange]
pattern = "{pattern}"
[workloads.exchange.experts]
ranks = 16
tokens = 4
experts = 64
kernels = "{kernels}"
"""
    result = load_scenario(write(tmp_path, text)).run()
    assert result.flows_finished == result.flows > 16


def test_a_plan_beside_the_file_is_found(tmp_path: Path) -> None:
    from fourlane.lanes.default_plan import default_plan
    from fourlane.spec.load import load_cluster, render

    (tmp_path / "plan.toml").write_text(render(default_plan(load_cluster("h800-ft"))))
    scenario = load_scenario(write(tmp_path, 'plan = "plan.toml"\n' + TINY))
    assert scenario.compile().queue_names == ("default", "bulk", "kv", "collective", "expert", "control")


def test_all_faults_of_a_file_are_told_at_once_by_place(tmp_path: Path) -> None:
    text = """
seed = -1
rooting = "ecmp"
[topology]
builder = "leaf-spine"
leaves = 0
k = 4
[workloads.one]
pattern = "permutation"
size = 5
[workloads.two]
pattern = "incast"
size = "1kB"
hosts = "0-3"
sources = "7-3"
after = ["three"]
[packets]
payload = "0B"
"""
    unknown, bare = faults_of(tmp_path, text)
    assert unknown.startswith("scenario.toml: rooting: unknown key; known: seed, ")
    assert bare.startswith('scenario.toml: workloads.one.size: expected a size such as "64KiB", got 5 (a bare number')
    form_right = text.replace('rooting = "ecmp"\n', "").replace("size = 5", 'size = "5kB"')
    assert [fault.removeprefix("scenario.toml: ").partition(":")[0] for fault in faults_of(tmp_path, form_right)] == [
        "packets.payload",
        "seed",
        "topology.k",
        "topology.leaves",
        "workloads.two.hosts",
        "workloads.two.sources",
        "workloads.two.after",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("topology.cluster=h800-ft", "topology: expected either cluster"),
        ("topology.rate=400", "topology.rate: expected a rate"),
        ("topology.builder=torus", "topology.builder: expected"),
        ("workloads=", "workloads: expected at least one table"),
        ("workloads.load.size=", 'workloads.load.size: pattern "permutation" needs it'),
        ("workloads.load.size=-5kB", "workloads.load.size: expected a size"),
        ("workloads.load.size=0B", "workloads.load.size: expected at least 1B"),
        ("workloads.load.hosts=0-99", "workloads.load: .*expected a host from 0 to 3, got 4"),
        ("workloads.load.hosts=all", "workloads.load.hosts: expected hosts such as"),
        ("workloads.load.utilisation=0.5", 'workloads.load.utilisation: pattern "permutation" has none'),
        ("workloads.load.pattern=poisson", 'workloads.load.utilisation: pattern "poisson" needs it'),
        ("workloads.load.pattern=ring", "workloads.load.pattern: expected"),
        ("workloads.load.repeat=0", "workloads.load.repeat: expected a whole number from 1"),
        ("every.window_bdp=nan", "every.window_bdp: expected a number"),
        ("plan=default", "plan: expected topology.cluster"),
        ("plan=none.toml", "plan: .*none.toml"),
        ("queues.data.alpha=0.0", "queues.data.alpha"),
    ],
)
def test_a_faulty_field_is_named(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_scenario(write(tmp_path, TINY), overrides=[change]).compile()


def test_spans_of_hosts_are_written_in_brief() -> None:
    assert hosts_of("3") == [3]
    assert hosts_of("0-3, 8, 16-31/8") == [0, 1, 2, 3, 8, 16, 24]
    for text in ("", "-1", "3-1", "1-9/0", "a", "1;2"):
        with pytest.raises(ValueError, match="expected hosts such as"):
            hosts_of(text)
