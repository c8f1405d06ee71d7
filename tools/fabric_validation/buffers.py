"""PFC: no loss with the computed headroom, loss just below it. Dynamic thresholds: where queues settle."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from fabric_validation.networks import compile_flows, run
from fabric_validation.page import Claim, Part, Table, within
from fourlane.twin.fabric.builders import single_switch
from fourlane.twin.fabric.theory import alpha_occupancy, pfc_headroom

__all__ = ["dynamic_threshold", "lossless"]

_WIRE, _PAYLOAD, _ACK = 4160, 4096, 64


def lossless(
    *,
    fan_ins: tuple[int, ...] = (2, 8, 32),
    cables_ns: tuple[int, ...] = (10, 100, 500, 2000),
    rates: tuple[str, ...] = ("100Gbps", "400Gbps"),
    response_ns: int = 60,
    packets: int = 250,
) -> Part:
    """Incast into a small buffer with exactly the computed headroom, then with a packet less."""
    part = Part("PFC: lossless with the headroom, not with less", _LOSSLESS)
    rows, kept, broken = [], 0, 0
    cases = list(itertools.product(rates, cables_ns, fan_ins, (False, True)))
    for rate, cable, fan_in, both_ways in cases:
        incast = _Incast(rate, cable, fan_in, both_ways=both_ways, response_ns=response_ns, packets=packets)
        need = incast.need()
        enough, less = incast.drops(need), incast.drops(need - _WIRE)
        kept += enough == 0
        broken += less > 0
        name = "both ways" if both_ways else "one way"
        rows.append([rate, f"{cable} ns", str(fan_in), name, f"{need:,}", str(enough), str(less)])
    count = len(cases)
    part.claims += [
        Claim(f"no drops with the headroom, {count} incasts", "0 drops", f"{kept} without drops", "all", kept == count),
        Claim(f"drops with one packet less, {count} incasts", "drops", f"{broken} with drops", "all", broken == count),
    ]
    columns = ("rate", "cable", "fan-in", "traffic", "headroom, bytes", "drops with it", "drops with a packet less")
    part.tables.append(Table("Drops of incasts into one port", columns, rows))
    return part


class _Incast:
    """Hosts that send to one host through a switch with little buffer; with `both_ways`, others send to the senders."""

    def __init__(
        self, rate: str, cable_ns: int, fan_in: int, *, both_ways: bool, response_ns: int, packets: int
    ) -> None:
        self.fan_in, self.both_ways, self.response = fan_in, both_ways, response_ns * 1000
        self.topology = single_switch(2 * fan_in + 1, rate=rate, propagation=f"{cable_ns}ns")
        self.cable, self.packets = cable_ns * 1000, packets
        self.ps_q16 = int(self.topology.port_ps_q16[0])
        self.pace = self.topology.port_ps_q16.copy()
        sink = self.topology.endpoint_of[0][0]
        self.pace[[sink, self.topology.port_peer[sink]]] *= 50

    def need(self) -> int:
        """Return the headroom of one port."""
        return pfc_headroom(
            self._ps(_WIRE),
            _WIRE,
            self.cable,
            response_ps=self.response,
            frame_ps=self._ps(64),
            reverse_ps=self._ps(_WIRE if self.both_ways else _ACK),
        )

    def drops(self, headroom: int) -> int:
        """Return the packets dropped with this much headroom at every port.

        Both ways, the wait of a pause for the packet before it depends on how the two streams lie to each other:
        sixteen ways are tried.
        """
        phases = range(16) if self.both_ways else range(1)
        return sum(self._dropped(headroom, self._ps(_WIRE) * phase // 16) for phase in phases)

    def _dropped(self, headroom: int, late: int) -> int:
        """Return the drops of one run whose incast begins 10 us and `late` ps after what goes the other way."""
        source = np.arange(1, self.fan_in + 1)
        target = np.zeros(self.fan_in, np.int64)
        start = np.full(self.fan_in, 10_000_000 + late)
        if self.both_ways:
            target = np.concatenate([target, source])
            source = np.concatenate([source, source + self.fan_in])
            start = np.concatenate([start, 0 * start])
        klass = np.arange(len(source)) // self.fan_in
        lanes = self._lanes(headroom) | {"flow_start": start, "flow_class": klass}
        made = compile_flows(self.topology, source, target, self.packets * _PAYLOAD, **lanes)
        return int(run(made)["port_drops"].sum())

    def _lanes(self, headroom: int) -> dict[str, Any]:
        """Put the incast in a lossless queue, acknowledgements in a strict one, what goes the other way in a third."""
        switch = self.topology.node_kind == 1
        return {
            "queue_lossless": [1, 0, 0],
            "queue_weight": [_WIRE, 0, _WIRE],
            "queue_alpha_q16": [65536 // 8, 65536, 65536],
            "queue_reserved": [0, 1 << 30, 1 << 30],
            "class_queue": [0, 2],
            "class_ack_queue": [1, 1],
            "class_ack_every": [1, 1024],
            "node_shared": np.where(switch, 40 * _WIRE, 0),
            "port_headroom": np.full(self.topology.ports, headroom),
            "port_ps_q16": self.pace,
            "pfc_response": self.response,
            "max_time": 10**12,
        }

    def _ps(self, size: int) -> int:
        return (size * self.ps_q16) >> 16


def dynamic_threshold(*, duration_us: int = 500) -> Part:
    """Overload several queues of one switch; compare where they settle with alpha B / (1 + n alpha)."""
    part = Part("Dynamic thresholds", _THRESHOLD)
    buffer = 8_000_000
    for alpha, queues in ((0.125, 4), (0.5, 2), (1.0, 1), (1.0, 4), (1.0, 8), (4.0, 3), (8.0, 8)):
        held = _held(alpha, buffer, queues, duration_us)
        theory = alpha_occupancy(alpha, buffer, queues)
        name = f"alpha {alpha:g}, {queues} queues of {buffer / 1e6:g} MB: mean queue, kB"
        part.claims.append(within(name, theory / 1e3, held / 1e3, percent=1, digits=1))
    return part


def _held(alpha: float, buffer: int, queues: int, duration_us: int) -> float:
    """Return the mean depth of overloaded lossy queues in the second half of the time, two senders each."""
    topology = single_switch(3 * queues)
    source = np.arange(queues, 3 * queues)
    target = (source - queues) // 2
    made = compile_flows(
        topology,
        source,
        target,
        int(1.5 * duration_us * 1e6 / 20),
        queue_alpha_q16=[round(alpha * 65536)],
        node_shared=np.where(topology.node_kind == 1, buffer, 0),
        sample_interval=1_000_000,
        sample_ports=topology.port_peer[topology.endpoint_of[0][:queues]],
        max_time=duration_us * 1_000_000,
    )
    depth = run(made)["sample_depth"]
    return float(depth[len(depth) // 2 :].mean())


_LOSSLESS = """
Hosts send to one host through a switch whose shared buffer holds 40 packets, so that every port is paused again and
again. The receiver's link has a fiftieth of the rate, so that hardly anything leaves while a pause travels: the worst
case. The headroom of a port is what this model needs, packet by packet:

    headroom = MTU x (1 + ceil((2 propagation + response + pause frame + packet in the other direction) / MTU time))

It lies within two MTU of the textbook's rate x (2 propagation + response) + 2 MTU + pause frame, or above it by one MTU
where the pause waits for a full packet in the other direction ("both ways": each sender also receives at full rate).
With it, nothing may be dropped; with one packet less, something must.
"""
_THRESHOLD = """
Each of n queues of a switch gets twice what it can send. A queue may hold alpha times what is free of the shared buffer
B; n equal ones settle at alpha B / (1 + n alpha).
"""
