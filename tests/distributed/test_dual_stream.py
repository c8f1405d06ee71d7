"""A whole model gives the same bits in two streams as alone, over every exchange, while experts move."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_random_checkpoint import Shape, write_checkpoint

BODIES = Path(__file__).parent / "dual_bodies.py"
SHAPE = Shape(
    vocab=512, hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, experts=10, top_k=3, expert_dim=40, seed=6
)

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, for ranks to meet in."""
    made = tmp_path_factory.mktemp("dual")
    write_checkpoint(made / "model", SHAPE)
    return made


@pytest.mark.parametrize(
    ("implementation", "ranks"),
    [("local", 1), ("torch_all_to_all", 2), ("tcp", 2), ("tcp", 3), ("shared_memory", 2), ("shared_memory", 3)],
)
def test_a_model_gives_the_bits_of_one_process_in_two_streams_while_experts_move(
    implementation: str, ranks: int, folder: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(BODIES), str(folder), implementation, str(ranks)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BODIES.parents[1] / "support")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=80,
        check=False,
    )
    assert done.returncode == 0, done.stdout
