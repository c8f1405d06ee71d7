"""Labs for the tests of this folder; skipped, with the reason, where this user may not make namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fourlane.errors import EnvironmentMissing
from fourlane.lab.network import Lab
from fourlane.lab.topology import leaf_spine, star

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.lab.topology import Topology


def held(topology: Topology) -> Iterator[Lab]:
    try:
        lab = Lab(topology)
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    with lab:
        yield lab


@pytest.fixture(scope="module")
def four_hosts() -> Iterator[Lab]:
    yield from held(star(4))


@pytest.fixture(scope="module")
def two_spines() -> Iterator[Lab]:
    yield from held(leaf_spine(4))


@pytest.fixture
def two_hosts() -> Iterator[Lab]:
    yield from held(star(2))
