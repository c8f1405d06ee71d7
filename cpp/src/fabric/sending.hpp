// An egress port: its queues, which of them is next, and a packet's way onto the link. Part of core.cpp.
#pragma once

#include <algorithm>
#include <bit>

#include "core.hpp"

namespace fourlane::fabric {

inline void Core::change_depth(std::uint32_t port, std::int64_t by) {
    Depth& depth = depth_[port];
    depth.now += by;
    depth.most = std::max(depth.most, depth.now);
    if (signal_follows_) signal_[port] = signal_of(depth.now);
}

// Queue a packet at a port; its `time` is when it may leave.
inline void Core::append(std::uint32_t number, std::uint32_t id) {
    Packet& packet = packets_[id];
    Port& port = ports_[number];
    Queue& queue = queue_at(number, packet.queue);
    packet.next = kNone;
    queue.bytes += {packet.wire};
    change_depth(number, packet.wire);
    if (queue.head != kNone) {
        packets_[queue.tail].next = id;
        packets_[queue.tail].next_time = packet.time;
        queue.tail = id;
        return;
    }
    queue.head = queue.tail = id;
    queue.ready = packet.time;
    port.busy |= static_cast<std::uint8_t>(1U << packet.queue);
    if (port.up && !halted(port, packet.queue)) wake(number, port, std::max({packet.time, port.free_at, queue.credit}));
}

// Take the first packet of a queue.
inline std::uint32_t Core::take(std::uint32_t number, Port& port, unsigned q) {
    Queue& queue = queue_at(number, q);
    const std::uint32_t id = queue.head;
    const Packet& packet = packets_[id];
    queue.head = packet.next;
    queue.ready = queue.head == kNone ? Time{} : packet.next_time;
    queue.bytes -= {packet.wire};
    change_depth(number, -static_cast<std::int64_t>(packet.wire));
    if (queue.head == kNone && queue.flow_head == kNone) port.busy &= static_cast<std::uint8_t>(~(1U << q));
    return id;
}

inline void Core::transmit(std::uint32_t number, Time now) {
    Port& port = ports_[number];
    port.wake = kNever;
    const int q = pick(port, number, now);
    if (q < 0) return kick(number, now);
    Queue& queue = queue_at(number, static_cast<unsigned>(q));
    Time gap{};
    std::uint32_t id;
    if (queue.head != kNone) {
        id = take(number, port, static_cast<unsigned>(q));
        if (!port.at_host) release(packets_[id], number, now);
    } else {
        id = take_from_flow(number, port, queue, now, gap);
    }
    put_on_link(number, port, queue, packets_[id], id, gap, now);
    if (port.busy != 0) {
        port.wake = port.free_at;
        events_.push(port.free_at, EventKind::transmit, number);
    }
}

inline void Core::put_on_link(std::uint32_t number, Port& port, Queue& queue, Packet& packet, std::uint32_t id, Time gap,
                              Time now) {
    const Bytes wire{packet.wire};
    const Time busy = serialisation(port.pace_q16, wire);
    const QueueRules& rules = queue_rules_[packet.queue];
    if (rules.cap_q16 > 0) spend_credit(port, queue, rules, busy, now);
    port.free_at = now + busy + gap;
    Time head = busy;
    if (port.to_cut_through) head = serialisation(port.pace_q16, std::min(wire, kCutThroughHeader));
    packet.time = now + head + port.propagation;
    packet.next = kNone;
    if (port.at_host) {
        packet.sent = now;
        wire_sent_ += wire;
        if (packet.kind == PacketKind::data) ++data_sent_;
    }
    queue.sent_bytes += wire.count;
    ++queue.sent_packets;
    if (packet.kind == PacketKind::data) ++data_hops_;
    if (port.flight_head == kNone) {
        port.flight_head = id;
        events_.push(packet.time, EventKind::arrive, number);
    } else {
        packets_[port.flight_tail].next = id;
        packets_[port.flight_tail].next_time = packet.time;
    }
    port.flight_tail = id;
}

// Which queue sends now: -1 if none may. Strict queues go first, the highest before the others.
inline int Core::pick(Port& port, std::uint32_t number, Time now) {
    const unsigned open = open_queues(port);
    for (unsigned left = open & strict_queues_; left != 0;) {
        const unsigned q = static_cast<unsigned>(std::bit_width(left)) - 1;
        if (eligible(number, q, now)) return static_cast<int>(q);
        left &= ~(1U << q);
    }
    unsigned can = 0;
    for (unsigned left = open & ~strict_queues_; left != 0; left &= left - 1) {
        const auto q = static_cast<unsigned>(std::countr_zero(left));
        if (eligible(number, q, now)) can |= 1U << q;
    }
    return can == 0 ? -1 : pick_weighted(port, number, can);
}

// Deficit round robin among the queues that may send.
inline int Core::pick_weighted(Port& port, std::uint32_t number, unsigned can) {
    while (true) {
        const unsigned q = port.current;
        Queue& queue = queue_at(number, q);
        if ((can >> q & 1) == 0) {
            queue.deficit = 0;
        } else {
            if (port.fresh) queue.deficit += queue_rules_[q].quantum;
            port.fresh = false;
            const std::int64_t wire = next_wire(queue);
            if (wire <= queue.deficit) {
                queue.deficit -= wire;
                return static_cast<int>(q);
            }
        }
        port.current = queue_rules_[q].next_weighted;
        port.fresh = true;
    }
}

inline bool Core::eligible(std::uint32_t number, unsigned q, Time now) {
    const Queue& queue = queue_at(number, q);
    return queue.ready <= now && queue.credit <= now;
}

// Bytes of the packet a queue would send next.
inline std::int64_t Core::next_wire(const Queue& queue) {
    if (queue.head != kNone) return packets_[queue.head].wire;
    return next_wire_of(flows_[queue.flow_head], queue.flow_head).count;
}

// A capped queue spends more time than its packet takes; what it has saved up is bounded.
inline void Core::spend_credit(const Port& port, Queue& queue, const QueueRules& rules, Time busy, Time now) {
    queue.credit = std::max(queue.credit, now - serialisation(port.pace_q16, kCapBurst));
    queue.credit += {(busy.ps * rules.cap_q16) >> 16};
}

// Let a port look for something to send as soon as there may be something, if it would not anyhow.
inline void Core::kick(std::uint32_t number, Time now) {
    Port& port = ports_[number];
    Time earliest = kNever;
    for (unsigned left = open_queues(port); left != 0; left &= left - 1) {
        const Queue& queue = queue_at(number, static_cast<unsigned>(std::countr_zero(left)));
        earliest = std::min(earliest, std::max(queue.ready, queue.credit));
    }
    if (earliest != kNever) wake(number, port, std::max({now, port.free_at, earliest}));
}

}  // namespace fourlane::fabric
