"""The events, and what ports do: hold packets in queues, choose one, put it on the wire.

A port sends one packet at a time. A packet of b bytes occupies it for ser = (b * port_ps_q16) >> 16 ps, and is at the
other end of the cable when its last bit is (store and forward): ser + propagation later. There it waits `node_latency`
for the switch's pipeline, and then in the FIFO of its egress port and queue.

A cut-through switch begins to send once it has read the header, but only where nothing can come in between: into an
egress port that will be idle when the packet gets there, not paused, not faster than the ingress (else bits would run
out). In all other cases it stores and forwards (Dell, PowerSwitch guide, "cut-through switching"). Packets that are
ahead in the pipeline and will be gone by then do not make a port busy: the pipeline is longer than a packet.

Decisions: an event that no longer means anything (see `is_stale`) is not counted. Bytes of a PFC pause, and frames'
preambles and gaps, take no time: rates are those of whole packets. A failed link loses what is on it, and, at
a switch, what is queued for it; a host's port just waits. Pauses outlive a failure of their link.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourlane.twin.fabric.compiled import ARRAYS, HOST, NEVER
from fourlane.twin.fabric.reference.buffers import Buffers
from fourlane.twin.fabric.reference.hosts import Hosts
from fourlane.twin.fabric.reference.packet import LATENCY_BUCKETS, Event, Kind, Packet
from fourlane.twin.fabric.reference.router import Router
from fourlane.twin.fabric.reference.watchdog import Watchdog

if TYPE_CHECKING:
    from fourlane.twin.fabric.compiled import CompiledScenario

__all__ = ["Simulation"]

CUT_THROUGH_HEADER = 64  # bytes that a switch must have read
CAP_BURST = 16384  # bytes that a capped queue may save up


class Simulation:
    """One run. Its parts share it: `router`, `buffers`, `watchdog` for switches, `hosts`."""

    def __init__(self, compiled: CompiledScenario) -> None:
        self.scenario = scenario = plain(compiled)
        ports, queues = scenario.ports, scenario.queues
        self.now = self.events = self.flows_done = self.epoch = 0
        self.heap: list[tuple[int, Event, int]] = []
        self.up = list(scenario.epoch_port_up[0])
        # Ports
        self.queued: list[list[deque[Packet]]] = [[deque() for _ in range(queues)] for _ in range(ports)]
        self.queue_bytes = [[0] * queues for _ in range(ports)]
        self.depth = [0] * ports
        self.free_at = [0] * ports  # the wire is busy until then
        self.wake = [NEVER] * ports  # time of the TX event that counts; others of the port are stale
        self.credit = [[0] * queues for _ in range(ports)]  # when a capped queue may send again
        self.in_flight: list[deque[Packet]] = [deque() for _ in range(ports)]
        # Deficit round robin: whose turn it is among the weighted queues, whether it has had its quantum, what is left
        self.weighted = [q for q in range(queues) if scenario.queue_weight[q] > 0]
        self.strict = [q for q in reversed(range(queues)) if scenario.queue_weight[q] == 0]
        self.clear_at = [0] * ports  # when a port will have sent all it holds, if nothing keeps it from it
        self.turn = [0] * ports
        self.fresh = [True] * ports
        self.deficit = [[0] * queues for _ in range(ports)]
        self.make_counters()
        self.router = Router(self)
        self.watchdog = Watchdog(self)
        self.buffers = Buffers(self)
        self.hosts = Hosts(self)
        for epoch, time in enumerate(scenario.epoch_time[1:], start=1):
            self.push(time, Event.EPOCH, epoch)
        if scenario.sample_interval:
            self.push(scenario.sample_interval, Event.SAMPLE, 0)

    def make_counters(self) -> None:
        """Set all results to nothing yet."""
        ports, queues, flows = self.scenario.ports, self.scenario.queues, self.scenario.flows
        self.flow_started, self.flow_delivered, self.flow_finish = (np.full(flows, -1, np.int64) for _ in range(3))
        self.flow_retransmitted, self.flow_reorder = (np.zeros(flows, np.uint32) for _ in range(2))
        self.latency_counts = np.zeros((self.scenario.classes, LATENCY_BUCKETS), np.int64)
        self.port_tx_bytes, self.port_tx_packets = (np.zeros((ports, queues), np.int64) for _ in range(2))
        self.port_drops, self.port_marks, self.port_trims = (np.zeros((ports, queues), np.int64) for _ in range(3))
        self.port_pauses, self.port_paused_ps = (np.zeros((ports, queues), np.int64) for _ in range(2))
        self.port_max_depth = np.zeros(ports, np.int64)
        self.data_hops = self.data_packets_sent = self.data_packets_delivered = self.data_packets_dropped = 0
        self.delivered_payload = 0
        self.wire_bytes_sent = self.wire_bytes_delivered = self.wire_bytes_dropped = 0
        self.samples: list[tuple[int, list[int], list[int]]] = []

    # Events --------------------------------------------------------------------------------------

    def push(self, time: int, kind: Event, event_id: int) -> None:
        """Let an event happen at a time."""
        heappush(self.heap, (time, kind, event_id))

    def run(self, more: int = NEVER) -> str:
        """Work off events until all flows are finished; return how it ended: "running" after `more` events."""
        stop = self.events + more
        actions = {
            Event.EPOCH: self.change_epoch,
            Event.PAUSE: self.watchdog.pause,
            Event.ARRIVE: self.arrive,
            Event.START: self.hosts.start,
            Event.PACE: self.hosts.pace,
            Event.CC_TIMER: self.hosts.timer,
            Event.RTO: self.hosts.timeout,
            Event.WATCHDOG: self.watchdog.look,
            Event.TX: self.transmit,
            Event.SAMPLE: self.sample,
        }
        while self.flows_done < self.scenario.flows:
            if self.events == stop:
                return "running"
            if not self.heap:
                return "stuck"
            time, kind, event_id = heappop(self.heap)
            if time > self.scenario.max_time:
                self.now = self.scenario.max_time
                return "time"
            if self.is_stale(time, kind, event_id):
                continue
            if self.events == self.scenario.max_events:
                return "budget"
            self.events += 1
            self.now = time
            actions[kind](event_id)
        return "done"

    def is_stale(self, time: int, kind: Event, event_id: int) -> bool:
        """Tell whether an event is no longer the one that its port or flow waits for."""
        due, hosts = time, self.hosts
        match kind:
            case Event.ARRIVE:  # lost with its link?
                due = self.in_flight[event_id][0].arrival if self.in_flight[event_id] else -1
            case Event.PACE:
                due = hosts.flows[event_id].pace_at
            case Event.CC_TIMER:
                due = hosts.flows[event_id].timer_at
            case Event.RTO:
                due = hosts.flows[event_id].rto_at
            case Event.WATCHDOG:  # resumed in between?
                due = self.watchdog.look_at[event_id >> 3][event_id & 7]
            case Event.TX:
                due = self.wake[event_id]
        return due != time

    def sample(self, _: int) -> None:
        """Look at chosen ports, again and again while anything else happens."""
        ports = self.scenario.sample_ports
        sent = [int(self.port_tx_bytes[port].sum()) for port in ports]
        self.samples.append((self.now, sent, [self.depth[port] for port in ports]))
        if self.heap:
            self.push(self.now + self.scenario.sample_interval, Event.SAMPLE, 0)

    # Arrival -------------------------------------------------------------------------------------

    def arrive(self, sender: int) -> None:
        """Take the packet that a port sent into the node at the other end of its cable."""
        packet = self.in_flight[sender].popleft()
        self.expect_next(sender)
        packet.ingress = self.scenario.port_peer[sender]
        node = self.scenario.port_node[packet.ingress]
        if self.scenario.node_kind[node] == HOST:
            self.wire_bytes_delivered += packet.wire
            self.data_packets_delivered += packet.kind == Kind.DATA
            self.hosts.receive(packet)
            return
        egress = self.router.choose(packet, node)
        if egress < 0:
            self.drop(packet, sender)
        elif not self.buffers.admit(packet, egress):
            self.drop(packet, egress)
        else:
            latency = self.scenario.node_latency[node]
            packet.ready = (self.now if self.cuts_through(packet, node, egress) else packet.tail) + latency
            self.clear_at[egress] = max(self.clear_at[egress], packet.ready) + self.serialisation(egress, packet.wire)
            self.enqueue(egress, packet)

    def cuts_through(self, packet: Packet, node: int, egress: int) -> bool:
        """Tell whether a switch may send a packet on of which it has only read the header."""
        scenario, q = self.scenario, packet.queue
        ready = self.now + scenario.node_latency[node]
        return (
            scenario.node_cut_through[node] == 1
            and self.clear_at[egress] <= ready
            and max(self.now, self.free_at[egress]) + self.serialisation(egress, self.depth[egress]) <= ready
            and self.credit[egress][q] <= ready
            and not self.watchdog.halted(egress, q)
            and scenario.port_ps_q16[egress] >= scenario.port_ps_q16[packet.ingress]
        )

    def expect_next(self, port: int) -> None:
        """Let the first packet on a cable arrive when it does. Those behind it come later."""
        if self.in_flight[port]:
            self.push(self.in_flight[port][0].arrival, Event.ARRIVE, port)

    def drop(self, packet: Packet, port: int) -> None:
        """Lose a packet, and count that at a port."""
        self.port_drops[port, packet.queue] += 1
        self.wire_bytes_dropped += packet.wire
        self.data_packets_dropped += packet.kind == Kind.DATA

    # Queues --------------------------------------------------------------------------------------

    def enqueue(self, port: int, packet: Packet) -> None:
        """Put a packet at the end of its queue."""
        self.queued[port][packet.queue].append(packet)
        self.queue_bytes[port][packet.queue] += packet.wire
        self.depth[port] += packet.wire
        self.port_max_depth[port] = max(self.port_max_depth[port], self.depth[port])
        self.kick(port)

    def dequeue(self, port: int, queue: int) -> Packet:
        """Take the first packet out of a queue, and free its buffer."""
        packet = self.queued[port][queue].popleft()
        self.queue_bytes[port][queue] -= packet.wire
        self.depth[port] -= packet.wire
        self.buffers.release(packet, port)
        return packet

    def drop_queued(self, port: int, queue: int) -> None:
        """Lose all that a queue holds."""
        while self.queued[port][queue]:
            self.drop(self.dequeue(port, queue), port)

    def kick(self, port: int) -> None:
        """Let a port look for something to send as soon as there may be something, if it would not anyhow."""
        times = [self.eligible_from(port, q) for q in range(self.scenario.queues)] if self.up[port] else []
        time = max(self.now, self.free_at[port], min(times, default=NEVER))
        if time < self.wake[port]:
            self.wake[port] = time
            self.push(time, Event.TX, port)

    def eligible_from(self, port: int, queue: int) -> int:
        """Return from when on a queue may send, as things stand; NEVER if it is empty or paused."""
        if self.head_wire(port, queue) == 0 or self.watchdog.halted(port, queue):
            return NEVER
        ready = self.queued[port][queue][0].ready if self.queued[port][queue] else 0
        return max(ready, self.credit[port][queue])

    def head_wire(self, port: int, queue: int) -> int:
        """Return the size of the packet a queue would send next, 0 if none: waiting packets, then a host's flows."""
        waiting = self.queued[port][queue]
        return waiting[0].wire if waiting else self.hosts.head_wire(port, queue)

    # Transmission --------------------------------------------------------------------------------

    def transmit(self, port: int) -> None:
        """Send a packet of the queue whose turn it is; if none may send yet, wait for the first that will."""
        self.wake[port] = NEVER
        queue = self.pick(port) if self.up[port] else -1
        if queue < 0:
            self.kick(port)
            return
        packet = self.dequeue(port, queue) if self.queued[port][queue] else self.hosts.take(port, queue)
        self.put_on_wire(port, packet)
        if any(self.head_wire(port, q) for q in range(self.scenario.queues)):
            self.wake[port] = self.free_at[port]
            self.push(self.free_at[port], Event.TX, port)

    def pick(self, port: int) -> int:
        """Return the queue to send from, -1 if none may.

        Strict queues go first, the highest before the others; then deficit round robin: a queue whose turn comes may
        send its quantum, plus what was left of it the last time if it has had packets ever since (Shreedhar and
        Varghese, Efficient fair queuing using deficit round robin, SIGCOMM 1995).
        """
        eligible = [self.eligible_from(port, q) <= self.now for q in range(self.scenario.queues)]
        for q in self.strict:
            if eligible[q]:
                return q
        deficit = self.deficit[port]
        while any(eligible):
            q = self.weighted[self.turn[port]]
            if eligible[q]:
                if self.fresh[port]:
                    deficit[q] += self.scenario.queue_weight[q]
                    self.fresh[port] = False
                if self.head_wire(port, q) <= deficit[q]:
                    deficit[q] -= self.head_wire(port, q)
                    return q
            else:
                deficit[q] = 0
            self.turn[port] = (self.turn[port] + 1) % len(self.weighted)
            self.fresh[port] = True
        return -1

    def put_on_wire(self, port: int, packet: Packet) -> None:
        """Begin to serialise a packet."""
        scenario, q = self.scenario, packet.queue
        duration = self.serialisation(port, packet.wire)
        self.free_at[port] = self.now + duration
        if scenario.node_kind[scenario.port_node[port]] == HOST:
            packet.sent = self.now
            self.free_at[port] += self.hosts.gap_after(packet)
            self.wire_bytes_sent += packet.wire
            self.data_packets_sent += packet.kind == Kind.DATA
        if scenario.queue_cap_q16[q]:
            saved_up = max(self.credit[port][q], self.now - self.serialisation(port, CAP_BURST))
            self.credit[port][q] = saved_up + (duration * scenario.queue_cap_q16[q] >> 16)
        self.port_tx_bytes[port, q] += packet.wire
        self.port_tx_packets[port, q] += 1
        self.data_hops += packet.kind == Kind.DATA
        packet.tail = packet.arrival = self.now + duration + scenario.port_prop[port]
        if scenario.node_cut_through[scenario.port_node[scenario.port_peer[port]]]:
            head = self.serialisation(port, min(packet.wire, CUT_THROUGH_HEADER))
            packet.arrival = self.now + head + scenario.port_prop[port]
        self.in_flight[port].append(packet)
        if len(self.in_flight[port]) == 1:
            self.expect_next(port)

    def serialisation(self, port: int, size: int) -> int:
        """Return how long a port takes for so many bytes."""
        return size * self.scenario.port_ps_q16[port] >> 16

    # Failures ------------------------------------------------------------------------------------

    def change_epoch(self, epoch: int) -> None:
        """Let links fail and come back, and new routing tables take effect."""
        before, self.up = self.up, list(self.scenario.epoch_port_up[epoch])
        self.epoch = epoch
        for port, (was, is_up) in enumerate(zip(before, self.up, strict=True)):
            if was and not is_up:
                self.lose(port)
        for port, (was, is_up) in enumerate(zip(before, self.up, strict=True)):
            if is_up and not was:
                self.kick(port)

    def lose(self, port: int) -> None:
        """Lose what is on a failed port's cable and, at a switch, in its queues."""
        while self.in_flight[port]:
            self.drop(self.in_flight[port].popleft(), port)
        if self.scenario.node_kind[self.scenario.port_node[port]] != HOST:
            for queue in range(self.scenario.queues):
                self.drop_queued(port, queue)

    # Results -------------------------------------------------------------------------------------

    def result(self, status: str) -> dict[str, Any]:
        """Return everything counted; see `fourlane.twin.fabric.reference` for what each means."""
        names = [name for name in vars(self) if name.startswith(("flow_", "port_", "data_", "wire_bytes_"))]
        return {name: getattr(self, name) for name in names} | {
            "status": status,
            "time": self.now,
            "events": self.events,
            "flows_done": self.flows_done,
            "delivered_payload": self.delivered_payload,
            "latency_counts": self.latency_counts,
            "port_paused": self.paused(),
            "port_paused_ps": self.paused_ps(),
            "port_depth": np.array(self.queue_bytes, np.int64),
            "wire_bytes_queued": self.wire_bytes_queued(),
            "sample_time": np.array([time for time, _, _ in self.samples], np.int64),
            "sample_tx": self.sampled(1),
            "sample_depth": self.sampled(2),
        }

    def sampled(self, what: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return one of the two series of samples, [samples, ports]."""
        rows = [sample[what] for sample in self.samples]
        return np.array(rows, np.int64).reshape(len(rows), len(self.scenario.sample_ports))

    def paused(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the paused queues of each port as bits."""
        standing = np.array(self.watchdog.paused_since) >= 0
        return (standing << np.arange(self.scenario.queues)).sum(axis=1).astype(np.uint8)

    def paused_ps(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return how long each queue has stood paused, pauses that still last included."""
        since = np.array(self.watchdog.paused_since)
        return self.port_paused_ps + np.where(since >= 0, self.now - since, 0)

    def wire_bytes_queued(self) -> int:
        """Return the bytes in switches and on cables. What a host has not begun to send is not among them."""
        kinds, nodes = self.scenario.node_kind, self.scenario.port_node
        in_switches = sum(depth for port, depth in enumerate(self.depth) if kinds[nodes[port]] != HOST)
        return in_switches + sum(packet.wire for cable in self.in_flight for packet in cable)


def plain(compiled: CompiledScenario) -> SimpleNamespace:
    """Return a scenario with lists of Python's integers for arrays, and an entry for each flow."""
    counts = {name: getattr(compiled, name) for name in ("nodes", "ports", "flows", "queues", "classes", "leaves")}
    values: dict[str, Any] = dict(vars(compiled))
    for name, (_, dims) in ARRAYS.items():
        array = values[name]
        values[name] = (np.broadcast_to(array, (compiled.flows,)) if dims == "F*" else array).tolist()
    return SimpleNamespace(**(values | counts))
