"""The kernels in Triton on a GPU, beside PyTorch's ways and what the GPU's memory can do.

    python benchmarks/bench_kernels.py [--dim 7168] [--top-k 8] [--plot roofline.html] [--write]

Bytes are those that have to be read and written once; the limit is a copy of a gigabyte in the same run.
Medians over runs, between which the cache is overwritten. Exit 3 without a GPU or without Triton.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from result_page import write_page

from fourlane.errors import EnvironmentMissing
from fourlane.report.roofline_plot import Point, plot_roofline

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS = (128, 4096)  # of a decode step, and of a prefill chunk
WARM, RUNS = 10, 50
CACHE_BYTES = 256 << 20  # more than any GPU's second-level cache
COPY_BYTES = 1 << 30


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel at one size: what it has to move and compute, and the two ways of doing it."""

    name: str
    tokens: int
    moved: int
    operations: int
    kernel: Any
    baseline: Any


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a case."""

    case: Case
    seconds: float
    baseline_s: float


def cases_of(tokens: int, dim: int, top_k: int) -> list[Case]:
    """Return the kernels for so many tokens, their tensors on the GPU."""
    import torch

    from fourlane.engine.exchange import triton_kernels
    from fourlane.engine.exchange.payload import pack_float8_in_torch
    from fourlane.engine.exchange.sparse_rows import fold_in_torch

    rows = tokens * top_k
    x_TD = torch.randn(tokens, dim, device="cuda").to(torch.bfloat16)
    y_RD = torch.randn(rows, dim, device="cuda").to(torch.bfloat16)
    rows_R = torch.randint(tokens, (rows,), device="cuda")
    place_NK = torch.randperm(rows, device="cuda").view(tokens, top_k)
    weights_NK = torch.rand(tokens, top_k, device="cuda")
    return [
        Case(
            name="permute",
            tokens=tokens,
            moved=moved_bytes("permute", tokens, dim, top_k),
            operations=0,
            kernel=lambda: triton_kernels.permute(x_TD, rows_R),
            baseline=lambda: x_TD.index_select(0, rows_R),
        ),
        Case(
            name="quantise",
            tokens=tokens,
            moved=moved_bytes("quantise", tokens, dim, top_k),
            operations=3 * tokens * dim,
            kernel=lambda: triton_kernels.quantise(x_TD),
            baseline=lambda: pack_float8_in_torch(x_TD),
        ),
        Case(
            name="unpermute and weight",
            tokens=tokens,
            moved=moved_bytes("unpermute and weight", tokens, dim, top_k),
            operations=2 * rows * dim,
            kernel=lambda: triton_kernels.fold(y_RD, place_NK, weights_NK),
            baseline=lambda: fold_in_torch(y_RD, place_NK, weights_NK),
        ),
    ]


def moved_bytes(name: str, tokens: int, dim: int, top_k: int) -> int:
    """Return what a kernel has to read and write of bfloat16 rows, each byte once."""
    rows = tokens * top_k
    return {
        "permute": 2 * tokens * dim + 8 * rows + 2 * rows * dim,
        "quantise": 2 * tokens * dim + tokens * dim + 4 * tokens * (dim // 128),
        "unpermute and weight": 2 * rows * dim + 12 * rows + 2 * tokens * dim,
    }[name]


def median_s(call: Callable[[], object], *, runs: int = RUNS) -> float:
    """Return how long a call takes on the GPU, the cache full of something else before."""
    import torch

    cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(WARM):
        call()
    found = []
    for _ in range(runs):
        cache.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(found)


def memory_rate() -> float:
    """Return the bytes a second that a plain copy reads and writes."""
    import torch

    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / median_s(lambda: target.copy_(source))


def lines_of(rows: list[Row], memory: float) -> list[str]:
    """Return the table in Markdown."""
    lines = [
        f"A plain copy reads and writes {memory / 1e9:.0f} GB/s.",
        "",
        "| kernel | tokens | us | GB/s | of the copy | x PyTorch |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = row.case.moved / row.seconds
        lines.append(
            f"| {row.case.name} | {row.case.tokens} | {row.seconds * 1e6:.1f} | {rate / 1e9:.0f} "
            f"| {rate / memory:.0%} | {row.baseline_s / row.seconds:.2f} |"
        )
    return lines


def require_gpu() -> None:
    """Raise EnvironmentMissing where there is no GPU, or no Triton for it."""
    import torch

    from fourlane.engine.exchange.installed import has_triton

    if not torch.cuda.is_available():
        raise EnvironmentMissing("bench_kernels: no CUDA device here; scripts/test-kernels checks kernels without one")
    if not has_triton():
        raise EnvironmentMissing("bench_kernels: Triton is not installed; pip install triton")


def main() -> None:
    """Measure, print, draw and write a page if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=7168)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--plot", type=Path, help="draw the roofline of the largest size")
    parser.add_argument("--write", action="store_true", help="write a page of results")
    options = parser.parse_args()
    try:
        require_gpu()
    except EnvironmentMissing as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EnvironmentMissing.exit_code)
    memory = memory_rate()
    rows = [
        Row(case=case, seconds=median_s(case.kernel), baseline_s=median_s(case.baseline))
        for tokens in TOKENS
        for case in cases_of(tokens, options.dim, options.top_k)
    ]
    lines = lines_of(rows, memory)
    print("\n".join(lines))
    if options.plot is not None:
        points = [
            Point(name=row.case.name, operations=row.case.operations, moved=row.case.moved, seconds=row.seconds)
            for row in rows
            if row.case.operations and row.case.tokens == max(TOKENS)
        ]
        plot_roofline(options.plot, points, memory=memory, title="Kernels of the exchange")
    if options.write:
        import torch

        gpu = torch.cuda.get_device_name()
        title = f"Kernels of expert exchange on one {gpu}"
        print(write_page("kernels", title=title, lines=lines, hardware="-".join(gpu.lower().split())))


if __name__ == "__main__":
    main()
