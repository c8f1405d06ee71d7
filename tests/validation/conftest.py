"""Slow validations run only when asked for: `python -m pytest tests/validation -m slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is slow here unless `-m` chooses tests."""
    if config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="slow; run by python -m pytest tests/validation -m slow")
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("slow"):
            item.add_marker(skip)
