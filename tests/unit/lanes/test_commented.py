"""The commented default plan: it reads back as the plan, and leaves no figure without a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from lane_cases import clusters
from lane_goldens import CLUSTERS, kept, rendered

from fourlane.lanes.commented import commented_plan
from fourlane.lanes.default_plan import default_plan
from fourlane.lanes.plan import parse_plan
from fourlane.spec.load import load_cluster

if TYPE_CHECKING:
    from fourlane.spec.cluster import Cluster


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_plan_that_init_writes_is_the_golden_one(name: str) -> None:
    assert rendered(name, "init") == kept(name, "init")


@given(cluster=clusters())
def test_the_commented_plan_of_any_cluster_reads_back_as_its_default_plan(cluster: Cluster) -> None:
    assert parse_plan(commented_plan(cluster), source="plan") == default_plan(cluster)


def test_every_figure_stands_below_a_comment_with_a_source() -> None:
    lines = commented_plan(load_cluster("h800-ft")).splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("[classes."))
    for above, line in zip(lines[begin:], lines[begin + 1 :], strict=False):
        if " = " in line and not line.startswith("#"):
            assert above.startswith("#"), line
            assert above.endswith("]"), above
    assert max(map(len, lines)) <= 250
