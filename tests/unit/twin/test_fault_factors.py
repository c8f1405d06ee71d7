"""Failed links and switches: who is slowed down by how much, who is cut off, what is refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from cluster_services import service

from fourlane.errors import SpecError
from fourlane.spec.twin import Fault, TwinPool
from fourlane.twin.cluster_use import ClusterLoad
from fourlane.twin.fault_factors import fault_factors
from fourlane.units import Duration

if TYPE_CHECKING:
    from fourlane.twin.assembly_parts import Assembly


@pytest.fixture(scope="module")
def ft() -> Assembly:
    pools = {"prefill": TwinPool(units=4, ranks=32), "decode": TwinPool(units=6, ranks=64)}
    return service("h800-ft", **pools, kv="dcn", routing="ecmp")


def failed(kind: str, target: str) -> Fault:
    return Fault(at=Duration.parse("1s"), kind=kind, target=target)  # type: ignore[arg-type]


def test_a_spine_that_fails_slows_units_that_change_rail_and_not_those_that_keep_to_theirs(ft: Assembly) -> None:
    found = fault_factors(ft, failed("switch", "spine0"))
    assert found.exchange["prefill"] == (1.0,) * 4  # once per node along their own rail: one leaf each
    assert all(1.05 < factor < 4 / 3 for factor in found.exchange["decode"])  # uplinks left: three quarters
    assert found.kv == (1.0,) * 4


def test_few_units_at_a_time_feel_it_less(ft: Assembly) -> None:
    spine = failed("switch", "spine0")
    all_at_once, few = (
        fault_factors(ft, spine, load=ClusterLoad(prefill=share, decode=share, kv_rate=0.0)) for share in (1.0, 0.1)
    )
    assert max(few.exchange["decode"]) < min(all_at_once.exchange["decode"])


def test_a_leaf_that_fails_cuts_off_every_unit_with_a_rank_on_it(ft: Assembly) -> None:
    found = fault_factors(ft, failed("switch", "leaf3"))
    assert found.exchange["prefill"] == (math.inf,) * 4
    assert found.exchange["decode"] == (math.inf,) * 6


def test_a_spine_of_the_second_network_slows_kv_cache_alone() -> None:
    halves = service("h800-ft", prefill=TwinPool(units=8, ranks=32), decode=TwinPool(units=4, ranks=64), kv="dcn")
    found = fault_factors(halves, failed("switch", "dcn:spine1"))
    assert found.exchange == {"prefill": (1.0,) * 8, "decode": (1.0,) * 4}
    assert sum(found.kv) / 8 == pytest.approx(1.7, abs=0.3)  # one of two; where hashes collided it cost less


def test_kv_cache_on_the_network_of_experts_feels_its_failures() -> None:
    shared = service("h800-ft", prefill=TwinPool(units=2, ranks=32), decode=TwinPool(units=4, ranks=64), kv="hpn")
    found = fault_factors(shared, failed("switch", "leaf3"))
    assert all(1 < factor < math.inf for factor in found.kv)  # one rail of eight is gone


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("rank", "decode/3", 'faults: kind: expected "link" or "switch", which the network has, got "rank"'),
        ("switch", "spine9", 'expected one of host0..host511, .* got "spine9"'),
        ("link", "leaf0-leaf1", "expected two nodes joined by a cable"),
        ("link", "leaf0", 'faults: link: expected two nodes such as "leaf0-spine1", got "leaf0"'),
    ],
)
def test_what_the_network_has_not_is_refused(ft: Assembly, kind: str, target: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        fault_factors(ft, failed(kind, target))


def test_a_second_network_that_nothing_uses_is_refused() -> None:
    alone = service("h800-ft", prefill=TwinPool(ranks=32), decode=TwinPool(ranks=64), kv="hpn")
    with pytest.raises(SpecError, match="KV cache has no second network here"):
        fault_factors(alone, failed("switch", "dcn:spine0"))
