"""A whole model gives the same bits in two streams as alone, over every exchange, while experts move."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from make_random_checkpoint import Shape, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

BODIES = Path(__file__).parent / "dual_bodies.py"
SIZES = {"vocab": 512, "hidden": 64, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "expert_dim": 40}

LONGEST_S = 90

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def bodies() -> Iterator[subprocess.Popen[str]]:
    """The process that forks ranks."""
    process = subprocess.Popen(
        [sys.executable, str(BODIES)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BODIES.parents[1] / "support")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders with a model, for ranks to meet in, by the size of its shared expert (0: none)."""
    made = {shared: tmp_path_factory.mktemp("dual") for shared in (0, 48)}
    for shared, folder in made.items():
        write_checkpoint(folder / "model", Shape(**SIZES, experts=10, top_k=3, shared_expert_dim=shared, seed=6))
    return made


@pytest.mark.parametrize(
    ("implementation", "ranks", "shared"),
    [
        ("local", 1, 48),
        ("torch_all_to_all", 2, 0),
        ("tcp", 2, 48),
        ("tcp", 3, 0),
        ("shared_memory", 2, 0),
        ("shared_memory", 3, 48),
    ],
)
def test_a_model_gives_the_bits_of_one_process_in_two_streams_while_experts_move(
    implementation: str, ranks: int, shared: int, folders: dict[int, Path], bodies: subprocess.Popen[str]
) -> None:
    assert bodies.stdin is not None
    assert bodies.stdout is not None
    bodies.stdin.write(f"{folders[shared]} {implementation} {ranks}\n")
    bodies.stdin.flush()
    ready, _, _ = select.select([bodies.stdout], [], [], LONGEST_S)
    answer = bodies.stdout.readline().strip() if ready else f"no answer for {LONGEST_S} s"
    assert answer == "0", (folders[shared] / "output").read_text()
