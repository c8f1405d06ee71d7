"""The algorithm and the files in the real SGLang; `scripts/test-engines sglang` makes an environment and runs this."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("sglang", reason="SGLang is not installed here; scripts/test-engines sglang runs this")

import torch
from sglang.srt.eplb import eplb_algorithms, expert_distribution, expert_location
from sglang.srt.eplb.eplb_simulator.reader import read_mode_per_pass
from sglang.srt.runtime_context import get_context, get_resources

from fourlane.integrations import sglang as ours
from fourlane.policy.load_generator import DECODE, PREFILL, drift, lognormal, single_hot, zipf
from fourlane.policy.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZES = [(32, 32), (64, 64), (144, 32)]
GROUPS, NODES = 8, 4
LOADS = {
    "decode": DECODE.draw,
    "prefill": PREFILL.draw,
    "zipf": lambda rng: zipf(1.0, rng),
    "lognormal": lambda rng: lognormal(0.75, rng),
    "hot": single_hot,
}


@pytest.fixture(autouse=True)
def _patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add our algorithm to SGLang's for one test."""
    for name in ("compute_algorithm", "rebalance_experts"):
        monkeypatch.setattr(eplb_algorithms, name, getattr(eplb_algorithms, name))
    ours.patch()


@contextmanager
def serving(shape: tuple[int, int], *, ranks: int, redundant: int, **fields: object) -> Iterator[None]:
    """Give SGLang the settings of a server on CPUs, and the sizes of a model in place of a checkpoint's."""
    layers, experts = shape
    sizes = expert_location.ModelConfigForExpertLocation(layers, experts, GROUPS)
    settings = {"device": "cpu", "tp_size": ranks, "ep_size": ranks, "ep_num_redundant_experts": redundant, "nnodes": 1}
    with pytest.MonkeyPatch.context() as patch, get_context().override_server_args(**settings, **fields):
        patch.setattr(expert_location.ModelConfigForExpertLocation, "from_model_config", staticmethod(lambda _: sizes))
        yield


def balance(load_LE: np.ndarray, count_LE: np.ndarray, map_LP: np.ndarray, ranks: int) -> np.ndarray:
    """Return max / mean over ranks of each layer, an expert's tokens in equal shares on its replicas."""
    share_LP = np.take_along_axis(load_LE / count_LE, map_LP, axis=1)
    rank_LG = share_LP.reshape(len(load_LE), ranks, -1).sum(axis=2)
    return rank_LG.max(axis=1) / rank_LG.mean(axis=1)


