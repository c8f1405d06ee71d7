"""Manifests: valid by Kubernetes' own schema, pods that know their place in a unit, YAML that reads back."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml as reader
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import option, rendered, small_units, twin

from fourlane.planner.targets.yaml import yaml
from fourlane.spec.twin import TwinPool

SCHEMA = json.loads((Path(__file__).parents[2] / "golden" / "kubernetes" / "schema.json").read_text(encoding="utf-8"))


def manifests(files: dict[str, str]) -> list[dict[str, Any]]:
    return [found for path in sorted(files) if path.endswith(".yaml") for found in reader.safe_load_all(files[path])]


def named(files: dict[str, str], kind: str, name: str) -> dict[str, Any]:
    return next(each for each in manifests(files) if each["kind"] == kind and each["metadata"]["name"] == name)


def cases() -> list[Any]:
    qwen = twin("qwen3-30b-a3b", prefill=TwinPool(units=1, ranks=16), decode=TwinPool(units=1, ranks=16))
    return [
        (twin(), "vllm"),
        (twin(), "sglang"),
        (small_units(), "vllm"),
        (small_units(), "sglang"),
        (qwen, "fourlane"),
    ]


@pytest.mark.parametrize(("wanted", "engine"), cases())
def test_every_manifest_is_valid_by_kubernetes_schema(wanted: Any, engine: str) -> None:
    found = manifests(rendered(wanted, engine, "kubernetes").files)
    assert {each["kind"] for each in found} == set(SCHEMA["kinds"])
    for each in found:
        schema = {"$ref": f"#/$defs/{SCHEMA['kinds'][each['kind']]}", "$defs": SCHEMA["$defs"]}
        jsonschema.Draft202012Validator(schema).validate(each)


def test_the_schema_refuses_what_kubernetes_would() -> None:
    (service, *_) = [
        each for each in manifests(rendered(twin(), "vllm", "kubernetes").files) if each["kind"] == "Service"
    ]
    schema = {"$ref": f"#/$defs/{SCHEMA['kinds']['Service']}", "$defs": SCHEMA["$defs"]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**service, "spec": {**service["spec"], "selecter": {}}})


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_a_pod_for_every_server_with_its_gpus(engine: str) -> None:
    files = rendered(twin(), engine, "kubernetes").files
    pods = named(files, "StatefulSet", "wide-decode")["spec"]
    assert pods["replicas"] == 8
    (container,) = pods["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert named(files, "StatefulSet", "wide-prefill")["spec"]["replicas"] == 8
    assert pods["serviceName"] == named(files, "Service", "wide-decode")["metadata"]["name"]


def files_of_pod(files: dict[str, str], folder: Path) -> Path:
    """Lay out what a pod sees at /fourlane."""
    data = named(files, "ConfigMap", next(m["metadata"]["name"] for m in manifests(files) if m["kind"] == "ConfigMap"))
    sets = [each for each in manifests(files) if each["kind"] == "StatefulSet"]
    (volume,) = [v for v in sets[0]["spec"]["template"]["spec"]["volumes"] if v["name"] == "files"]
    for item in volume["projected"]["sources"][0]["configMap"]["items"]:
        path = folder / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data["data"][item["key"]], encoding="utf-8")
        path.chmod(0o755)
    return folder


def pod_runs(folder: Path, part: str, index: int = 0) -> list[str]:
    done = subprocess.run(
        ["bash", "pod.sh", part],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "DRY_RUN": "1", "HOST": "10.0.0.9", "POD_INDEX": str(index)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return shlex.split(done.stdout)


def test_a_pod_finds_its_unit_by_its_number(tmp_path: Path) -> None:
    folder = files_of_pod(rendered(twin(), "vllm", "kubernetes").files, tmp_path)
    words = pod_runs(folder, "prefill", 6)
    assert option(words, "--data-parallel-address") == "wide-prefill-4.wide-prefill"
    assert option(words, "--data-parallel-start-rank") == "16"
    assert option(words, "--port") == "8000"


def test_pods_of_units_that_may_share_a_server_have_ports_of_their_own(tmp_path: Path) -> None:
    folder = files_of_pod(rendered(small_units(), "sglang", "kubernetes").files, tmp_path)
    assert [option(pod_runs(folder, "prefill", n), "--port") for n in range(3)] == ["30000", "30001", "30002"]
    words = pod_runs(folder, "router")
    assert words.count("--prefill") == 3
    assert "http://small-prefill-2.small-prefill:30002" in words


def test_a_probe_asks_the_port_that_the_pod_listens_on() -> None:
    files = rendered(small_units(), "vllm", "kubernetes").files
    (container,) = named(files, "StatefulSet", "small-prefill")["spec"]["template"]["spec"]["containers"]
    assert "8000 + POD_INDEX" in container["readinessProbe"]["exec"]["command"][-1]


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.text("ab:# -\n'\"", max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(values)
def test_what_is_written_as_yaml_reads_back_equal(value: object) -> None:
    assert reader.safe_load(yaml(value)) == value
