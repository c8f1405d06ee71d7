"""The policy in the real vLLM; `scripts/test-engines vllm` makes an environment that has it and runs this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here; scripts/test-engines vllm runs this")

import torch  # noqa: E402 - after the skip
from vllm.distributed.eplb import async_worker, eplb_state, migration_scheduler  # noqa: E402
from vllm.distributed.eplb.policy import EPLB_POLICIES, AbstractEplbPolicy, DefaultEplbPolicy  # noqa: E402

from fourlane.integrations.vllm import FourlanePolicy, register  # noqa: E402
from fourlane.policy.load_generator import DECODE, PREFILL, drift, lognormal, single_hot, zipf  # noqa: E402

WORLD = 4
SIZES = [(32, 32), (64, 64), (128, 128), (144, 32), (8, 0)]
GROUPS, NODES = 8, 4
LOADS = {
    "decode": DECODE.draw,
    "prefill": PREFILL.draw,
    "zipf": lambda rng: zipf(1.0, rng),
    "lognormal": lambda rng: lognormal(0.75, rng),
    "hot": single_hot,
}


def balance(load_LE: np.ndarray, map_LP: np.ndarray, ranks: int) -> np.ndarray:
    """Return max / mean over ranks of each layer, an expert's tokens in equal shares on its replicas."""
    layers, experts = load_LE.shape
    count_LE = np.stack([np.bincount(row, minlength=experts) for row in map_LP])
    share_LP = np.take_along_axis(load_LE / count_LE, map_LP, axis=1)
    rank_LG = share_LP.reshape(layers, ranks, -1).sum(axis=2)
    return rank_LG.max(axis=1) / rank_LG.mean(axis=1)


def received(new_LP: np.ndarray, old_LP: np.ndarray, ranks: int) -> np.ndarray:
    """Return how many experts all ranks together receive in each layer, by vLLM's own count of what is there."""
    return np.array(
        [
            sum(len(set(new) - set(old)) for new, old in zip(*(np.split(row, ranks) for row in rows), strict=True))
            for rows in zip(new_LP, old_LP, strict=True)
        ]
    )


def assert_slots_kept(new_LP: torch.Tensor, old_LP: torch.Tensor, width: int) -> None:
    """Assert that what a rank held and still holds is where it was, by a rank's first slot for it."""
    for new_S, old_S in zip(new_LP.reshape(-1, width).tolist(), old_LP.reshape(-1, width).tolist(), strict=True):
        for expert in set(new_S) & set(old_S):
            assert new_S.index(expert) == old_S.index(expert)


def map_of(policy: Any, load: np.ndarray, redundant: int, ranks: int, old: torch.Tensor | None = None) -> torch.Tensor:
    slots = load.shape[1] + redundant
    groups, nodes = (GROUPS, NODES) if load.shape[1] == 256 else (1, 1)
    return policy.rebalance_experts(torch.from_numpy(load.astype(np.int32)), slots, groups, nodes, ranks, old)


def assert_vllm_can_use(table: torch.Tensor, layers: int, experts: int, slots: int) -> None:
    """Assert what the tests of vLLM's own policy assert: type, device, shape, every expert there; and its maps."""
    assert table.device == torch.device("cpu")
    assert table.dtype == torch.int64
    assert tuple(table.shape) == (layers, slots)
    log2phy, logcnt = eplb_state.compute_logical_maps(table, experts)
    assert (logcnt >= 1).all()
    assert (logcnt.sum(dim=1) == slots).all()
    assert ((log2phy >= 0).sum(dim=2) == logcnt).all()


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("ranks", "redundant"), SIZES)
def test_no_layer_is_worse_than_under_vllms_own_policy(load: str, ranks: int, redundant: int) -> None:
    load_LE = LOADS[load](np.random.default_rng(5))
    theirs = map_of(DefaultEplbPolicy, load_LE, redundant, ranks)
    ours = map_of(FourlanePolicy, load_LE, redundant, ranks)
    layers, experts = load_LE.shape
    assert_vllm_can_use(ours, layers, experts, experts + redundant)
    worse = balance(load_LE, ours.numpy(), ranks) - balance(load_LE, theirs.numpy(), ranks)
    assert worse.max() <= 1e-9
    slots_LGS = np.sort(ours.numpy().reshape(layers, ranks, -1), axis=2)
    assert (np.diff(slots_LGS, axis=2) > 0).all()