def tables(algorithm: str, load_LE: np.ndarray, redundant: int, ranks: int) -> tuple[np.ndarray, ...]:
    """Return what SGLang's own entry point returns under an algorithm's name."""
    slots = load_LE.shape[1] + redundant
    steps = torch.from_numpy(np.stack([load_LE // 2, load_LE - load_LE // 2]).astype(np.int32))
    chosen = eplb_algorithms.compute_algorithm(raw_algorithm=algorithm, num_groups=GROUPS, num_nodes=NODES)
    found = eplb_algorithms.rebalance_experts(
        tokens_per_expert=steps,
        num_physical_experts=slots,
        num_local_physical_experts=slots // ranks,
        num_groups=GROUPS,
        num_nodes=NODES,
        algorithm=chosen,
    )
    assert all(table.device == torch.device("cpu") for table in found)
    return tuple(table.numpy() for table in found)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("ranks", "redundant"), SIZES)
def test_no_layer_is_worse_than_under_sglangs_own_algorithm(load: str, ranks: int, redundant: int) -> None:
    load_LE = LOADS[load](np.random.default_rng(5))
    phy2log, _, logcnt = tables("deepseek", load_LE, redundant, ranks)
    theirs_L = balance(load_LE, logcnt, phy2log, ranks)
    phy2log, log2phy, logcnt = tables("fourlane", load_LE, redundant, ranks)
    assert (balance(load_LE, logcnt, phy2log, ranks) <= theirs_L + 1e-9).all()
    assert phy2log.dtype == log2phy.dtype == logcnt.dtype == np.int64
    layers, experts = load_LE.shape
    for layer in range(layers):
        for expert in range(experts):
            held = log2phy[layer, expert, : logcnt[layer, expert]]
            assert (phy2log[layer, held] == expert).all()
            assert (log2phy[layer, expert, logcnt[layer, expert] :] == -1).all()
            assert len(set(held // (phy2log.shape[1] // ranks))) == len(held)


def test_sglangs_own_algorithms_are_as_before() -> None:
    load_LE = DECODE.draw(np.random.default_rng(2))[:3]
    assert eplb_algorithms.compute_algorithm("auto", 8, 4) is eplb_algorithms.EplbAlgorithm.deepseek_hierarchical
    found = tables("deepseek", load_LE, 32, 32)
    weight = torch.from_numpy(load_LE.astype(np.int32))
    plain = eplb_algorithms.deepseek.rebalance_experts(weight, 288, 8, 4, 32, enable_hierarchical=False)
    for ours_now, theirs in zip(found, plain, strict=True):
        np.testing.assert_array_equal(ours_now, theirs.numpy())


def test_patching_twice_is_patching_once() -> None:
    before = eplb_algorithms.rebalance_experts
    ours.patch()
    assert eplb_algorithms.rebalance_experts is before


def test_an_unknown_algorithm_is_still_refused() -> None:
    with pytest.raises(KeyError, match="fourlanes"):
        eplb_algorithms.compute_algorithm("fourlanes", 8, 4)


@pytest.mark.parametrize("suffix", [".json", ".pt"])
@pytest.mark.parametrize("dense", [0, 3])
def test_sglang_starts_from_our_initial_locations(tmp_path: Path, suffix: str, dense: int) -> None:
    load_LE = DECODE.draw(np.random.default_rng(3))[:4]
    phy2log, log2phy, logcnt = tables("fourlane", load_LE, 32, 32)
    path = tmp_path / f"init{suffix}"
    ours.write_init_expert_location(path, Placement(phy2log, experts=256, ranks=32), dense_layers=dense)
    with serving((4 + dense, 256), ranks=32, redundant=32, init_expert_location=str(path)):
        made = expert_location.compute_initial_expert_location_metadata(None, moe_ep_rank=5)
    assert made.ep_size == 32
    np.testing.assert_array_equal(made.physical_to_logical_map[dense:].numpy(), phy2log)
    np.testing.assert_array_equal(made.logical_to_all_physical_map_num_valid[dense:].numpy(), logcnt)
    np.testing.assert_array_equal(made.logical_to_all_physical_map[dense:, :, : log2phy.shape[2]].numpy(), log2phy)


def test_sglang_rebalances_with_our_algorithm_from_the_map_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURLANE_EPLB_MOVES", "32")
    load_LE = DECODE.draw(np.random.default_rng(3))[:4]
    later_LE = drift(load_LE, 0.95, np.random.default_rng(4))
    arguments = {"ranks": 32, "redundant": 32, "eplb_algorithm": "fourlane", "ep_dispatch_algorithm": "dynamic"}
    with serving((4, 256), **arguments):
        first = expert_location.ExpertLocationMetadata.init_by_eplb(
            None, torch.from_numpy(load_LE), use_flat_topology=1
        )
        monkeypatch.setattr(get_resources(), "expert_location_metadata", first)
        later = expert_location.ExpertLocationMetadata.init_by_eplb(None, torch.from_numpy(later_LE))
    moved_L = np.zeros(4, dtype=int)
    before, after = (made.physical_to_logical_map.numpy().reshape(4, 32, 9) for made in (first, later))
    for layer in range(4):
        for rank in range(32):
            moved_L[layer] += len(set(after[layer, rank]) - set(before[layer, rank]))
    assert (moved_L > 0).all()
    assert (moved_L <= 32).all()
    count_LE = later.logical_to_all_physical_map_num_valid.numpy()
    assert balance(later_LE, count_LE, later.physical_to_logical_map.numpy(), 32).mean() <= 1.02


def test_a_recording_of_passes_is_read_as_sglangs_own_reader_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    map_LP = torch.from_numpy(np.stack([rng.permutation(np.r_[0:8, 0:4]) for _ in range(3)]))
    for rank in range(2):
        records = [
            {
                "forward_pass_id": step,
                "rank": rank,
                "gatherer_key": "primary",
                "global_physical_count": torch.from_numpy(rng.integers(0, 9, (3, 12))),
            }
            for step in (4, 2, 3)
        ]
        torch.save({"records": records, "last_physical_to_logical_map": map_LP}, tmp_path / f"{rank}.pt")
    theirs = read_mode_per_pass(tmp_path)["global_physical_count_of_forward_pass"]
    counted = expert_distribution._convert_global_physical_count_to_logical_count(theirs, 3, 8, map_LP)
    read = ours.read_recorded_loads(*sorted(tmp_path.glob("*.pt")))
    np.testing.assert_array_equal(read.load_WLE, counted.numpy())


LOAD_PLUGINS = """
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.eplb import eplb_algorithms
import torch
chosen = eplb_algorithms.compute_algorithm(raw_algorithm="fourlane", num_groups=4, num_nodes=1)
count = torch.arange(16).reshape(1, 1, 16) ** 2
tables = eplb_algorithms.rebalance_experts(tokens_per_expert=count, num_physical_experts=24,
    num_local_physical_experts=6, num_groups=4, num_nodes=1, algorithm=chosen)
print("FOUND", chosen, *tables[2].flatten().tolist())
"""


def test_sglang_finds_the_plug_in_and_hooks_it_in() -> None:
    run = subprocess.run([sys.executable, "-c", LOAD_PLUGINS], capture_output=True, text=True, timeout=100, check=True)
    [line] = [line for line in run.stdout.splitlines() if line.startswith("FOUND")]
    chosen, *counts = line.split()[1:]
    assert chosen == "fourlane"
    assert sum(map(int, counts)) == 24
    assert int(counts[15]) > int(counts[1]) == 1
