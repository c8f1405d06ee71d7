"""The shared buffer of switches: who may fill it, when ingress is paused (PFC), when packets are marked or trimmed.

A switch has one pool of `node_shared` bytes. A queue may use at most T = alpha * (what is free of the pool) beyond its
reservation; so n equally loaded queues settle at alpha * pool / (1 + n * alpha) each, and a part always stays free for
newcomers (Choudhury and Hahne, Dynamic queue length thresholds, IEEE/ACM ToN 1998).

Lossless queues are counted by where packets came in: group (ingress port, queue). When a group may not grow any more,
the switch tells the sender at the other end of that cable to stop this queue (XOFF, IEEE 802.1Qbb). What is under way
until that works - two propagations, the sender's reaction, a packet being sent at each end - goes into the group's
headroom, which is its own: it is not taken from the pool. What leaves empties the headroom first, whichever packet
it is: the group only counts bytes. When it has emptied far enough, XON.

Lossy queues are counted by where packets go out: group (egress port, queue). What does not fit is trimmed to its
header, where the class asks for it (so that the receiver knows at once what is missing), or dropped.

Decisions: a reservation is not part of the pool and is used first. Even where T would allow it, a packet that the pool
has no room for is not admitted. A group that holds nothing after a refusal is not paused: no packet of its own
would ever resume it. A group's XON is looked at when one of its own packets leaves, not when others free the pool. PFC
frames take no bandwidth and are not lost when a link fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.twin.fabric.reference.packet import Charge, Event, Kind, mix64

if TYPE_CHECKING:
    from fourlane.twin.fabric.reference.packet import Packet
    from fourlane.twin.fabric.reference.simulation import Simulation

__all__ = ["Buffers"]

PFC_FRAME = 64
_WORD64 = 0xFFFFFFFFFFFFFFFF


class Buffers:
    """The accounts of all switches' buffers, by [port][queue] for the groups of either kind."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.scenario = simulation.scenario
        ports, queues = self.scenario.ports, self.scenario.queues
        self.shared_used = [0] * self.scenario.nodes
        self.ingress_used = [[0] * queues for _ in range(ports)]
        self.headroom_used = [[0] * queues for _ in range(ports)]
        self.xoff = [[False] * queues for _ in range(ports)]
        self.frame_free = [0] * ports  # when the last PFC frame of a port has left
        self.marks_drawn = [0] * ports

    def admit(self, packet: Packet, egress: int) -> bool:
        """Charge an arriving packet to the buffer, trimmed or marked as the rules have it; False: it is dropped."""
        if self.simulation.watchdog.discards(egress, packet.queue):
            return False
        queue_bytes = self.simulation.queue_bytes[egress][packet.queue]
        if self.charge(packet, egress):
            self.mark(packet, egress, queue_bytes)
            return True
        return self.trim(packet, egress)

    def charge(self, packet: Packet, egress: int) -> bool:
        """Charge a packet to the group that its queue's kind says, if it fits."""
        if self.scenario.queue_lossless[packet.queue]:
            return self.charge_ingress(packet)
        q, held = packet.queue, self.simulation.queue_bytes[egress]
        if not self.fits(packet, held[q]):
            return False
        self.shared_used[self.scenario.port_node[egress]] += self.growth(q, held[q], packet.wire)
        packet.charge = Charge.EGRESS
        return True

    def charge_ingress(self, packet: Packet) -> bool:
        """Charge a packet of a lossless queue to the pool or else to headroom, pausing the sender."""
        i, q, wire = packet.ingress, packet.queue, packet.wire
        if not self.xoff[i][q] and self.fits(packet, self.ingress_used[i][q]):
            self.shared_used[self.scenario.port_node[i]] += self.growth(q, self.ingress_used[i][q], wire)
            self.ingress_used[i][q] += wire
            packet.charge = Charge.INGRESS
            return True
        roomy = self.headroom_used[i][q] + wire <= self.scenario.port_headroom[i]
        if roomy:
            self.headroom_used[i][q] += wire
            packet.charge = Charge.INGRESS
        if not self.xoff[i][q] and (self.ingress_used[i][q] or self.headroom_used[i][q]):
            self.xoff[i][q] = True
            self.simulation.port_pauses[i, q] += 1
            self.send_frame(i, q, xoff=1)
        return roomy

    def fits(self, packet: Packet, held: int) -> bool:
        """Tell whether a group that holds so many bytes may take the packet in."""
        switch = self.scenario.port_node[packet.ingress]
        over = max(0, held + packet.wire - self.scenario.queue_reserved[packet.queue])
        free = self.scenario.node_shared[switch] - self.shared_used[switch]
        return over <= self.threshold(switch, packet.queue) and self.growth(packet.queue, held, packet.wire) <= free

    def threshold(self, switch: int, queue: int) -> int:
        """Return T: how far a group may go beyond its reservation, as things stand."""
        free = self.scenario.node_shared[switch] - self.shared_used[switch]
        return self.scenario.queue_alpha_q16[queue] * free >> 16

    def growth(self, queue: int, held: int, more: int) -> int:
        """Return how much more of the pool a group needs that grows from `held` by `more` bytes."""
        reserved = self.scenario.queue_reserved[queue]
        return max(0, held + more - reserved) - max(0, held - reserved)

    def trim(self, packet: Packet, egress: int) -> bool:
        """Cut a packet that did not fit down to its header, in the queue for such; False where that cannot be."""
        scenario, q, whole = self.scenario, packet.queue, packet.wire
        if packet.kind != Kind.DATA or packet.trimmed or not scenario.class_trim[packet.traffic_class]:
            return False
        if scenario.queue_lossless[q] or whole <= scenario.trim_wire:
            return False
        packet.wire, packet.queue = scenario.trim_wire, scenario.trim_queue
        if self.simulation.watchdog.discards(egress, packet.queue) or not self.charge(packet, egress):
            packet.wire, packet.queue = whole, q
            return False
        packet.trimmed = True
        self.simulation.port_trims[egress, q] += 1
        self.simulation.wire_bytes_dropped += whole - packet.wire
        return True

    def mark(self, packet: Packet, egress: int, queue_bytes: int) -> None:
        """Mark congestion (ECN, by RED): the queue was longer than Kmax, or longer than Kmin and the dice fell so."""
        scenario, q = self.scenario, packet.queue
        low, high = scenario.queue_kmin[q], scenario.queue_kmax[q]
        if packet.kind != Kind.DATA or packet.marked or packet.trimmed:
            return
        if not scenario.class_ecn[packet.traffic_class] or low < 0 or queue_bytes < low:
            return
        if queue_bytes < high:
            chance = scenario.queue_pmax_q32[q] * (queue_bytes - low) // (high - low)
            if self.draw(egress) >= chance:
                return
        packet.marked = True
        self.simulation.port_marks[egress, q] += 1

    def draw(self, egress: int) -> int:
        """Return 32 random bits: a hash of seed, port and counter."""
        salt = (egress + 1) * 0x9E3779B97F4A7C15 ^ self.marks_drawn[egress] * 0xD1B54A32D192ED03
        self.marks_drawn[egress] += 1
        return mix64((self.scenario.seed ^ 0xA5A5 ^ salt) & _WORD64) >> 32

    def release(self, packet: Packet, egress: int) -> None:
        """Free what a packet held, as its transmission begins or it is dropped; call it with the queue it leaves."""
        i, q, wire = packet.ingress, packet.queue, packet.wire
        switch = self.scenario.port_node[egress]
        if packet.charge == Charge.NONE:  # a host's own: it has no buffer to pause anyone for
            return
        if packet.charge == Charge.EGRESS:  # the queue's bytes no longer count the packet
            self.shared_used[switch] -= self.growth(q, self.simulation.queue_bytes[egress][q], wire)
        elif packet.charge == Charge.INGRESS:
            from_headroom = min(wire, self.headroom_used[i][q])
            self.headroom_used[i][q] -= from_headroom
            self.ingress_used[i][q] -= wire - from_headroom
            self.shared_used[switch] -= self.growth(q, self.ingress_used[i][q], wire - from_headroom)
        packet.charge = Charge.NONE
        if self.scenario.queue_lossless[q] and self.xoff[i][q]:
            self.resume_if_empty_enough(switch, i, q)

    def resume_if_empty_enough(self, switch: int, ingress: int, queue: int) -> None:
        """Send XON once headroom is empty and the group is `xon_offset` below its threshold, or in its reservation."""
        used = self.ingress_used[ingress][queue]
        over = used - self.scenario.queue_reserved[queue]
        if self.headroom_used[ingress][queue] > 0:
            return
        if over <= 0 or over + self.scenario.xon_offset <= self.threshold(switch, queue):
            self.xoff[ingress][queue] = False
            self.send_frame(ingress, queue, xoff=0)

    def send_frame(self, ingress: int, queue: int, xoff: int) -> None:
        """Send a PFC frame back along the cable: after the packet being sent there and after earlier frames."""
        scenario, simulation = self.scenario, self.simulation
        depart = max(simulation.now, simulation.free_at[ingress], self.frame_free[ingress])
        self.frame_free[ingress] = depart + simulation.serialisation(ingress, PFC_FRAME)
        arrival = self.frame_free[ingress] + scenario.port_prop[ingress] + scenario.pfc_response
        simulation.push(arrival, Event.PAUSE, scenario.port_peer[ingress] * 16 + queue * 2 + xoff)
