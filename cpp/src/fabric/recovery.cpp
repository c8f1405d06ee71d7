// Flows that need more than counting: losses found and repeated, sparse acknowledgements, rates and clearances.
#include <algorithm>

#include "core.hpp"
#include "receiving.hpp"
#include "sending.hpp"

namespace fourlane::fabric {

void Core::add_details(std::uint32_t number, const ClassRules&) {
    if (detail_of_.empty()) detail_of_.assign(flows_.size(), 0);
    detail_of_[number] = static_cast<std::uint32_t>(details_.size());
    details_.emplace_back();
}

// A flow's notes on single packets, from when they are first needed.
Selective& Core::selective(std::uint32_t number, const Flow& flow) {
    auto& notes = detail(number).selective;
    if (notes == nullptr) {
        notes = std::make_unique<Selective>();
        notes->accepted.resize(flow.total);
        notes->acked.resize(flow.total);
        notes->missing.resize(flow.total);
    }
    return *notes;
}

// Sending --------------------------------------------------------------------------------------------------------

std::uint32_t Core::take_lost(Flow& flow, std::uint32_t number) {
    Selective& notes = *detail(number).selective;
    const std::uint32_t seq = notes.lost[notes.first_lost++];
    notes.missing.remove(seq);
    if (notes.first_lost == notes.lost.size()) {
        notes.lost.clear();
        notes.first_lost = 0;
        flow.flags &= static_cast<std::uint8_t>(~Flow::repeating);
    }
    return seq;
}

// Arm a flow's timeout and count a packet towards its rate, before it counts as outstanding.
void Core::note_sent(Flow& flow, std::uint32_t number, Bytes wire, Time now) {
    const ClassRules& rules = classes_[flow.traffic_class];
    Detail& own = detail(number);
    if (flow.outstanding == Bytes{}) own.last_progress = now;
    if (rules.rto > Time{} && own.rto_at < Time{}) {
        own.rto_at = own.last_progress + rules.rto;
        events_.push(own.rto_at, EventKind::rto, number);
    }
    if (rules.congestion == Congestion::dcqcn) pace(own, wire, now);
}

// Whether a flow may send now; if only its rate forbids it, it will be woken.
bool Core::may_go_on(const Flow& flow, std::uint32_t number, Time now) {
    if (!may_send(flow, number)) return false;
    Detail& own = detail(number);
    if (own.pace_next <= now) return true;
    if (own.pace_at != own.pace_next) {
        own.pace_at = own.pace_next;
        events_.push(own.pace_at, EventKind::pace, number);
    }
    return false;
}

// Put a flow at the end of its port's ring if it may send now and is not there; take it out if it may not.
void Core::refresh(std::uint32_t number, Flow& flow, Time now) {
    const bool wanted = may_go_on(flow, number, now);
    const bool there = (flow.flags & Flow::in_ring) != 0;
    if (wanted && !there) join_ring(number, flow, now);
    if (!wanted && there) leave_ring(number, flow);
}

void Core::leave_ring(std::uint32_t number, Flow& flow) {
    const unsigned q = classes_[flow.traffic_class].queue;
    Queue& queue = queue_at(flow.source, q);
    std::uint32_t before = kNone;
    for (std::uint32_t at = queue.flow_head; at != number; at = flows_[at].next) before = at;
    (before == kNone ? queue.flow_head : flows_[before].next) = flow.next;
    if (queue.flow_tail == number) queue.flow_tail = before;
    flow.flags &= static_cast<std::uint8_t>(~Flow::in_ring);
    if (queue.flow_head == kNone && queue.head == kNone) ports_[flow.source].busy &= static_cast<std::uint8_t>(~(1U << q));
}

void Core::send_control(const Flow& flow, std::uint32_t number, PacketKind kind, std::uint32_t seq, Time now) {
    const std::uint32_t port = kind == PacketKind::rts ? flow.source : flow.destination;
    append(port, new_packet(flow, number, kind, seq, {in_.ack_wire}, now));
}

// Wire bytes of the packets `from` to `to` - 1.
Bytes Core::wire_between(const Flow& flow, std::uint32_t number, std::uint32_t from, std::uint32_t to) const {
    const auto payload_before = [&](std::uint32_t seq) {
        const std::int64_t message = message_[number] == 0 ? flow.size : message_[number];
        const Place place = place_of(message, seq);
        const std::int64_t start = std::min(place.message * message, flow.size);
        return std::min(start + place.part * in_.mtu, flow.size);
    };
    if (to <= from) return {};
    return {payload_before(to) - payload_before(from) + (std::int64_t{to} - from) * in_.header};
}

// What the sender hears ------------------------------------------------------------------------------------------

void Core::acknowledged(std::uint32_t number, Flow& flow, std::uint32_t seq, Time now) {
    const bool news = acknowledges_singly(classes_[flow.traffic_class]) ? note_single_ack(number, flow, seq)
                                                                        : note_sparse_ack(number, flow, seq);
    if (!news) return;
    detail(number).last_progress = now;
    if (flow.acknowledged < flow.total) return refresh_and_kick(number, flow, now);
    finish(number, flow, now);
    refresh(number, flow, now);
    Detail& own = detail(number);
    own.rto_at = own.pace_at = own.timer_at = {-1};
    own.selective.reset();
    own.limiter.reset();
}

bool Core::note_single_ack(std::uint32_t number, Flow& flow, std::uint32_t seq) {
    ++flow.acknowledged;
    if (!classes_[flow.traffic_class].repeats) {
        flow.outstanding -= wire_of(flow, number, seq);
        return true;
    }
    Selective& notes = selective(number, flow);
    if (notes.acked.has(seq)) {
        --flow.acknowledged;
        return false;
    }
    notes.acked.add(seq);
    if (!notes.missing.has(seq)) {
        flow.outstanding -= wire_of(flow, number, seq);
        return true;
    }
    notes.missing.remove(seq);
    notes.lost.erase(std::find(notes.lost.begin() + static_cast<std::ptrdiff_t>(notes.first_lost), notes.lost.end(), seq));
    if (notes.first_lost == notes.lost.size()) flow.flags &= static_cast<std::uint8_t>(~Flow::repeating);
    return true;
}

bool Core::note_sparse_ack(std::uint32_t number, Flow& flow, std::uint32_t seq) {
    if (seq <= flow.acknowledged) return false;
    flow.outstanding -= wire_between(flow, number, flow.acknowledged, std::min(seq, flow.next_seq));
    flow.acknowledged = seq;
    flow.next_seq = std::max(flow.next_seq, seq);
    return true;
}

// A NACK: begin again at a packet (go back N), or send one again.
void Core::refused(std::uint32_t number, Flow& flow, std::uint32_t seq, Time now) {
    if (classes_[flow.traffic_class].transport == Transport::go_back_n) {
        if (seq < flow.acknowledged) return;
        if (flow.next_seq > seq) flow_retransmitted_[number] += flow.next_seq - seq;
        flow.acknowledged = flow.next_seq = seq;
        flow.outstanding = {};
    } else {
        Selective& notes = selective(number, flow);
        if (notes.acked.has(seq) || notes.missing.has(seq)) return;
        ++flow_retransmitted_[number];
        lose_packet(flow, notes, seq);
        flow.outstanding -= wire_of(flow, number, seq);
    }
    refresh_and_kick(number, flow, now);
}

void Core::lose_packet(Flow& flow, Selective& notes, std::uint32_t seq) {
    notes.lost.push_back(seq);
    notes.missing.add(seq);
    flow.flags |= Flow::repeating;
}

// Believe everything outstanding to be lost if nothing was acknowledged for the class's RTO; else look later.
void Core::timeout(std::uint32_t number, Time now) {
    Flow& flow = flows_[number];
    Detail& own = detail(number);
    const ClassRules& rules = classes_[flow.traffic_class];
    own.rto_at = {-1};
    if (flow.outstanding == Bytes{}) return;  // the next packet sent arms it again
    const Time due = own.last_progress + rules.rto;
    if (due > now) {
        own.rto_at = due;
        events_.push(due, EventKind::rto, number);
        return;
    }
    if (rules.transport == Transport::go_back_n) {
        flow_retransmitted_[number] += flow.next_seq - flow.acknowledged;
        flow.next_seq = flow.acknowledged;
    } else {
        Selective& notes = selective(number, flow);
        for (std::uint32_t seq = 0; seq < flow.next_seq; ++seq) {
            if (notes.acked.has(seq) || notes.missing.has(seq)) continue;
            ++flow_retransmitted_[number];
            lose_packet(flow, notes, seq);
        }
    }
    flow.outstanding = {};
    refresh_and_kick(number, flow, now);
}

void Core::refresh_and_kick(std::uint32_t number, Flow& flow, Time now) {
    refresh(number, flow, now);
    kick(flow.source, now);
}

// What arrives at a host -----------------------------------------------------------------------------------------

void Core::deliver_with_care(std::uint32_t id, Flow& flow, Time now) {
    const Packet packet = packets_[id];
    packets_.give(id);
    if (packet.kind == PacketKind::data) return deliver_data(packet, flow, now);
    if (packet.kind == PacketKind::rts) return request(packet.flow, flow, now);
    if ((flow.flags & Flow::finished) != 0) return;
    if (packet.kind == PacketKind::ack) return acknowledged(packet.flow, flow, packet.seq, now);
    if (packet.kind == PacketKind::nack) return refused(packet.flow, flow, packet.seq, now);
    if (packet.kind == PacketKind::cnp) return notified(packet.flow, flow, now);
    flow.flags |= Flow::open;  // clear to send
    refresh_and_kick(packet.flow, flow, now);
}

void Core::deliver_data(const Packet& packet, Flow& flow, Time now) {
    const ClassRules& rules = classes_[flow.traffic_class];
    ++data_delivered_;
    if (!packet.trimmed) count_arrival(packet, flow, now);
    if (packet.marked && rules.congestion == Congestion::dcqcn) {
        Time& last = detail(packet.flow).last_cnp;
        if (last < Time{} || (now - last).ps >= in_.dcqcn.cnp_interval) {
            last = now;
            send_control(flow, packet.flow, PacketKind::cnp, 0, now);
        }
    }
    if (rules.transport == Transport::go_back_n) return receive_in_order(packet, flow, now);
    receive_anywhere(packet, flow, now);
}

// Accept only the expected packet; answer the first sign of a gap.
void Core::receive_in_order(const Packet& packet, Flow& flow, Time now) {
    Detail& own = detail(packet.flow);
    if (packet.seq == flow.received && !packet.trimmed) {
        ++flow.received;
        payload_delivered_ += payload(flow, packet.flow, packet.seq);
        accept(packet.flow, flow, flow.received, now);
    } else if (packet.seq < flow.received) {
        send_ack(packet.flow, flow, flow.received, now);
    } else if (own.nacked != flow.received) {
        own.nacked = flow.received;
        send_control(flow, packet.flow, PacketKind::nack, flow.received, now);
    }
}

// Accept any packet that is new; ask for one that came trimmed.
void Core::receive_anywhere(const Packet& packet, Flow& flow, Time now) {
    const ClassRules& rules = classes_[flow.traffic_class];
    const bool singly = acknowledges_singly(rules);
    const bool ordered = rules.transport == Transport::reorder_buffer;
    const bool told_apart = rules.repeats || ordered;
    const bool known = flow.received == flow.total ||
                       (told_apart && selective(packet.flow, flow).accepted.has(packet.seq));
    if (known) return send_ack(packet.flow, flow, singly ? packet.seq : flow.received, now);
    if (packet.trimmed) return send_control(flow, packet.flow, PacketKind::nack, packet.seq, now);
    ++flow.received;
    if (told_apart) selective(packet.flow, flow).accepted.add(packet.seq);
    if (ordered) {
        std::uint32_t& expected = detail(packet.flow).expected;
        for (const Bits& accepted = selective(packet.flow, flow).accepted; expected < flow.total && accepted.has(expected); ++expected) {
            payload_delivered_ += payload(flow, packet.flow, expected);
        }
    } else {
        payload_delivered_ += payload(flow, packet.flow, packet.seq);
    }
    accept(packet.flow, flow, singly ? packet.seq : flow.received, now);
}

// Acknowledge every `ack_every`-th packet and the last; with the last, the flow is delivered.
void Core::accept(std::uint32_t number, Flow& flow, std::uint32_t acknowledged, Time now) {
    const ClassRules& rules = classes_[flow.traffic_class];
    const bool complete = flow.received == flow.total;
    if (++detail(number).unacknowledged >= rules.ack_every || complete) send_ack(number, flow, acknowledged, now);
    if (!complete) return;
    delivered(number, flow, now);
    if (rules.congestion == Congestion::clear_to_send) clear_next(flow, now);
}

void Core::send_ack(std::uint32_t number, const Flow& flow, std::uint32_t seq, Time now) {
    detail(number).unacknowledged = 0;
    send_control(flow, number, PacketKind::ack, seq, now);
}

}  // namespace fourlane::fabric