def random_case(rng: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """Return loads of three layers, ranks and slots a rank, small."""
    ranks, width = int(rng.integers(2, 33)), int(rng.integers(1, 9))
    experts = int(rng.integers(max(width, ranks * width // 2, 2), ranks * width + 1))
    popularity = np.floor(1 + 1000 * rng.lognormal(0, rng.uniform(0.3, 2), (3, experts)))
    return rng.choice([popularity, popularity % 5, np.floor(popularity**0.5)]) + 1, ranks, width


def test_small_layers_are_worse_only_where_vllms_policy_holds_an_expert_twice_on_a_rank() -> None:
    rng, worse = np.random.default_rng(0), 0
    for _ in range(400):
        load_LE, ranks, width = random_case(rng)
        redundant = ranks * width - load_LE.shape[1]
        theirs, ours = (
            map_of(policy, load_LE, redundant, ranks).numpy() for policy in (DefaultEplbPolicy, FourlanePolicy)
        )
        is_worse_L = balance(load_LE, ours, ranks) > balance(load_LE, theirs, ranks) + 1e-6
        doubled_L = (np.diff(np.sort(theirs.reshape(3, ranks, width), axis=2), axis=2) == 0).any(axis=(1, 2))
        assert (doubled_L | ~is_worse_L).all()
        worse += int(is_worse_L.any())
    assert worse < 40


def test_experts_that_stay_on_their_rank_stay_in_their_slot() -> None:
    load_LE = DECODE.draw(np.random.default_rng(6))
    old = map_of(DefaultEplbPolicy, load_LE, 32, 32)
    new = map_of(FourlanePolicy, drift(load_LE, 0.95, np.random.default_rng(7)), 32, 32, old)
    assert_slots_kept(new, old, 9)


def test_a_budget_of_moves_is_kept_and_vllms_policy_moves_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    load_LE = DECODE.draw(np.random.default_rng(6))
    later_LE = drift(load_LE, 0.95, np.random.default_rng(7))
    old = map_of(FourlanePolicy, load_LE, 32, 32)
    monkeypatch.setenv("FOURLANE_EPLB_MOVES", "32")
    ours = map_of(FourlanePolicy, later_LE, 32, 32, old)
    theirs = map_of(DefaultEplbPolicy, later_LE, 32, 32, old)
    assert received(ours.numpy(), old.numpy(), 32).max() <= 32
    assert received(theirs.numpy(), old.numpy(), 32).min() > 200
    assert balance(later_LE, ours.numpy(), 32).mean() <= 1.02


def test_no_expert_moves_where_the_load_has_not_changed() -> None:
    load_LE = DECODE.draw(np.random.default_rng(6))
    old = map_of(FourlanePolicy, load_LE, 64, 64)
    assert torch.equal(map_of(FourlanePolicy, load_LE, 64, 64, old), old)


def test_the_loads_of_a_profiling_run_are_all_zero_and_move_nothing() -> None:
    first = torch.tensor(eplb_state.EplbState.build_initial_global_physical_to_logical_map(256, 32)).repeat(58, 1)
    new = map_of(FourlanePolicy, np.zeros((58, 256)), 32, 32, first)
    assert_vllm_can_use(new, 58, 256, 288)


def test_new_ranks_whose_slots_are_empty_are_filled() -> None:
    load_LE = DECODE.draw(np.random.default_rng(8))[:4]
    old = map_of(FourlanePolicy, load_LE, 0, 16)
    wider = torch.nn.functional.pad(old, (0, 64), value=-1)
    assert_vllm_can_use(map_of(FourlanePolicy, load_LE, 64, 20, wider), 4, 256, 320)


def test_ranks_that_go_take_no_expert_with_them() -> None:
    load_LE = DECODE.draw(np.random.default_rng(8))[:4]
    old = map_of(FourlanePolicy, load_LE, 64, 20)
    assert_vllm_can_use(map_of(FourlanePolicy, load_LE, 0, 16, old), 4, 256, 256)


def test_the_asynchronous_worker_takes_the_map_and_can_schedule_its_transfers() -> None:
    load_LE = DECODE.draw(np.random.default_rng(9))[:4]
    old = map_of(DefaultEplbPolicy, load_LE, 32, 32)
    window = torch.from_numpy(drift(load_LE, 0.9, np.random.default_rng(1)).astype(np.int32))
    stats = eplb_state.EplbStats(window, num_replicas=288, num_groups=GROUPS, num_nodes=NODES, num_gpus=32)
    states = SimpleNamespace(eplb_stats=stats), SimpleNamespace(policy=FourlanePolicy)
    new = async_worker.run_rebalance_experts(*states, old, None)
    assert_vllm_can_use(new, 4, 256, 288)
    batches = migration_scheduler.schedule_migration_batches_for_layers(9, old.numpy(), new.numpy())
    assert len(batches) == 4


def test_registering_replaces_the_default_only_where_it_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(EPLB_POLICIES)
    try:
        monkeypatch.setenv("FOURLANE_VLLM_EPLB", "0")
        register()
        assert before == EPLB_POLICIES
        monkeypatch.setenv("FOURLANE_VLLM_EPLB", "1")
        register()
        assert EPLB_POLICIES["default"] is EPLB_POLICIES["fourlane"] is FourlanePolicy
        assert issubclass(FourlanePolicy, AbstractEplbPolicy)
    finally:
        EPLB_POLICIES.clear()
        EPLB_POLICIES.update(before)


def ranks_of_vllm(folder: Path, **environment: str) -> list[dict[str, np.ndarray]]:
    """Run vLLM's balancer on four processes and return what each ended with."""
    program, store = Path(__file__).with_name("vllm_rank.py"), folder / "store"
    outs = [folder / f"{rank}.npz" for rank in range(WORLD)]
    with (folder / "log").open("wb") as log:
        ranks = [
            subprocess.Popen(
                [sys.executable, program, str(rank), str(WORLD), store, out],
                env={**os.environ, "VLLM_PLUGINS": "fourlane", **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank, out in enumerate(outs)
        ]
        try:
            codes = [rank.wait(timeout=150) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    assert codes == [0] * WORLD, (folder / "log").read_text()[-3000:]
    return [dict(np.load(out)) for out in outs]


@pytest.mark.timeout(200)
def test_vllms_own_state_moves_the_weights_our_plug_in_asks_for(tmp_path: Path) -> None:
    ends = ranks_of_vllm(tmp_path, FOURLANE_VLLM_EPLB="1")
    layer_L1 = np.arange(len(ends[0]["map0"]))[:, None]
    for step in range(2):
        map_LP, load_LE = ends[0][f"map{step}"], ends[0][f"load{step}"]
        width = map_LP.shape[1] // WORLD
        theirs = map_of(DefaultEplbPolicy, load_LE, map_LP.shape[1] - load_LE.shape[1], WORLD).numpy()
        assert (balance(load_LE, map_LP, WORLD) <= balance(load_LE, theirs, WORLD) + 1e-9).all()
        for rank, end in enumerate(ends):
            assert str(end["policy"]) == "FourlanePolicy"
            np.testing.assert_array_equal(end[f"map{step}"], map_LP)
            held_LS = map_LP[:, rank * width : (rank + 1) * width]
            np.testing.assert_array_equal(end[f"weight{step}"], 1000 * layer_L1 + held_LS)
    assert (ends[0]["map0"] != ends[0]["map1"]).any()


@pytest.mark.timeout(200)
def test_vllm_keeps_to_the_map_of_a_file(tmp_path: Path) -> None:
    map_LP = np.stack([np.random.default_rng(layer).permutation(16) for layer in range(3)])
    map_LP = np.concatenate([map_LP, map_LP[:, :8]], axis=1)
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"physical_to_logical_map": map_LP.tolist()}))
    ends = ranks_of_vllm(tmp_path, FOURLANE_VLLM_EPLB="1", FOURLANE_VLLM_PLACEMENT=str(path))
    for end in ends:
        np.testing.assert_array_equal(end["map0"], map_LP)
        np.testing.assert_array_equal(end["map1"], map_LP)


@pytest.mark.timeout(200)
def test_vllm_is_left_alone_where_the_plug_in_is_not_switched_on(tmp_path: Path) -> None:
    ends = ranks_of_vllm(tmp_path)
    assert {str(end["policy"]) for end in ends} == {"DefaultEplbPolicy"}
