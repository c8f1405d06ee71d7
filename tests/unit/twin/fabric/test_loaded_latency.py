"""Latency under load: the 4 us budget at p99 on the low-latency cluster, and where it ends."""

from __future__ import annotations

import pytest

from fourlane.errors import SpecError
from fourlane.spec.load import load_cluster
from fourlane.twin.fabric import loaded_latency
from fourlane.twin.fabric.loaded_latency import Traffic, idle_packet, loaded_latencies
from fourlane.units import Duration, Size

LOW_LATENCY = load_cluster("low-latency")


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_latency, "_MOST_MESSAGES", 40_000)


@pytest.mark.usefixtures("_short")
def test_the_4_us_budget_holds_at_p99_up_to_a_third_of_every_nics_rate_and_not_at_two_thirds() -> None:
    light, heavy = loaded_latencies(LOW_LATENCY, [0.33, 0.66])
    assert light.p99_us < 4.0 < heavy.p99_us
    assert light.within > 0.99
    assert (light.dropped, light.marked, heavy.dropped, heavy.marked) == (0, 0, 0, 0)
    assert light.packets > 60_000


@pytest.mark.usefixtures("_short")
def test_packets_under_almost_no_load_take_as_long_as_the_idle_budget_says() -> None:
    cluster = load_cluster("low-latency", overrides=["servers=16", "hpn.leaf.count=8"])
    (alone,) = loaded_latencies(cluster, [0.002], traffic=Traffic(message=Size(4096)))
    assert alone.p50_us == pytest.approx(int(idle_packet(cluster, Size(4096))) / 1e6, rel=0.01)


def test_the_longest_packet_of_a_message_sets_the_idle_time() -> None:
    assert idle_packet(LOW_LATENCY, Size(7408)) == idle_packet(LOW_LATENCY, Size(4096)) == Duration(3_517_040)
    assert idle_packet(LOW_LATENCY, Size(1000)) < idle_packet(LOW_LATENCY, Size(4096))


@pytest.mark.parametrize("load", [0.0, -0.1, 1.0, float("nan"), 0.95])
def test_a_load_that_cannot_be_is_refused(load: float) -> None:
    with pytest.raises(SpecError, match=r"load: expected above 0 and below 0\.9, all traffic together"):
        loaded_latencies(LOW_LATENCY, [load], traffic=Traffic(background=0.1))
