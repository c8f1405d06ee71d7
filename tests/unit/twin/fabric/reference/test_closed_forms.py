"""What can be worked out on paper comes out to the picosecond, in both simulators.

The setting that public simulators were measured in: 400 Gb/s, 0.1 us of cable, 0.5 us a switch, store and forward,
4,096 B in 4,160 (s = 83.2 ns), ACKs of 64 B. With L links a packet's way is b = 0.1 L + 0.5 (L - 1) us and (L - 1) s,
its ACK's a = b + 1.28 ns L. A flow of n packets takes n s + (L - 1) s + b + a, an incast of N such N n s + ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tiny_fabrics import ls128

from fourlane._native import FabricSimulation
from fourlane.twin.fabric.reference import simulate

if TYPE_CHECKING:
    from fourlane.twin.fabric.compiled import CompiledScenario

S, B, A = 83_200, 1_900_000, 1_905_120  # of four links
PRINTED = {"ONE_4K": 4.1379, "ONE_1M": 25.3539, "I64_64K": 89.2515, "I64_256K": 344.842, "I64_1M": 1367.2}


def natively(scenario: CompiledScenario) -> dict[str, Any]:
    simulation = FabricSimulation(scenario.flat())
    while not simulation.advance(1 << 40):
        pass
    return simulation.result()


@pytest.mark.parametrize(
    ("name", "senders", "packets", "run"),
    [
        ("ONE_4K", 1, 1, simulate),
        ("ONE_1M", 1, 256, simulate),
        ("I64_64K", 64, 16, simulate),
        ("ONE_4K", 1, 1, natively),
        ("ONE_1M", 1, 256, natively),
        ("I64_64K", 64, 16, natively),
        ("I64_256K", 64, 64, natively),
        ("I64_1M", 64, 256, natively),
    ],
)
@pytest.mark.parametrize("routing", [3, 4])
def test_one_flow_and_incast_take_what_their_closed_forms_say(
    name: str, senders: int, packets: int, run: Any, routing: int
) -> None:
    flows = [(8 + s, 0, packets * 4096) for s in range(senders)]
    result = run(ls128(flows, queue_lossless=[1], port_headroom=[1 << 20] * 512, class_routing=[routing]))
    assert result["time"] == senders * packets * S + 3 * S + B + A
    assert result["time"] / 1e6 == pytest.approx(PRINTED[name], abs=0.05 if name == "I64_1M" else 0.0006)
    assert result["data_hops"] == senders * packets * 4
    assert result["port_drops"].sum() == 0
