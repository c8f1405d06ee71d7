"""Small random checkpoints, written by the tool that makes them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

TOOL = Path(__file__).parents[4] / "tools" / "make_random_checkpoint.py"
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


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_random_checkpoint", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small_checkpoint(maker: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a small checkpoint, options of the tool changed as asked."""

    def write(name: str = "model", **changed: object) -> Path:
        maker.write_checkpoint(tmp_path / name, maker.Shape(**{**SMALL, **changed}))
        return tmp_path / name

    return write
