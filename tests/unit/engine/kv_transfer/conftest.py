"""Lanes of each transport for the tests of KV transfer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kv_lanes import GEOMETRY, PATIENCE_S, TRANSPORTS, Lane, missing, start_lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.engine.kv_transfer.contract import KvGeometry


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    why_not = missing(request.param)
    if why_not:
        pytest.skip(why_not)
    return request.param


@pytest.fixture
def make_lane(tmp_path: Path) -> Iterator[Callable[..., Lane]]:
    """Return a maker of lanes, all closed at the end."""
    made: list[Lane] = []

    def make(transport: str, geometry: KvGeometry = GEOMETRY, *, timeout_s: float = PATIENCE_S) -> Lane:
        made.append(start_lane(transport, tmp_path, geometry, timeout_s=timeout_s))
        return made[-1]

    yield make
    for lane in made:
        lane.close()


@pytest.fixture
def lane(transport: str, make_lane: Callable[..., Lane]) -> Lane:
    return make_lane(transport)
