"""Units that share the cores of a host slow each other down, fairly or as was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from fourlane.spec.hardware_profile import Crowding
from fourlane.twin.serving.host import Host

if TYPE_CHECKING:
    from fourlane.twin.times import Phase

MEASURED = Crowding(prefill=3.0, decode=1.5, prefill_lone=2.0, decode_lone=1.25)


@dataclass(eq=False)
class Unit:
    phase: Phase
    ranks: int = 2
    stepping: bool = True
    evenness: float = 1.0
    paced: list[float] = field(default_factory=list)

    def pace(self, speed: float) -> None:
        self.paced.append(speed)


def a_host(cores: int | None, *units: Unit, crowding: Crowding | None = None) -> Host:
    host = Host(cores, crowding)
    host.watch(units)
    return host


def test_ranks_with_devices_of_their_own_never_wait() -> None:
    prefill, decode = Unit("prefill"), Unit("decode")
    host = a_host(None, prefill, decode)
    host.changed()
    assert host.speed(prefill) == 1.0
    assert not prefill.paced


def test_cores_are_shared_fairly_where_nothing_was_measured() -> None:
    prefill, decode = Unit("prefill"), Unit("decode")
    host = a_host(2, prefill, decode)
    assert host.speed(prefill) == pytest.approx(0.5)
    decode.stepping = False
    assert host.speed(prefill) == 1.0


def test_units_crowd_each_other_as_was_measured() -> None:
    prefill, decode = Unit("prefill"), Unit("decode")
    host = a_host(2, prefill, decode, crowding=MEASURED)
    assert host.speed(prefill) == pytest.approx(1 / 3.0)
    assert host.speed(decode) == pytest.approx(1 / 1.5)
    prefill.evenness = 0.5  # one of its two ranks has a prompt
    assert host.speed(prefill) == pytest.approx(1 / 2.0)
    assert host.speed(decode) == pytest.approx(1 / 1.25)


def test_units_are_paced_when_their_speed_changes_and_only_then() -> None:
    prefill, decode = Unit("prefill"), Unit("decode", stepping=False)
    host = a_host(2, prefill, decode)
    host.changed()
    host.changed()
    decode.stepping = True
    host.changed()
    assert prefill.paced == [1.0, 0.5]
    assert decode.paced == [0.5]


def test_a_request_takes_a_fair_share_of_a_core_while_it_is_seen_to() -> None:
    decode = Unit("decode")
    host = a_host(2, decode)
    host.begin_request()
    assert host.speed(decode) == pytest.approx(2 / 3)
    host.end_request()
    assert host.speed(decode) == 1.0
