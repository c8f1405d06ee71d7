"""Compare the placements of vLLM's and SGLang's balancers with ours, on drawn loads, in one run.

Run it where the engine can be imported, with fourlane beside it:

    python tools/compare_engine_balancers.py vllm
    python tools/compare_engine_balancers.py sglang

Balance is max / mean over ranks with an expert's tokens in equal shares on its replicas: mean and worst of 58 layers
under decode loads. "moved" is the experts a layer receives when the load has drifted (rho 0.95), from the engine's
default or from ours. The engine's default keeps groups in nodes (of 8 ranks) wherever their numbers divide.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch

from fourlane.integrations import eplb, sglang, vllm
from fourlane.policy.load_generator import DECODE, drift

SIZES = [(32, 32), (64, 64), (128, 128), (144, 32)]
GROUPS = 8


def bounded(balancer: Any) -> Any:
    """Return a balancer that moves at most 32 experts a layer."""

    def run(*arguments: Any) -> np.ndarray:
        os.environ[eplb.MOVES] = "32"
        try:
            return balancer(*arguments)
        finally:
            del os.environ[eplb.MOVES]

    return run


def balancers(engine: str) -> dict[str, Any]:
    """Return functions of load, slots, ranks, nodes and the map in force, by name."""
    if engine == "vllm":
        from vllm.distributed.eplb.policy import DefaultEplbPolicy

        def of(policy: Any, groups: int) -> Any:
            def run(load: np.ndarray, slots: int, ranks: int, nodes: int, held: np.ndarray | None) -> np.ndarray:
                old = None if held is None else torch.from_numpy(held)
                weight = torch.from_numpy(load.astype(np.int32))
                return policy.rebalance_experts(weight, slots, groups, nodes if groups > 1 else 1, ranks, old).numpy()

            return run

        return {
            "vllm default": of(DefaultEplbPolicy, GROUPS),
            "vllm global": of(DefaultEplbPolicy, 1),
            "fourlane": of(vllm.FourlanePolicy, GROUPS),
            "fourlane 32": bounded(of(vllm.FourlanePolicy, GROUPS)),
        }
    from sglang.srt.eplb import eplb_algorithms

    def named(algorithm: str) -> Any:
        def run(load: np.ndarray, slots: int, ranks: int, nodes: int, held: np.ndarray | None) -> np.ndarray:
            steps = torch.from_numpy(load[None].astype(np.int32))
            chosen = eplb_algorithms.compute_algorithm(algorithm, GROUPS, nodes)
            sizes = (slots, slots // ranks, GROUPS, nodes)
            if algorithm == sglang.ALGORITHM:
                moves = eplb.read_moves(os.environ)
                return eplb.map_slots(load, ranks=ranks, slots=slots, held_LP=held, moves=moves)
            return eplb_algorithms.rebalance_experts(steps, *sizes, chosen)[0].numpy()

        return run

    sglang.patch()
    return {
        "sglang auto": named("auto"),
        "sglang global": named("deepseek"),
        "fourlane": named("fourlane"),
        "fourlane 32": bounded(named("fourlane")),
    }


def balance(load_LE: np.ndarray, map_LP: np.ndarray, ranks: int) -> np.ndarray:
    """Return max / mean of each layer."""
    count_LE = np.stack([np.bincount(row, minlength=load_LE.shape[1]) for row in map_LP])
    rank_LG = np.take_along_axis(load_LE / count_LE, map_LP, axis=1).reshape(len(load_LE), ranks, -1).sum(axis=2)
    return rank_LG.max(axis=1) / rank_LG.mean(axis=1)


def moved(new_LP: np.ndarray, old_LP: np.ndarray, ranks: int) -> float:
    """Return experts received a layer, in the mean."""
    rows = [
        zip(*(table.reshape(len(table), ranks, -1)[layer] for table in (new_LP, old_LP)), strict=True)
        for layer in range(len(new_LP))
    ]
    return statistics.mean(sum(len(set(new) - set(old)) for new, old in row) for row in rows)


def compare(name: str, balancer: Any, ranks: int, redundant: int) -> None:
    """Print one line: balance and time of a fresh map, then of the next one after a drift."""
    load_LE = DECODE.draw(np.random.default_rng(11))
    later_LE = drift(load_LE, 0.95, np.random.default_rng(12))
    slots, nodes = 256 + redundant, ranks // 8
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        map_LP = balancer(load_LE, slots, ranks, nodes, None)
        seconds.append(time.perf_counter() - begin)
    next_LP = balancer(later_LE, slots, ranks, nodes, map_LP)
    fresh_L, next_L = balance(load_LE, map_LP, ranks), balance(later_LE, next_LP, ranks)
    print(
        f"EP{ranks}+{redundant:<4}{name:15}{fresh_L.mean():8.4f}{fresh_L.max():8.4f}"
        f"{1000 * statistics.median(seconds):9.0f} ms   drifted{next_L.mean():8.4f}{next_L.max():8.4f}"
        f"{moved(next_LP, map_LP, ranks):7.0f} moved"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in {"vllm", "sglang"}:
        raise SystemExit("usage: compare_engine_balancers.py {vllm,sglang}")
    for size in SIZES:
        for title, chosen in balancers(sys.argv[1]).items():
            compare(title, chosen, *size)
