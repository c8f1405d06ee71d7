"""Small random checkpoints, written by the tool that makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from make_random_checkpoint import Shape, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL: dict[str, Any] = {
    "vocab": 301,
    "hidden": 48,
    "layers": 3,
    "heads": 6,
    "kv_heads": 3,
    "head_dim": 16,
    "experts": 10,
    "top_k": 3,
    "expert_dim": 24,
    "dense_dim": 40,
    "mlp_only_layers": (1,),
    "dtype": "float32",
}


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a small checkpoint, options of the tool changed as asked."""

    def write(name: str = "model", **changed: object) -> Path:
        write_checkpoint(tmp_path / name, Shape(**{**SMALL, **changed}))
        return tmp_path / name

    return write
