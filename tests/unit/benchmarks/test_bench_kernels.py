"""What the benchmark of kernels counts, and what it says without a GPU."""

from __future__ import annotations

import bench_kernels
import pytest
from bench_kernels import Case, Row, lines_of, moved_bytes

from fourlane.errors import EnvironmentMissing


def test_bytes_are_each_counted_once() -> None:
    tokens, dim, top_k = 3, 256, 2
    assert moved_bytes("permute", tokens, dim, top_k) == 3 * 512 + 6 * 8 + 6 * 512
    assert moved_bytes("quantise", tokens, dim, top_k) == 3 * 512 + 3 * 256 + 3 * 2 * 4
    assert moved_bytes("unpermute and weight", tokens, dim, top_k) == 6 * 512 + 6 * 12 + 3 * 512


def test_a_line_says_the_share_of_what_a_copy_moves_and_the_ratio_to_pytorch() -> None:
    case = Case(name="permute", tokens=128, moved=10**9, operations=0, kernel=None, baseline=None)
    *_, line = lines_of([Row(case=case, seconds=1e-3, baseline_s=2.5e-3)], memory=2e12)
    assert line == "| permute | 128 | 1000.0 | 1000 | 50% | 2.50 |"


def test_without_a_gpu_the_benchmark_ends_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench_kernels.py"])
    with pytest.raises(SystemExit) as end:
        bench_kernels.main()
    assert end.value.code == EnvironmentMissing.exit_code
    assert "no CUDA device here" in capsys.readouterr().err
