"""Plans as JSON: they keep to the published schema, and say what the plan says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from lane_cases import sound_cases
from lane_goldens import CLUSTERS, kept, rendered

from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import LanePlan
from fourlane.lanes.render import render
from fourlane.lanes.render.export import SCHEMA_FILE, plan_schema
from fourlane.spec.load import load_cluster
from fourlane.spec.reading import read_struct

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
DOCUMENTED = Path(__file__).parents[4] / "docs/reference/lane_plan.schema.json"
SCHEMA = json.loads(plan_schema())


def exported(plan: LanePlan) -> dict[str, Any]:
    return json.loads(render(plan, load_cluster("h800-ft"), "json")["json/plan.json"])


def test_the_published_schema_is_the_present_one() -> None:
    mend = 'write it again: python -c "from fourlane.lanes.render.export import *; print(plan_schema(), end=str())"'
    assert SCHEMA_FILE.read_text() == plan_schema(), mend
    assert DOCUMENTED.read_text() == plan_schema(), mend


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_exported_plan_is_the_golden_one(name: str) -> None:
    assert rendered(name, "json") == kept(name, "json")


def test_the_schema_is_one_itself() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@given(case=sound_cases())
@settings(max_examples=40)
def test_every_exported_plan_keeps_to_the_schema_and_reads_back(case: tuple[object, LanePlan]) -> None:
    _, plan = case
    data = exported(plan)
    jsonschema.validate(data, SCHEMA)
    assert read_struct(LanePlan, data) == (plan, [])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("classes", "expert", "dscp"), 64),
        (("classes", "expert", "queue"), 99),
        (("classes", "expert", "reserved"), 64),
        (("classes", "expert", "reserved"), "64"),
        (("classes", "expert", "colour"), "red"),
        (("classes", "expert", "routing"), "random"),
        (("classes", "experts"), {}),
        (("classes", "kv", "ecn", "kmin"), "400Gbps"),
        (("pfc", "poll"), "100"),
        (("version",), 2),
    ],
)
def test_the_schema_refuses_what_a_plan_file_may_not_say(place: tuple[str, ...], value: object) -> None:
    data = exported(default_plan(load_cluster("h800-ft")))
    table = data
    for part in place[:-1]:
        table = table[part]
    table[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)
