"""Time the native expert MLP against PyTorch's ways to compute it, one thread, and print ratios.

Weights of eight layers are used in turn, as in a forward pass, so that they do not stay in the L2
cache. Baselines: a loop of `F.linear` over the experts with rows, and `torch._grouped_mm`.

    OMP_NUM_THREADS=1 python benchmarks/bench_expert_ffn.py
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

from fourlane.engine.model.cpu_kernels import PackedExperts

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Kind = tuple[str, torch.dtype]
LAYERS = 8
DTYPES = (torch.float32, torch.bfloat16)
KINDS: list[Kind] = [(name, dtype) for dtype in DTYPES for name in ("loop", "grouped", "native")]


class Layer:
    """One layer's random experts, as plain tensors and packed."""

    def __init__(self, experts: int, model_dim: int, hidden_dim: int) -> None:
        self.gate = torch.randn(experts, hidden_dim, model_dim) / model_dim**0.5
        self.up = torch.randn(experts, hidden_dim, model_dim) / model_dim**0.5
        self.down = torch.randn(experts, model_dim, hidden_dim) / hidden_dim**0.5
        self.gate_up_of = {dtype: torch.cat([self.gate, self.up], 1).to(dtype) for dtype in DTYPES}
        self.down_of = {dtype: self.down.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        self.packed_of = {dtype: PackedExperts.from_tensors(self.gate, self.up, self.down, dtype) for dtype in DTYPES}

    def loop(self, x_RD: Tensor, offset_S1: list[int], dtype: torch.dtype) -> Tensor:
        """Compute expert by expert with `F.linear`."""
        x_RD = x_RD.to(dtype)
        y_RD = torch.empty_like(x_RD)
        for slot, (begin, end) in enumerate(itertools.pairwise(offset_S1)):
            if end > begin:
                gate, up = F.linear(x_RD[begin:end], self.gate_up_of[dtype][slot]).chunk(2, dim=-1)
                y_RD[begin:end] = F.linear(F.silu(gate) * up, self.down_of[dtype][slot])
        return y_RD.float()

    def grouped(self, x_RD: Tensor, offset_S1: list[int], dtype: torch.dtype) -> Tensor:
        """Compute all experts with `torch._grouped_mm`."""
        ends = torch.tensor(offset_S1[1:], dtype=torch.int32)
        gate_up = self.gate_up_of[dtype].transpose(1, 2)
        gate, up = torch._grouped_mm(x_RD.to(dtype), gate_up, offs=ends).chunk(2, dim=-1)
        return torch._grouped_mm(F.silu(gate) * up, self.down_of[dtype].transpose(1, 2), offs=ends).float()

    def native(self, x_RD: Tensor, offset_S1: list[int], dtype: torch.dtype) -> Tensor:
        """Compute with the packed kernels."""
        return self.packed_of[dtype](x_RD, offset_S1)


def routed(tokens: int, experts: int, top_k: int) -> list[int]:
    """Return the offsets of `tokens` tokens sent to `top_k` random experts each."""
    chosen = torch.rand(tokens, experts).topk(top_k).indices.flatten()
    return [0, *torch.bincount(chosen, minlength=experts).cumsum(0).tolist()]


def cells_of(layers: list[Layer], tokens: int, top_k: int, *, budget_s: float) -> dict[Kind, float]:
    """Time every way at one number of tokens, in microseconds a layer."""
    experts, _, model_dim = layers[0].gate.shape
    routes = [routed(tokens, experts, top_k) for _ in layers]
    x_RD = torch.randn(tokens * top_k, model_dim)
    cells: dict[Kind, float] = {}
    for name, dtype in KINDS:
        runs = [getattr(layer, name) for layer in layers]
        cells[name, dtype] = median_us(lambda at, runs=runs, dtype=dtype: runs[at](x_RD, routes[at], dtype), budget_s)
    return cells


def median_us(run: Callable[[int], object], budget_s: float) -> float:
    """Return the median time of a pass over all layers, in microseconds a layer."""
    run(0)
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while time.perf_counter() < end or len(times) < 3:
        begin = time.perf_counter()
        for layer in range(LAYERS):
            run(layer)
        times.append((time.perf_counter() - begin) / LAYERS * 1e6)
    return statistics.median(times)


def main() -> None:
    """Print a table of medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", default="256,128,32,4", help="model dim, hidden dim, experts, top-k")
    parser.add_argument("--tokens", default="1,16,64,512")
    parser.add_argument("--budget", type=float, default=0.6, help="seconds a cell")
    arguments = parser.parse_args()
    model_dim, hidden_dim, experts, top_k = (int(part) for part in arguments.dims.split(","))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [Layer(experts, model_dim, hidden_dim) for _ in range(LAYERS)]
    print("us a layer, median; ratio = best torch / native at the same weight dtype")
    print(f"{'tokens':>6}" + "".join(f"{f'{name} {str(dtype)[6:]}':>18}" for name, dtype in KINDS) + f"{'ratios':>12}")
    for tokens in (int(part) for part in arguments.tokens.split(",")):
        cells = cells_of(layers, tokens, top_k, budget_s=arguments.budget)
        ratios = [min(cells["loop", d], cells["grouped", d]) / cells["native", d] for d in DTYPES]
        print(f"{tokens:6}" + "".join(f"{cells[k]:18.0f}" for k in KINDS) + "".join(f"{r:8.1f}" for r in ratios))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
