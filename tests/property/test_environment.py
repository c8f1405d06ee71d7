"""What is rendered for any sound plan passes the linter; and the linter has an answer to any environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lane_cases import sound_cases
from msgspec.structs import replace

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.environment.effects import read_number
from fourlane.lanes.environment.libraries import KNOBS, STREAMS, home_of
from fourlane.lanes.environment.lint import lint_environment
from fourlane.lanes.environment.reading import known_variables
from fourlane.lanes.render.env import render_env
from fourlane.spec.load import load_cluster
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.lanes.plan import LanePlan
    from fourlane.spec.cluster import Cluster

CARRIERS = {
    TrafficClass.EXPERT: ["deepep-v1", "deepep-v2", "nvshmem", "nccl", "gloo", "sockets"],
    TrafficClass.COLLECTIVE: ["nccl", "gloo", "sockets"],
    TrafficClass.KV: ["ucx", "mooncake", "sockets"],
    TrafficClass.BULK: ["ucx", "mooncake", "nccl", "sockets"],
}


@st.composite
def carried_cases(draw: st.DrawFn) -> tuple[Cluster, LanePlan]:
    """Draw a sound plan whose classes travel on other libraries than the default ones."""
    cluster, plan = draw(sound_cases())
    classes = dict(plan.classes)
    for kind, names in CARRIERS.items():
        carriers = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
        classes[kind] = replace(classes[kind], carriers=tuple(carriers))
    return cluster, replace(plan, classes=classes)


def environment_of(files: dict[str, str], role: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, text in files.items():
        if path.startswith(f"{role}/"):
            found |= known_variables(text.encode(), source=path)
    return found


@given(case=carried_cases())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_rendered_for_a_plan_passes_the_linter(case: tuple[Cluster, LanePlan]) -> None:
    cluster, plan = case
    env = environment_of(render_env(plan, cluster), "decode")
    report = lint_environment(env, (plan, cluster))
    assert [str(finding) for finding in report.findings if finding.severity != "note"] == []
    for row in report.rows:
        if row.tos is not None and row.wanted is not None and "," not in row.wanted:
            assert row.lands_in == row.wanted
    assert {row.stream for row in report.rows} >= {name for name in STREAMS if home_of(plan, cluster, name)}


@given(case=carried_cases(), data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_mark_that_is_changed_is_found(case: tuple[Cluster, LanePlan], data: st.DataObject) -> None:
    cluster, plan = case
    env = environment_of(render_env(plan, cluster), "decode")
    marks = [
        (stream, facts.tos) for stream, facts in STREAMS.items() if facts.tos in env and home_of(plan, cluster, stream)
    ]
    if not marks:
        return
    stream, name = data.draw(st.sampled_from(marks))
    home = home_of(plan, cluster, stream)
    assert home is not None
    others = [tos for tos in range(0, 256, 4) if plan.class_of_dscp().get(tos >> 2) not in home.lanes]
    changed = {**env, name: str(data.draw(st.sampled_from(others)))}
    report = lint_environment(changed, (plan, cluster))
    assert any(finding.severity == "error" and finding.place == name for finding in report.findings)


VALUES = (
    st.text(max_size=12) | st.integers(-300, 300).map(str) | st.sampled_from(["auto", "=mlx5_0", "^mlx5", "all", ""])
)


@given(env=st.dictionaries(st.sampled_from(sorted(KNOBS)), VALUES), with_plan=st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_linter_has_an_answer_to_any_environment(env: dict[str, str], *, with_plan: bool) -> None:
    cluster = load_cluster("h800-ft")
    report = lint_environment(env, (default_plan(cluster), cluster) if with_plan else None, forced={"mlx5_8": 106})
    assert all(finding.does and finding.mend for finding in report.findings)
    assert all(row.tos is None or 0 <= row.tos <= 255 for row in report.rows)


@given(text=st.text(max_size=30) | st.integers(-(10**9), 10**9).map(str), name=st.sampled_from(sorted(KNOBS)))
def test_any_text_is_read_as_a_number_or_a_fault(name: str, text: str) -> None:
    number = read_number(name, text)
    assert number.value is None or KNOBS[name].unit not in ("ToS byte", "service level") or 0 <= number.value <= 255
