"""What the tests of the gateway share: a tiny tokenizer, fake ranks, a service on a loopback port."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_service import FakeService, build_model_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with a byte-level tokenizer of a few hundred tokens and a chat template."""
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def service(model_folder: Path) -> Iterator[FakeService]:
    """Return a running service of 2 prefill and 2 decode fake ranks."""
    with FakeService(model_folder) as running:
        yield running
