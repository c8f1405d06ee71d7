"""What a simulation showed: a value over the simulator's raw arrays, with figures by flow, class, port and queue.

    results.makespan_us, results.completion_us, results.percentile("expert", 99), results.summary()

All times are float microseconds, all rates bit/s. A run that did not end (stuck, out of time or events, interrupted)
has results too: `complete` is False, `status` says why, and flows that did not finish are NaN. Not for running
(`fourlane.twin.fabric.simulator`) nor for pictures (`fourlane.report`).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.errors import SpecError
from fourlane.twin.fabric import histogram

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from fourlane.twin.fabric.compiled import CompiledScenario
    from fourlane.twin.fabric.results_file import SavedScenario
    from fourlane.twin.fabric.summary import PortUse, Summary

__all__ = ["DONE", "Results"]

DONE = "done"
"""The status of a run in which every flow finished. Others: stuck, time, budget, interrupted."""
_PS_A_US = 1e6


class Results:
    """What a simulation showed.

    Args:
        scenario: what was simulated.
        raw: the simulator's arrays, by the names of `fourlane.twin.fabric.reference`.
    """

    def __init__(self, scenario: CompiledScenario | SavedScenario, raw: Mapping[str, Any]) -> None:
        self.scenario = scenario
        self.raw = raw

    def __repr__(self) -> str:
        """Return the figures a reader asks for first."""
        how = "" if self.complete else f"{self.status}, "
        done = f"{self.flows_finished:,} of {self.flows:,} flows"
        return f"<Results: {how}{done}, makespan {self.makespan_us:.6g} us, {self.events:,} events>"

    # How it went ------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """Return "done", "stuck", "time", "budget" or "interrupted"."""
        return str(self.raw["status"])

    @property
    def complete(self) -> bool:
        """Tell whether every flow finished."""
        return self.status == DONE

    @property
    def time_us(self) -> float:
        """Return the simulated time at the end."""
        return int(self.raw["time"]) / _PS_A_US

    @property
    def events(self) -> int:
        """Return how many events were handled."""
        return int(self.raw["events"])

    @property
    def data_hops(self) -> int:
        """Return how many times a data packet left a port."""
        return int(self.raw["data_hops"])

    @property
    def flows(self) -> int:
        """Return how many flows there are, gates included."""
        return len(self.raw["flow_finish"])

    @property
    def flows_finished(self) -> int:
        """Return how many flows finished."""
        return int((self.raw["flow_finish"] >= 0).sum())

    # Flows ------------------------------------------------------------------------------------

    @cached_property
    def flow_class(self) -> NDArray[np.uint8]:
        """Return the class of each flow, [flows]."""
        return np.broadcast_to(self.scenario.flow_class, (self.flows,))

    @cached_property
    def flow_bytes(self) -> NDArray[np.int64]:
        """Return the payload of each flow, [flows]; 0 for a gate, which only waits for others."""
        return np.broadcast_to(self.scenario.flow_size, (self.flows,))

    @cached_property
    def start_us(self) -> NDArray[np.float64]:
        """Return when each flow was handed to its NIC, [flows]."""
        return _us(self.raw["flow_started"])

    @cached_property
    def delivered_us(self) -> NDArray[np.float64]:
        """Return when the receiver had all of each flow, [flows]."""
        return _us(self.raw["flow_delivered"])

    @cached_property
    def finish_us(self) -> NDArray[np.float64]:
        """Return when the sender had the last acknowledgement of each flow, [flows]."""
        return _us(self.raw["flow_finish"])

    @cached_property
    def completion_us(self) -> NDArray[np.float64]:
        """Return how long each flow took, from its start to its last acknowledgement, [flows]."""
        return self.finish_us - self.start_us

    @cached_property
    def flow_rate(self) -> NDArray[np.float64]:
        """Return the payload of each flow over its completion time in bit/s, [flows]; NaN for gates."""
        taken = np.where((self.flow_bytes > 0) & (self.completion_us > 0), self.completion_us, np.nan)
        return self.flow_bytes * 8 / taken * _PS_A_US

    @property
    def retransmitted(self) -> NDArray[np.uint32]:
        """Return how many packets of each flow were sent again, [flows]."""
        return self.raw["flow_retransmitted"]

    @property
    def reorder_depth(self) -> NDArray[np.uint32]:
        """Return by how many packets one of each flow came too late, at worst, [flows]."""
        return self.raw["flow_reorder"]

    @property
    def makespan_us(self) -> float:
        """Return when the last flow finished; 0 when none did."""
        return float(np.nanmax(self.finish_us, initial=0.0)) if self.flows_finished else 0.0

    # Classes ----------------------------------------------------------------------------------

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the classes' names, in order."""
        count = len(self.raw["latency_counts"])
        return self.scenario.class_names or tuple(f"class {index}" for index in range(count))

    @property
    def queue_names(self) -> tuple[str, ...]:
        """Return the queues' names, in order."""
        count = self.raw["port_tx_bytes"].shape[1]
        return self.scenario.queue_names or tuple(f"queue {index}" for index in range(count))

    def flows_of(self, traffic_class: str | None = None) -> NDArray[np.bool_]:
        """Return which flows carry bytes of a class, or bytes at all, [flows]; gates never do.

        Raises:
            SpecError: there is no such class.
        """
        real = self.flow_bytes > 0
        return real if traffic_class is None else real & (self.flow_class == self._class(traffic_class))

    def percentile(self, traffic_class: str | None = None, percent: float = 50) -> float:
        """Return a percentile of packet latency, from its first bit at the sender to the receiver's memory, in us.

        Within 1 % of the exact one (nearest rank); NaN when no packet arrived.

        Args:
            traffic_class: None for all together.
            percent: 0 to 100.

        Raises:
            SpecError: there is no such class or percentile.
        """
        counts = self.raw["latency_counts"]
        chosen = counts.sum(axis=0) if traffic_class is None else counts[self._class(traffic_class)]
        return histogram.percentile(chosen, percent) / _PS_A_US

    def completion_percentile(self, traffic_class: str | None = None, percent: float = 50) -> float:
        """Return a percentile (nearest rank) of the completion times of finished flows, in us; NaN without any.

        Raises:
            SpecError: there is no such class or percentile.
        """
        taken = self.completion_us[self.flows_of(traffic_class)]
        taken = np.sort(taken[~np.isnan(taken)])
        rank = histogram.nearest_rank(percent, len(taken))
        return float(taken[rank - 1]) if len(taken) else float("nan")

    def goodput(self, traffic_class: str | None = None) -> float:
        """Return the payload of delivered flows over the time from the first start to the last delivery, in bit/s.

        Raises:
            SpecError: there is no such class.
        """
        chosen = self.flows_of(traffic_class) & ~np.isnan(self.delivered_us)
        if not chosen.any():
            return 0.0
        span_us = float(self.delivered_us[chosen].max() - self.start_us[chosen].min())
        return float(self.flow_bytes[chosen].sum()) * 8 / span_us * _PS_A_US

    def fairness(self, traffic_class: str | None = None) -> float:
        """Return Jain's index over the rates of finished flows: 1 when all are equal, 1/n when one has all.

        Raises:
            SpecError: there is no such class.
        """
        rates = self.flow_rate[self.flows_of(traffic_class)]
        rates = rates[~np.isnan(rates)]
        return float(rates.sum() ** 2 / (len(rates) * (rates**2).sum())) if len(rates) else float("nan")

    def _class(self, name: str) -> int:
        if name not in self.class_names:
            raise SpecError(f'class: expected one of {", ".join(self.class_names)}, got "{name}"')
        return self.class_names.index(name)

    # Ports ------------------------------------------------------------------------------------

    def port_name(self, port: int) -> str:
        """Return "leaf3:5 -> spine1": a port by node and place there, and where its cable ends."""
        node = int(self.scenario.port_node[port])
        there = int(self.scenario.port_node[self.scenario.port_peer[port]])
        place = port - int(self.scenario.node_first_port[node])
        return f"{self.scenario.node_name(node)}:{place} -> {self.scenario.node_name(there)}"

    @cached_property
    def utilisation(self) -> NDArray[np.float64]:
        """Return the share of the time in which each port sent, [ports]."""
        sent = self.raw["port_tx_bytes"].sum(axis=1)
        return sent * self.scenario.port_ps_q16 / 65536 / max(1, int(self.raw["time"]))

    def hottest_ports(self, most: int = 10) -> list[PortUse]:
        """Return the ports that were busiest, the busiest first."""
        from fourlane.twin.fabric.summary import port_use

        order = np.argsort(-self.utilisation, kind="stable")[:most]
        return [port_use(self, int(port)) for port in order if self.utilisation[port] > 0]

    @property
    def sample_us(self) -> NDArray[np.float64]:
        """Return when ports were sampled, [samples]; empty without an interval."""
        return self.raw["sample_time"] / _PS_A_US

    @cached_property
    def utilisation_over_time(self) -> NDArray[np.float64]:
        """Return the share of the time since the sample before in which each port sent, [samples, sampled ports]."""
        sent = np.diff(self.raw["sample_tx"], axis=0, prepend=0)
        span_ps = np.diff(self.raw["sample_time"], prepend=0)
        busy_ps = sent * self.scenario.port_ps_q16[self.scenario.sample_ports] / 65536
        return busy_ps / np.maximum(1, span_ps)[:, None]

    @property
    def depth_over_time(self) -> NDArray[np.int64]:
        """Return the bytes that waited at each port, [samples, sampled ports]."""
        return self.raw["sample_depth"]

    # All together -----------------------------------------------------------------------------

    def total(self, counter: str, queue: str | None = None) -> int:
        """Return a counter over all ports: "drops", "marks", "trims", "pauses", "paused_ps", "tx_bytes", "tx_packets".

        Args:
            counter: its name.
            queue: None for all queues together.

        Raises:
            SpecError: there is no such counter or queue.
        """
        known = ("drops", "marks", "trims", "pauses", "paused_ps", "tx_bytes", "tx_packets")
        if counter not in known:
            raise SpecError(f'counter: expected one of {", ".join(known)}, got "{counter}"')
        if queue is not None and queue not in self.queue_names:
            raise SpecError(f'queue: expected one of {", ".join(self.queue_names)}, got "{queue}"')
        counts = self.raw[f"port_{counter}"]
        return int(counts.sum() if queue is None else counts[:, self.queue_names.index(queue)].sum())

    def summary(self) -> Summary:
        """Return the figures in brief: all together, by class, by queue, the hottest ports. `str` makes it a text."""
        from fourlane.twin.fabric.summary import summarise

        return summarise(self)

    def to_json(self) -> str:
        """Return the summary as indented JSON."""
        import msgspec

        return msgspec.json.format(msgspec.json.encode(self.summary()), indent=2).decode()

    def save(self, path: str | Path) -> None:
        """Write everything into a .npz file that `load` reads, on any machine.

        Raises:
            SpecError: it cannot be written.
        """
        from fourlane.twin.fabric.results_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read what `save` wrote.

        Raises:
            SpecError: it cannot be read, or is no such file.
        """
        from fourlane.twin.fabric.results_file import load

        return load(path)


def _us(times_ps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return times in us; NaN where there is none yet (-1)."""
    return np.where(times_ps >= 0, times_ps / _PS_A_US, np.nan)
