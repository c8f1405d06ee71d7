"""The benchmark of kernels on a GPU."""

from __future__ import annotations

import importlib.util

import bench_kernels
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here"),
]


def test_every_kernel_moves_no_more_a_second_than_a_plain_copy() -> None:
    memory = bench_kernels.memory_rate()
    for case in bench_kernels.cases_of(4096, 7168, 8):
        rate = case.moved / bench_kernels.median_s(case.kernel, runs=10)
        assert 0.1 * memory < rate < 1.2 * memory, case.name
