"""Hosts: when a flow may send, how lost packets are found and sent again, what the receiver answers.

Three transports:

- go back N (RoCE's first): the receiver takes packets only in order and answers the first gap with NACK(expected); the
  sender begins again there. ACKs are cumulative.
- out of order: packets are placed wherever they arrive (RDMA writes with addresses), each is acknowledged by itself;
  a trimmed packet is answered with NACK(seq), a lost one found by the sender's timeout. Only what is missing is sent
  again.
- reorder buffer: on the wire the same; packets wait at the receiver until those before them are there.

Decisions: control packets are made by the NIC the moment a data packet's last bit is in, and go before data of their
queue. Trimmed packets are not arrivals: they count neither in latency nor in reordering. NACKs and notifications (CNP)
go out before the ACK of the same packet, and that before the next clear-to-send. RTS and CTS are not repeated: a lane
with admission should not drop them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fourlane.twin.fabric.reference.packet import Event, Kind, Packet, latency_bucket
from fourlane.twin.fabric.reference.rate_control import RateLimiter
from fourlane.twin.fabric.reference.router import STATIC

if TYPE_CHECKING:
    from fourlane.twin.fabric.reference.simulation import Simulation

__all__ = ["Flow", "Hosts"]

GO_BACK_N, OUT_OF_ORDER, REORDER_BUFFER = range(3)
NO_CONTROL, DCQCN, CLEAR_TO_SEND = range(3)
IN_ORDER = 1  # queue_service


@dataclass(slots=True)
class Flow:
    """A flow, at its sender and at its receiver.

    A packet that was sent and not acknowledged is outstanding until it is acknowledged or known, or believed, to be
    lost. Sequence numbers count packets.
    """

    id: int
    source: int
    target: int
    traffic_class: int
    size: int
    message: int
    total: int  # packets
    waits_for: int = 0  # flows
    earliest: int = 0
    # Sender
    open: bool = False  # started, and cleared to send where that is needed
    finished: bool = False
    next_seq: int = 0
    acknowledged: int = 0  # all before this one, or with sparse ACKs so many
    acked: set[int] = field(default_factory=set)  # one by one, otherwise
    lost: deque[int] = field(default_factory=deque)  # to be sent again before anything new
    outstanding: int = 0  # wire bytes
    last_progress: int = 0
    rto_at: int = -1  # of the pending event; so are the next two
    pace_at: int = -1
    timer_at: int = -1
    pace_next: int = 0
    limiter: RateLimiter | None = None
    in_ring: bool = False
    # Receiver
    expected: int = 0
    nacked: int = -1
    accepted: set[int] = field(default_factory=set)
    unacknowledged: int = 0  # accepted packets since the last ACK
    highest: int = -1
    last_cnp: int = -1


class Hosts:
    """All flows, and for each host port and queue the ring of flows that may send now."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.scenario = scenario = simulation.scenario
        self.ring: list[list[deque[Flow]]] = [[deque() for _ in range(scenario.queues)] for _ in range(scenario.ports)]
        self.granted: dict[tuple[int, int], int] = {}  # (endpoint, class) -> senders cleared
        self.requests: dict[tuple[int, int], deque[Flow]] = {}
        self.flows = [self.new_flow(f) for f in range(scenario.flows)]
        for later in scenario.flow_after:
            self.flows[later].waits_for += 1
        for flow in self.flows:
            if flow.waits_for == 0:
                self.schedule_start(flow)

    def new_flow(self, f: int) -> Flow:
        """Return a flow before its start."""
        s, size, mtu = self.scenario, self.scenario.flow_size[f], self.scenario.mtu
        message = s.flow_message[f] or max(size, 1)
        total = size // message * -(-message // mtu) + -(-(size % message) // mtu)
        source, target, traffic_class = s.flow_src_port[f], s.flow_dst_port[f], s.flow_class[f]
        flow = Flow(f, source, target, traffic_class, size, message, total, earliest=s.flow_start[f])
        if total and s.class_cc[traffic_class] == DCQCN:
            flow.limiter = RateLimiter(s.dcqcn, s.port_ps_q16[source])
        return flow

    # Packets of a flow ---------------------------------------------------------------------------

    def place(self, flow: Flow, seq: int) -> tuple[int, int]:
        """Return in which message a packet is, and which packet of it."""
        return divmod(seq, -(-flow.message // self.scenario.mtu))

    def payload(self, flow: Flow, seq: int) -> int:
        """Return a packet's bytes of payload: full ones, then the rest of the message."""
        message, part = self.place(flow, seq)
        length = min(flow.message, flow.size - message * flow.message)
        return min(self.scenario.mtu, length - part * self.scenario.mtu)

    def wire(self, flow: Flow, seq: int) -> int:
        """Return a data packet's bytes on the wire."""
        return self.payload(flow, seq) + self.scenario.header

    def gap_after(self, packet: Packet) -> int:
        """Return how long the NIC is busy, beyond serialisation, with the first packet of a message."""
        flow = self.flows[packet.flow]
        if packet.kind != Kind.DATA or self.place(flow, packet.seq)[1] != 0:
            return 0
        return self.scenario.port_message_gap[flow.source]

    # Start and end of flows -----------------------------------------------------------------------

    def schedule_start(self, flow: Flow) -> None:
        """Let a flow start `flow_delay` after it may; its bytes reach the NIC's port `port_tx_latency` later."""
        time = flow.earliest + self.scenario.flow_delay[flow.id]
        self.simulation.push(time + self.latency_before(flow), Event.START, flow.id)

    def latency_before(self, flow: Flow) -> int:
        """Return how long a flow's bytes take to the NIC's port. A gate has none."""
        return self.scenario.port_tx_latency[flow.source] if flow.total else 0

    def start(self, f: int) -> None:
        """Begin to send, or ask for leave to. A flow without bytes is over at once: a gate for others."""
        flow = self.flows[f]
        flow.open = True
        self.simulation.flow_started[f] = self.simulation.now - self.latency_before(flow)
        if flow.total == 0:
            self.delivered(flow, self.simulation.now)
            self.finish(flow)
        elif self.scenario.class_cc[flow.traffic_class] == CLEAR_TO_SEND:
            flow.open = False
            self.send_control(flow, Kind.RTS)
        else:
            self.refresh_and_kick(flow)

    def delivered(self, flow: Flow, time: int) -> None:
        """Note that all payload has arrived, and start flows that waited for nothing else."""
        self.simulation.flow_delivered[flow.id] = time
        first = self.scenario.flow_after_first
        if len(first) == 1:
            return
        for later in self.scenario.flow_after[first[flow.id] : first[flow.id + 1]]:
            waiting = self.flows[later]
            waiting.earliest = max(waiting.earliest, time)
            waiting.waits_for -= 1
            if waiting.waits_for == 0:
                self.schedule_start(waiting)

    def finish(self, flow: Flow) -> None:
        """Note that the sender knows of all packets that they arrived."""
        flow.finished = True
        self.simulation.flow_finish[flow.id] = self.simulation.now
        self.simulation.flows_done += 1
        flow.rto_at = flow.pace_at = flow.timer_at = -1
        if flow.total:
            self.refresh(flow)

    # Sending -------------------------------------------------------------------------------------

    def refresh(self, flow: Flow) -> None:
        """Put a flow at the end of its port's ring if it may send now and is not there; take it out if it may not."""
        wanted = self.may_send(flow)
        if wanted and flow.pace_next > self.simulation.now:
            wanted = False
            if flow.pace_at != flow.pace_next:
                flow.pace_at = flow.pace_next
                self.simulation.push(flow.pace_at, Event.PACE, flow.id)
        ring = self.ring[flow.source][self.scenario.class_queue[flow.traffic_class]]
        if wanted and not flow.in_ring:
            ring.append(flow)
        elif flow.in_ring and not wanted:
            ring.remove(flow)
        flow.in_ring = wanted

    def may_send(self, flow: Flow) -> bool:
        """Tell whether a flow has a packet to send that its window allows. One packet is always allowed."""
        if not flow.open or flow.finished or (not flow.lost and flow.next_seq == flow.total):
            return False
        window = self.scenario.class_window[flow.traffic_class]
        return not window or not flow.outstanding or flow.outstanding + self.next_wire(flow) <= window

    def next_wire(self, flow: Flow) -> int:
        """Return the size of the packet that a flow would send next."""
        return self.wire(flow, flow.lost[0] if flow.lost else flow.next_seq)

    def head_wire(self, port: int, queue: int) -> int:
        """Return the size of the packet that the ring's first flow would send; 0 if the ring is empty."""
        ring = self.ring[port][queue]
        return self.next_wire(ring[0]) if ring else 0

    def take(self, port: int, queue: int) -> Packet:
        """Make the next data packet of a ring. Its flow goes to the end, or stays in front (`queue_service` 1)."""
        ring = self.ring[port][queue]
        flow = ring.popleft()
        flow.in_ring = False
        packet = self.next_packet(flow)
        self.refresh(flow)
        if flow.in_ring and self.scenario.queue_service[queue] == IN_ORDER:
            ring.rotate(1)
        return packet

    def next_packet(self, flow: Flow) -> Packet:
        """Make a flow's next data packet, arm its timeout and count it towards window and rate."""
        now, rto = self.simulation.now, self.scenario.class_rto[flow.traffic_class]
        if flow.lost:
            seq = flow.lost.popleft()
        else:
            seq, flow.next_seq = flow.next_seq, flow.next_seq + 1
        wire = self.wire(flow, seq)
        if not flow.outstanding:
            flow.last_progress = now
        flow.outstanding += wire
        if rto and flow.rto_at < 0:
            flow.rto_at = flow.last_progress + rto
            self.simulation.push(flow.rto_at, Event.RTO, flow.id)
        if flow.limiter:
            flow.pace_next = now + flow.limiter.spacing(wire)
            flow.limiter.sent(wire)
        return self.packet(flow, Kind.DATA, seq, wire)

    def packet(self, flow: Flow, kind: Kind, seq: int, wire: int) -> Packet:
        """Make a packet of any kind. Statically routed ones carry the flow's pin in place of a hash, both ways."""
        s, c = self.scenario, flow.traffic_class
        queues = {Kind.DATA: s.class_queue, Kind.CNP: s.class_cnp_queue}
        forward = kind in {Kind.DATA, Kind.RTS}
        hash32 = s.flow_hash[flow.id] if forward else s.flow_back_hash[flow.id]
        if s.class_routing[c] == STATIC:
            hash32 = s.flow_pin[flow.id]
        destination = flow.target if forward else flow.source
        queue = queues.get(kind, s.class_ack_queue)[c]
        return Packet(flow.id, seq, kind, wire, c, queue, destination, hash32, ready=self.simulation.now)

    def send_control(self, flow: Flow, kind: Kind, seq: int = 0) -> None:
        """Queue a control packet at the sender (RTS) or at the receiver (all others)."""
        port = flow.source if kind == Kind.RTS else flow.target
        self.simulation.enqueue(port, self.packet(flow, kind, seq, self.scenario.ack_wire))

    def pace(self, f: int) -> None:
        """Let a rate-limited flow go on."""
        self.flows[f].pace_at = -1
        self.refresh_and_kick(self.flows[f])

    def refresh_and_kick(self, flow: Flow) -> None:
        """See whether a flow may send, and if so wake its port."""
        self.refresh(flow)
        self.simulation.kick(flow.source)

    # What the sender hears -----------------------------------------------------------------------

    def acknowledgement(self, flow: Flow, seq: int) -> None:
        """Take in an ACK: of one packet, of all before `seq` (go back N), or of `seq` packets (sparse ACKs)."""
        if self.acknowledges_singly(flow):
            if seq in flow.acked:
                return
            flow.acked.add(seq)
            flow.acknowledged += 1
            if seq in flow.lost:
                flow.lost.remove(seq)
            else:
                flow.outstanding -= self.wire(flow, seq)
        elif seq > flow.acknowledged:
            flow.outstanding -= sum(self.wire(flow, s) for s in range(flow.acknowledged, min(seq, flow.next_seq)))
            flow.acknowledged = seq
            flow.next_seq = max(flow.next_seq, seq)
        else:
            return
        flow.last_progress = self.simulation.now
        if flow.acknowledged == flow.total:
            self.finish(flow)
        else:
            self.refresh_and_kick(flow)

    def acknowledges_singly(self, flow: Flow) -> bool:
        """Tell whether each ACK names its packet; otherwise it says how many have arrived."""
        c = flow.traffic_class
        return self.scenario.class_transport[c] != GO_BACK_N and self.scenario.class_ack_every[c] == 1

    def negative(self, flow: Flow, seq: int) -> None:
        """Take in a NACK: begin again at a packet (go back N), or send one again."""
        if self.scenario.class_transport[flow.traffic_class] == GO_BACK_N:
            if seq < flow.acknowledged:
                return
            self.count_again(flow, max(0, flow.next_seq - seq))
            flow.acknowledged = flow.next_seq = seq
            flow.outstanding = 0
        else:
            if seq in flow.acked or seq in flow.lost:
                return
            self.count_again(flow, 1)
            flow.lost.append(seq)
            flow.outstanding -= self.wire(flow, seq)
        self.refresh_and_kick(flow)

    def timeout(self, f: int) -> None:
        """Believe everything outstanding to be lost if nothing was acknowledged for `class_rto`; else look later."""
        flow = self.flows[f]
        flow.rto_at = -1
        due = flow.last_progress + self.scenario.class_rto[flow.traffic_class]
        if not flow.outstanding:
            return  # the next packet sent arms it again
        if due > self.simulation.now:
            flow.rto_at = due
            self.simulation.push(due, Event.RTO, f)
            return
        if self.scenario.class_transport[flow.traffic_class] == GO_BACK_N:
            self.count_again(flow, flow.next_seq - flow.acknowledged)
            flow.next_seq = flow.acknowledged
        else:
            again = [s for s in range(flow.next_seq) if s not in flow.acked and s not in flow.lost]
            self.count_again(flow, len(again))
            flow.lost.extend(again)
        flow.outstanding = 0
        self.refresh_and_kick(flow)

    def count_again(self, flow: Flow, packets: int) -> None:
        """Count packets that will have to be sent again."""
        self.simulation.flow_retransmitted[flow.id] += packets

    def notification(self, flow: Flow) -> None:
        """Slow down: a CNP came in. The timer of increases starts anew. A packet's time already set stays."""
        if flow.limiter and flow.limiter.cut(self.simulation.now):
            self.arm_timer(flow, flow.limiter)

    def timer(self, f: int) -> None:
        """Speed up: DCQCN's timer has run out."""
        flow = self.flows[f]
        if flow.limiter:
            flow.limiter.tick()
            self.arm_timer(flow, flow.limiter)

    def arm_timer(self, flow: Flow, limiter: RateLimiter) -> None:
        """Let the timer run again, as long as there is a rate to raise."""
        flow.timer_at = -1
        if limiter.limited:
            flow.timer_at = self.simulation.now + self.scenario.dcqcn.timer
            self.simulation.push(flow.timer_at, Event.CC_TIMER, flow.id)

    # What arrives at a host ----------------------------------------------------------------------

    def receive(self, packet: Packet) -> None:
        """Take in a packet whose last bit has arrived."""
        flow = self.flows[packet.flow]
        if packet.kind == Kind.DATA:
            self.receive_data(flow, packet)
        elif packet.kind == Kind.RTS:
            self.request(flow)
        elif flow.finished:
            return
        elif packet.kind == Kind.ACK:
            self.acknowledgement(flow, packet.seq)
        elif packet.kind == Kind.NACK:
            self.negative(flow, packet.seq)
        elif packet.kind == Kind.CNP:
            self.notification(flow)
        elif packet.kind == Kind.CTS:
            flow.open = True
            self.refresh_and_kick(flow)

    def receive_data(self, flow: Flow, packet: Packet) -> None:
        """Note what there is to note of a data packet, answer a mark, and hand it to the transport."""
        now, s = self.simulation.now, self.scenario
        if not packet.trimmed:
            latency = now - packet.sent + s.port_tx_latency[flow.source] + s.port_rx_latency[flow.target]
            self.simulation.latency_counts[flow.traffic_class, latency_bucket(latency)] += 1
            flow.highest = max(flow.highest, packet.seq)
            depth = flow.highest - packet.seq
            self.simulation.flow_reorder[flow.id] = max(self.simulation.flow_reorder[flow.id], depth)
        if packet.marked and flow.limiter and (flow.last_cnp < 0 or now - flow.last_cnp >= s.dcqcn.cnp_interval):
            flow.last_cnp = now
            self.send_control(flow, Kind.CNP)
        if s.class_transport[flow.traffic_class] == GO_BACK_N:
            self.receive_in_order(flow, packet)
        else:
            self.receive_anywhere(flow, packet)

    def receive_in_order(self, flow: Flow, packet: Packet) -> None:
        """Accept only the expected packet; answer the first sign of a gap."""
        if packet.seq == flow.expected and not packet.trimmed:
            flow.expected += 1
            self.simulation.delivered_payload += self.payload(flow, packet.seq)
            self.accept(flow, flow.expected, flow.expected)
        elif packet.seq < flow.expected:
            self.acknowledge(flow, flow.expected)
        elif flow.nacked != flow.expected:
            flow.nacked = flow.expected
            self.send_control(flow, Kind.NACK, flow.expected)

    def receive_anywhere(self, flow: Flow, packet: Packet) -> None:
        """Accept any packet that is new; ask for one that came trimmed."""
        singly = self.acknowledges_singly(flow)
        if packet.seq in flow.accepted:
            self.acknowledge(flow, packet.seq if singly else len(flow.accepted))
        elif packet.trimmed:
            self.send_control(flow, Kind.NACK, packet.seq)
        else:
            flow.accepted.add(packet.seq)
            self.deliver_payload(flow, packet.seq)
            self.accept(flow, packet.seq if singly else len(flow.accepted), len(flow.accepted))

    def deliver_payload(self, flow: Flow, seq: int) -> None:
        """Count payload as delivered: placed at once, or in order behind a reorder buffer."""
        if self.scenario.class_transport[flow.traffic_class] == OUT_OF_ORDER:
            self.simulation.delivered_payload += self.payload(flow, seq)
            return
        while flow.expected in flow.accepted:
            self.simulation.delivered_payload += self.payload(flow, flow.expected)
            flow.expected += 1

    def accept(self, flow: Flow, acknowledged: int, arrived: int) -> None:
        """Acknowledge every `ack_every`-th packet and the last; with the last, the flow is delivered."""
        flow.unacknowledged += 1
        complete = arrived == flow.total
        if complete or flow.unacknowledged >= self.scenario.class_ack_every[flow.traffic_class]:
            self.acknowledge(flow, acknowledged)
        if not complete:
            return
        self.delivered(flow, self.simulation.now + self.scenario.port_rx_latency[flow.target])
        if self.scenario.class_cc[flow.traffic_class] == CLEAR_TO_SEND:
            self.clear_next(flow)

    def acknowledge(self, flow: Flow, seq: int) -> None:
        """Send an ACK."""
        flow.unacknowledged = 0
        self.send_control(flow, Kind.ACK, seq)

    # Admission by the receiver -------------------------------------------------------------------

    def request(self, flow: Flow) -> None:
        """Clear a sender if its receiver has a slot of the class free; else let it wait in line."""
        key = (flow.target, flow.traffic_class)
        if self.granted.get(key, 0) < self.scenario.class_cts_slots[flow.traffic_class]:
            self.granted[key] = self.granted.get(key, 0) + 1
            self.send_control(flow, Kind.CTS)
        else:
            self.requests.setdefault(key, deque()).append(flow)

    def clear_next(self, flow: Flow) -> None:
        """Pass a delivered flow's slot on to the first in line."""
        key = (flow.target, flow.traffic_class)
        self.granted[key] -= 1
        if self.requests.get(key):
            self.request(self.requests[key].popleft())
