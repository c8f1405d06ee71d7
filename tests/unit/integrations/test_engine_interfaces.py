"""Our functions have the signatures of the engines' own, as recorded by tools/record_engine_interfaces.py."""

from __future__ import annotations

import inspect
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fourlane.integrations import sglang, vllm

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
RECORDED = {path.stem: json.loads(path.read_text()) for path in (ROOT / "tests" / "golden" / "engines").glob("*.json")}
VLLM = "vllm.distributed.eplb.policy"
SGLANG = "sglang.srt.eplb"


def parameters_of(function: Callable[..., Any]) -> list[dict[str, str]]:
    """Return a function's parameters as they are recorded, without annotations: those we write more narrowly."""
    return [
        {"name": parameter.name, "kind": parameter.kind.name}
        | ({} if parameter.default is inspect.Parameter.empty else {"default": repr(parameter.default)})
        for parameter in inspect.signature(function).parameters.values()
    ]


def recorded_parameters(engine: str, place: str) -> list[dict[str, str]]:
    return [
        {key: value for key, value in parameter.items() if key != "annotation"}
        for parameter in RECORDED[engine]["functions"][place]["parameters"]
    ]


@pytest.mark.parametrize(
    ("ours", "engine", "theirs"),
    [
        (vllm.FourlanePolicy.rebalance_experts, "vllm", f"{VLLM}.abstract:AbstractEplbPolicy.rebalance_experts"),
        (vllm.FourlanePolicy.rebalance_experts, "vllm", f"{VLLM}.default:DefaultEplbPolicy.rebalance_experts"),
        (sglang.rebalance_experts, "sglang", f"{SGLANG}.eplb_algorithms:rebalance_experts"),
    ],
    ids=["vllm-abstract", "vllm-default", "sglang"],
)
def test_a_balancer_takes_what_the_engine_gives_its_own(ours: Callable[..., Any], engine: str, theirs: str) -> None:
    assert parameters_of(ours) == recorded_parameters(engine, theirs)


def test_vllms_policy_has_all_that_is_abstract_in_vllms() -> None:
    abstract = RECORDED["vllm"]["values"][f"{VLLM}.abstract:AbstractEplbPolicy.__abstractmethods__"]
    assert abstract
    assert all(callable(getattr(vllm.FourlanePolicy, name)) for name in abstract)


def test_the_policy_replaced_is_the_only_one_vllm_has() -> None:
    assert RECORDED["vllm"]["values"][f"{VLLM}:EPLB_POLICIES"] == ["default"]


def test_sglang_has_no_algorithm_of_our_name() -> None:
    assert sglang.ALGORITHM not in RECORDED["sglang"]["values"][f"{SGLANG}.eplb_algorithms:EplbAlgorithm"]


def test_sglang_takes_the_key_of_an_initial_location_as_an_argument() -> None:
    place = f"{SGLANG}.expert_location:ExpertLocationMetadata.init_by_mapping"
    assert "physical_to_logical_map" in {entry["name"] for entry in recorded_parameters("sglang", place)}


def test_sglang_keeps_the_map_in_force_where_it_is_looked_for() -> None:
    fields = RECORDED["sglang"]["values"][f"{SGLANG}.expert_location:ExpertLocationMetadata.__dataclass_fields__"]
    assert "physical_to_logical_map_cpu" in fields
    assert recorded_parameters("sglang", f"{SGLANG}.expert_location:get_global_expert_location_metadata") == []


@pytest.mark.parametrize(
    ("engine", "group", "target"),
    [
        ("vllm", "vllm.plugins:DEFAULT_PLUGINS_GROUP", "fourlane.integrations.vllm:register"),
        ("sglang", "sglang.srt.plugins:GENERAL_PLUGINS_GROUP", "fourlane.integrations.sglang:register"),
    ],
)
def test_the_plug_in_is_declared_in_the_group_the_engine_looks_in(engine: str, group: str, target: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][RECORDED[engine]["values"][group]] == {"fourlane": target}


@pytest.mark.parametrize("engine", sorted(RECORDED))
def test_the_guide_names_the_version_that_was_recorded(engine: str) -> None:
    guide = (ROOT / "docs" / "guides" / "experts-engines.md").read_text()
    assert f"{RECORDED[engine]['distribution']} {RECORDED[engine]['version']}" in guide
