"""Moments of a service packet by packet."""

from __future__ import annotations

import pytest
from cluster_services import service

from fourlane.errors import SpecError
from fourlane.spec.twin import TwinPool
from fourlane.twin.window_packets import KvFlow, UnitExchange, packets_of_window

POOLS = {"prefill": TwinPool(units=1, ranks=32), "decode": TwinPool(units=3, ranks=32)}


def test_packets_and_flow_level_agree_on_exchanges_beside_each_other_and_kv_cache() -> None:
    assembly = service("h800-ft", **POOLS, kv="hpn", expert_queue="shared")
    chosen = [UnitExchange("decode", 0, tokens=64), UnitExchange("decode", 2, "combine", 16, start_s=20e-6)]
    alone = packets_of_window(assembly, chosen)
    beside = packets_of_window(assembly, chosen, [KvFlow(rank, rank, 1_500_000) for rank in range(32)])
    for seen in (*alone.exchanges, *beside.exchanges):
        assert seen.flows_us == pytest.approx(seen.packets_us, rel=0.1)
    assert beside.exchanges[0].packets_us > 1.02 * alone.exchanges[0].packets_us
    assert len(beside.kv_us) == 32
    assert alone.exchanges[1].exchange.unit == 2


def test_kv_cache_on_its_own_network_leaves_exchanges_alone() -> None:
    assembly = service("h800-ft", **POOLS, kv="dcn")
    chosen = [UnitExchange("decode", 1, tokens=32)]
    alone, beside = (packets_of_window(assembly, chosen, kv) for kv in ([], [KvFlow(3, 40, 2_000_000)]))
    assert alone.exchanges == beside.exchanges
    assert beside.kv_us[0] > 2_000_000 * 8 / 200e9 * 1e6


def test_what_is_not_there_is_refused_all_at_once() -> None:
    assembly = service("h800-ft", **POOLS)
    with pytest.raises(SpecError) as caught:
        packets_of_window(assembly, [UnitExchange("decode", 3)], [KvFlow(32, 96, 1)])
    assert caught.value.faults == (
        "window: expected a decode unit from 0 to 2, got 3",
        "window: kv: expected a prefill rank from 0 to 31, got 32",
        "window: kv: expected a decode rank from 0 to 95, got 96",
    )
    with pytest.raises(SpecError, match="expected at least one exchange, got none"):
        packets_of_window(assembly, [])
