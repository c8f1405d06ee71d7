"""vLLM's policy without vLLM: tensors in and out, the switch, the map of a file. With it: tests/engines."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from fourlane.errors import SpecError
from fourlane.integrations.vllm import FourlanePolicy, register

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = torch.tensor([[90, 40, 2, 20, 5, 5, 5, 33], [1, 2, 3, 4, 5, 6, 7, 8]])


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.float32, torch.bfloat16])
def test_the_map_is_the_same_for_every_number_type_and_lies_on_the_cpu(kind: torch.dtype) -> None:
    weight = WEIGHT.to(torch.bfloat16).to(kind)
    found = FourlanePolicy.rebalance_experts(weight, 12, 1, 1, 4)
    assert (found.dtype, found.device.type, tuple(found.shape)) == (torch.int64, "cpu", (2, 12))
    assert torch.equal(found, FourlanePolicy.rebalance_experts(weight.double(), 12, 1, 1, 4))


def test_the_hot_expert_has_most_replicas() -> None:
    found = FourlanePolicy.rebalance_experts(WEIGHT, 12, 1, 1, 4)
    assert torch.bincount(found[0]).argmax() == 0


def test_the_map_in_force_is_left_as_it_is() -> None:
    old = FourlanePolicy.rebalance_experts(WEIGHT, 12, 1, 1, 4)
    kept = old.clone()
    FourlanePolicy.rebalance_experts(WEIGHT.flip(1), 12, 1, 1, 4, old)
    assert torch.equal(old, kept)


SAY_MAP = """
import torch
from fourlane.integrations.vllm import FourlanePolicy
weight = torch.arange(512).reshape(2, 256) * 7919 % 1009
first = FourlanePolicy.rebalance_experts(weight, 288, 8, 4, 32)
second = FourlanePolicy.rebalance_experts(weight.flip(0), 288, 8, 4, 32, first)
print(first.tolist(), second.tolist())
"""


def test_processes_with_other_hashes_and_thread_counts_find_the_same_map() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", SAY_MAP],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "4"))
    }
    assert len(found) == 1


def written(path: Path, rows: list[list[int]]) -> str:
    path.write_text(json.dumps({"physical_to_logical_map": rows}))
    return str(path)


def test_the_map_of_a_file_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]] * 2
    monkeypatch.setenv("FOURLANE_VLLM_PLACEMENT", written(tmp_path / "map.json", rows))
    found = FourlanePolicy.rebalance_experts(WEIGHT, 12, 1, 1, 4)
    assert (found.dtype, found.tolist()) == (torch.int64, rows)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([list(range(8))] * 2, r"expected 2 layers of 12 slots as vLLM has, got \(2, 8\)"),
        ([[0, 0, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3]] * 2, "expected no expert twice on one of 4 ranks"),
        ([[0, 1, 2, 3, 4, 5, 6, 9, 0, 1, 2, 3]] * 2, r"expected experts in -1\.\.7"),
    ],
)
def test_a_map_that_vllm_could_not_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[list[int]], says: str
) -> None:
    monkeypatch.setenv("FOURLANE_VLLM_PLACEMENT", written(tmp_path / "map.json", rows))
    with pytest.raises(SpecError, match=rf"map\.json: .*{says}"):
        FourlanePolicy.rebalance_experts(WEIGHT, 12, 1, 1, 4)


def test_registering_touches_nothing_unless_it_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOURLANE_VLLM_EPLB", raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it would fail
    register()


@pytest.mark.parametrize(("name", "value"), [("FOURLANE_VLLM_EPLB", "yes"), ("FOURLANE_EPLB_MOVES", "few")])
def test_a_variable_that_means_nothing_stops_vllm(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("FOURLANE_VLLM_EPLB", "1")
    monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match=f"^{name}: expected"):
        register()


@pytest.mark.parametrize("module", ["vllm", "sglang"])
def test_importing_a_plug_in_loads_neither_its_engine_nor_torch(module: str) -> None:
    code = f"import sys, fourlane.integrations.{module}; print(*sorted({{'torch', '{module}'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == []
