// The two ends of a flow: what hosts send, and what they do with what arrives. Part of core.cpp.
#pragma once

#include <algorithm>
#include <bit>

#include "core.hpp"

namespace fourlane::fabric {

inline std::size_t latency_bucket(Time latency) {
    const auto ps = static_cast<std::uint64_t>(latency.ps);
    if (ps < 128) return ps;
    const auto doublings = static_cast<std::uint64_t>(std::bit_width(ps)) - 7;
    return 64 * doublings + (ps >> doublings);
}

// Payload of one packet: messages are cut separately, so that the last packet of each may be shorter.
inline std::uint32_t Core::payload(const Flow& flow, std::uint32_t number, std::uint32_t seq) const {
    const std::int64_t message = message_[number];
    if (message == 0 || message >= flow.size) {
        return static_cast<std::uint32_t>(std::min(in_.mtu, flow.size - std::int64_t{seq} * in_.mtu));
    }
    const Place place = place_of(message, seq);
    const std::int64_t length = std::min(message, flow.size - place.message * message);
    return static_cast<std::uint32_t>(std::min(in_.mtu, length - place.part * in_.mtu));
}

inline Core::Place Core::place_of(std::int64_t message, std::uint32_t seq) const {
    const std::int64_t parts = (message + in_.mtu - 1) / in_.mtu;
    return {seq / parts, seq % parts};
}

inline bool Core::begins_message(const Flow& flow, std::uint32_t number, std::uint32_t seq) const {
    const std::int64_t message = message_[number];
    return message == 0 || message >= flow.size ? seq == 0 : place_of(message, seq).part == 0;
}

inline std::uint32_t Core::next_seq_of(const Flow& flow, std::uint32_t number) {
    if ((flow.flags & Flow::repeating) == 0) return flow.next_seq;
    const Selective& selective = *detail(number).selective;
    return selective.lost[selective.first_lost];
}

inline Bytes Core::wire_of(const Flow& flow, std::uint32_t number, std::uint32_t seq) const {
    return {payload(flow, number, seq) + in_.header};
}

inline Bytes Core::next_wire_of(const Flow& flow, std::uint32_t number) {
    return wire_of(flow, number, next_seq_of(flow, number));
}

inline bool Core::may_send(const Flow& flow, std::uint32_t number) {
    if ((flow.flags & (Flow::open | Flow::finished)) != Flow::open) return false;
    if ((flow.flags & Flow::repeating) == 0 && flow.next_seq == flow.total) return false;
    const Bytes window = classes_[flow.traffic_class].window;
    return window == Bytes{} || flow.outstanding == Bytes{} || flow.outstanding + next_wire_of(flow, number) <= window;
}

// Give a flow without details a turn at its port if it can send.
inline void Core::offer(std::uint32_t number, Flow& flow, Time now) {
    if ((flow.flags & Flow::in_ring) != 0 || !may_send(flow, number)) return;
    join_ring(number, flow, now);
}

inline void Core::join_ring(std::uint32_t number, Flow& flow, Time now) {
    const unsigned q = classes_[flow.traffic_class].queue;
    Port& port = ports_[flow.source];
    Queue& queue = queue_at(flow.source, q);
    push_flow(queue, number, flow);
    port.busy |= static_cast<std::uint8_t>(1U << q);
    if (queue.head == kNone && port.up && !halted(port, q)) {
        wake(flow.source, port, std::max({now, port.free_at, queue.credit}));
    }
}

inline void Core::push_flow(Queue& queue, std::uint32_t number, Flow& flow) {
    flow.flags |= Flow::in_ring;
    flow.next = kNone;
    if (queue.flow_head == kNone) {
        queue.flow_head = number;
    } else {
        flows_[queue.flow_tail].next = number;
    }
    queue.flow_tail = number;
}

// Make the next packet of the flow whose turn it is.
inline std::uint32_t Core::take_from_flow(std::uint32_t port_number, Port& port, Queue& queue, Time now, Time& gap) {
    const std::uint32_t number = queue.flow_head;
    Flow& flow = flows_[number];
    const ClassRules& rules = classes_[flow.traffic_class];
    const std::uint32_t seq = (flow.flags & Flow::repeating) != 0 ? take_lost(flow, number) : flow.next_seq++;
    const Bytes wire = wire_of(flow, number, seq);
    if (!rules.plain) note_sent(flow, number, wire, now);
    flow.outstanding += wire;
    if (gaps_ && begins_message(flow, number, seq)) gap = cold_[port_number].message_gap;
    const bool more = rules.plain ? may_send(flow, number) : may_go_on(flow, number, now);
    pass_turn(queue, number, flow, more);
    if (queue.flow_head == kNone) port.busy &= static_cast<std::uint8_t>(~(1U << rules.queue));
    return new_packet(flow, number, PacketKind::data, seq, wire, now);
}

// The flow in front has sent: it goes to the end, stays in front where flows are served in order, or leaves.
inline void Core::pass_turn(Queue& queue, std::uint32_t number, Flow& flow, bool more) {
    if (more && (queue.flow_head == queue.flow_tail || queue_rules_[classes_[flow.traffic_class].queue].in_order)) return;
    queue.flow_head = flow.next;
    if (more) return push_flow(queue, number, flow);
    flow.flags &= static_cast<std::uint8_t>(~Flow::in_ring);
}

inline std::uint32_t Core::new_packet(const Flow& flow, std::uint32_t number, PacketKind kind, std::uint32_t seq, Bytes wire,
                                      Time now) {
    const std::uint32_t id = packets_.take();
    const ClassRules& rules = classes_[flow.traffic_class];
    const bool onward = kind == PacketKind::data || kind == PacketKind::rts;
    Packet& packet = packets_[id];
    packet.time = now;
    packet.flow = number;
    packet.seq = seq;
    packet.hash = onward ? flow.hash : flow.back_hash;
    packet.destination = onward ? flow.destination : flow.source;
    packet.wire = static_cast<std::uint32_t>(wire.count);
    packet.kind = kind;
    packet.charge = Charge::none;
    packet.traffic_class = flow.traffic_class;
    packet.queue = kind == PacketKind::data ? rules.queue : kind == PacketKind::cnp ? rules.cnp_queue : rules.ack_queue;
    packet.marked = packet.trimmed = false;
    return id;
}

inline void Core::deliver(std::uint32_t id, std::uint32_t port, Time now) {
    Packet& packet = packets_[id];
    Flow& flow = flows_[packet.flow];
    wire_delivered_ += {packet.wire};
    if (!classes_[flow.traffic_class].plain) return deliver_with_care(id, flow, now);
    if (packet.kind == PacketKind::data) {
        count_arrival(packet, flow, now);
        payload_delivered_ += packet.wire - in_.header;
        answer(packet, flow, now);
        append(port, id);
        if (++flow.received == flow.total) delivered(packet.flow, flow, now);
    } else {
        if (classes_[flow.traffic_class].window > Bytes{}) flow.outstanding -= wire_of(flow, packet.flow, packet.seq);
        if (++flow.acknowledged == flow.total) {
            finish(packet.flow, flow, now);
        } else {
            offer(packet.flow, flow, now);
        }
        packets_.give(id);
    }
}

// Note what there is to note of a data packet that came whole.
inline void Core::count_arrival(const Packet& packet, Flow& flow, Time now) {
    const Time latency = now - packet.sent + cold_[flow.source].tx_latency + cold_[flow.destination].rx_latency;
    ++latency_counts_[packet.traffic_class * kFabricBuckets + latency_bucket(latency)];
    if (packet.seq >= flow.highest) {
        flow.highest = packet.seq + 1;
    } else {
        flow.reorder = std::max(flow.reorder, flow.highest - 1 - packet.seq);
    }
}

// Turn a data packet that has arrived into its acknowledgement.
inline void Core::answer(Packet& packet, const Flow& flow, Time now) {
    ++data_delivered_;
    packet.time = now;
    packet.hash = flow.back_hash;
    packet.destination = flow.source;
    packet.wire = static_cast<std::uint32_t>(in_.ack_wire);
    packet.kind = PacketKind::ack;
    packet.charge = Charge::none;
    packet.queue = classes_[flow.traffic_class].ack_queue;
    packet.marked = packet.trimmed = false;
}

inline void Core::finish(std::uint32_t number, Flow& flow, Time now) {
    flow.flags |= Flow::finished;
    flow_finish_[number] = now.ps;
    if (++flows_done_ == static_cast<std::int64_t>(flows_.size())) status_ = "done";
}

// All payload of a flow has arrived.
inline void Core::delivered(std::uint32_t number, const Flow& flow, Time now) {
    const Time when = now + cold_[flow.destination].rx_latency;
    flow_delivered_[number] = when.ps;
    if (!waiting_.empty()) release_dependents(number, when);
}

}  // namespace fourlane::fabric
