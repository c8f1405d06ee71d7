"""The idle budget: rows add up, follow cut-through, name sources; published latencies are met on stated assumptions."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fourlane.errors import SpecError
from fourlane.spec.load import load_cluster
from fourlane.twin.fabric import leaf_spine, rail_clos
from fourlane.twin.fabric.latency import idle_time, latency_budgets, path_ports
from fourlane.twin.fabric.published_latency import PUBLISHED, against_published
from fourlane.twin.fabric.routing import routing_table
from fourlane.units import Duration, Size

ROWS = Path(__file__).parents[4] / "../shared/data/validation/fabric.toml"


def test_a_cross_leaf_path_of_the_low_latency_cluster_takes_less_than_4_us() -> None:
    cluster = load_cluster("low-latency")
    same, cross = latency_budgets(cluster)
    assert (same.name, cross.name) == ("same leaf", "cross leaf")
    wire = 4 * 1_280
    cables = 2 * (15_000 + 100_000) + 2 * (50_000 + 100_000)
    assert int(cross.total) == 2 * 700_000 + 3 * 500_000 + cables + wire
    assert cross.total < Duration.parse("4us")
    assert int(same.total) == 2 * 700_000 + 500_000 + 2 * 115_000 + 2 * 1_280


@pytest.mark.parametrize("name", ["h800-10k", "low-latency", "one-network"])
@pytest.mark.parametrize("size", [64, 4160])
def test_rows_add_up_to_the_idle_time_of_the_topology_and_name_their_sources(name: str, size: int) -> None:
    cluster = load_cluster(name)
    net = rail_clos(cluster, nvlink=False)
    table = routing_table(net)
    budgets = latency_budgets(cluster, size=Size(size))
    assert [budget.switches for budget in budgets] == ([1, 3, 5] if name == "h800-10k" else [1, 3])
    for budget in budgets:
        ports = path_ports(net, table, net.endpoint(0), net.endpoint(net.node_named(budget.destination)))
        assert len(ports) == budget.switches + 1
        assert budget.total == idle_time(net, ports, size)
        assert all(row.source for row in budget.rows)


def test_a_switch_that_cuts_through_sends_on_after_64_bytes_unless_its_egress_is_faster() -> None:
    def idle(*, cut_through: bool, uplink: str = "400Gbps") -> int:
        net = leaf_spine(2, 1, 1, cut_through=cut_through, uplink_rate=uplink)
        return int(idle_time(net, path_ports(net, routing_table(net), 0, 1), 4160))

    delays = 4 * 100_000 + 3 * 500_000
    assert idle(cut_through=False) == delays + 4 * 83_200
    assert idle(cut_through=True) == delays + 83_200 + 3 * 1_280
    assert idle(cut_through=True, uplink="800Gbps") == delays + 83_200 + 640 + 640 + 83_200
    assert idle(cut_through=True, uplink="200Gbps") == delays + 1_280 + 2_560 + 166_400 + 83_200


def test_published_latencies_are_met_within_5_percent() -> None:
    for row in against_published():
        assert abs(row.error) < 0.05, row
        assert row.assumed


def test_the_published_rows_are_those_of_the_validation_data() -> None:
    if not ROWS.exists():
        pytest.skip(f"{ROWS} is not here: optional data")
    rows = tomllib.loads(ROWS.read_text())["latency"]
    known = {row.network: (row.same_leaf_us, row.cross_leaf_us) for row in PUBLISHED}
    assert {row["network"]: (row.get("same_leaf_us"), row["cross_leaf_us"]) for row in rows} == known


def test_a_size_that_is_no_packet_is_refused() -> None:
    cluster = load_cluster("low-latency")
    for size in (Size(0), Size(63), Size.parse("1MiB")):
        with pytest.raises(SpecError, match="size: expected a packet of 64B to 9064B"):
            latency_budgets(cluster, size=size)
    with pytest.raises(SpecError, match="expected one of the networks hpn, got dcn"):
        latency_budgets(load_cluster("one-network"), "dcn")
