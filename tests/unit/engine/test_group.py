"""Which GPU a rank takes."""

from __future__ import annotations

import pytest

from fourlane.engine.group import gpu_index


@pytest.mark.parametrize(
    ("device", "rank", "devices", "expected"),
    [
        ("cuda", 0, 8, 0),
        ("cuda", 5, 8, 5),
        ("cuda", 9, 8, 1),
        ("cuda:4", 0, 8, 4),
        ("cuda:4", 5, 8, 1),
        ("cuda", 3, 1, 0),
    ],
)
def test_ranks_take_gpus_in_order_from_the_one_named(device: str, rank: int, devices: int, expected: int) -> None:
    assert gpu_index(device, rank, devices) == expected
