"""SGLang's algorithm without SGLang: tensors in and out, and what is left to SGLang. With it: tests/engines."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fourlane.integrations import sglang

COUNT = torch.tensor([[[90, 40, 2, 20, 5, 5, 5, 33]], [[1, 2, 3, 4, 5, 6, 7, 8]]], dtype=torch.int32)
SIZES: dict[str, Any] = {
    "num_physical_experts": 12,
    "num_local_physical_experts": 3,
    "num_groups": None,
    "num_nodes": 1,
}


def test_the_three_tables_say_the_same() -> None:
    phy2log, log2phy, logcnt = sglang.rebalance_experts(COUNT, **SIZES, algorithm="fourlane")
    assert {table.dtype for table in (phy2log, log2phy, logcnt)} == {torch.int64}
    assert torch.equal(torch.bincount(phy2log[0], minlength=8), logcnt[0])
    for expert in range(8):
        held = log2phy[0, expert, : logcnt[0, expert]]
        assert (phy2log[0, held] == expert).all()
        assert (log2phy[0, expert, logcnt[0, expert] :] == -1).all()


def test_steps_are_summed() -> None:
    one = sglang.rebalance_experts(COUNT, **SIZES, algorithm="fourlane")
    summed = sglang.rebalance_experts(COUNT.sum(dim=0, keepdim=True), **SIZES, algorithm="fourlane")
    assert all(torch.equal(a, b) for a, b in zip(one, summed, strict=True))


def engine_with_map(monkeypatch: pytest.MonkeyPatch, phy2log: torch.Tensor | None) -> None:
    """Put the module in place in which SGLang keeps the map it serves with."""
    location = ModuleType("sglang.srt.eplb.expert_location")
    metadata = None if phy2log is None else SimpleNamespace(physical_to_logical_map_cpu=phy2log)
    location.get_global_expert_location_metadata = lambda: metadata
    monkeypatch.setitem(sys.modules, location.__name__, location)


def test_the_map_in_force_is_started_from(monkeypatch: pytest.MonkeyPatch) -> None:
    phy2log, _, _ = sglang.rebalance_experts(COUNT, **SIZES, algorithm="fourlane")
    elsewhere = phy2log.reshape(1, 4, 3).flip(1).flip(2).reshape(1, 12).to(torch.int32)
    engine_with_map(monkeypatch, elsewhere)
    found, _, _ = sglang.rebalance_experts(COUNT, **SIZES, algorithm="fourlane")
    np.testing.assert_array_equal(found, elsewhere)
    assert not torch.equal(found, phy2log)


def test_there_is_no_map_in_force_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    without = sglang.rebalance_experts(COUNT, **SIZES, algorithm="fourlane")
    engine_with_map(monkeypatch, None)
    assert torch.equal(sglang.rebalance_experts(COUNT, **SIZES, algorithm="fourlane")[0], without[0])


@pytest.fixture
def algorithms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stand in for SGLang's module of algorithms, whose functions say what they were called with."""
    module = ModuleType("sglang.srt.eplb.eplb_algorithms")
    module.compute_algorithm = lambda raw, *rest, **named: ("compute", raw, rest, named)
    module.rebalance_experts = lambda *args, **named: ("rebalance", len(args), named.get("algorithm"))
    for name in ("sglang", "sglang.srt", "sglang.srt.eplb"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules["sglang.srt.eplb"].eplb_algorithms = module
    sglang.patch()
    return module


def test_other_algorithms_are_left_to_sglang(algorithms: ModuleType) -> None:
    assert algorithms.compute_algorithm("auto", 8, num_nodes=4) == ("compute", "auto", (8,), {"num_nodes": 4})
    assert algorithms.rebalance_experts(COUNT, algorithm="deepseek") == ("rebalance", 1, "deepseek")
    assert algorithms.rebalance_experts(COUNT, 12, 3, None, 1, "deepseek") == ("rebalance", 6, None)


def test_our_algorithm_is_ours_by_name_and_by_place(algorithms: ModuleType) -> None:
    chosen = algorithms.compute_algorithm(raw_algorithm="fourlane", num_groups=None, num_nodes=1)
    by_name = algorithms.rebalance_experts(tokens_per_expert=COUNT, **SIZES, algorithm=chosen)
    by_place = algorithms.rebalance_experts(COUNT, *SIZES.values(), chosen)
    assert torch.equal(by_name[0], by_place[0])
    assert tuple(by_name[0].shape) == (1, 12)


def test_patching_again_changes_nothing(algorithms: ModuleType) -> None:
    before = algorithms.rebalance_experts
    sglang.patch()
    assert algorithms.rebalance_experts is before
