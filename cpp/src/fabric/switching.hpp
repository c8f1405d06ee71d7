// A packet at a switch: where it goes on, whether the buffer takes it, who is paused for it. Part of core.cpp.
#pragma once

#include <algorithm>

#include "core.hpp"
#include "hashing.hpp"

namespace fourlane::fabric {

inline void Core::arrive(std::uint32_t via, Time now) {
    Port& link = ports_[via];
    const std::uint32_t id = link.flight_head;
    const Packet& packet = packets_[id];
    link.flight_head = packet.next;
    if (packet.next != kNone) events_.push(packet.next_time, EventKind::arrive, via);
    if (link.to_host) {
        deliver(id, link.peer, now);
    } else {
        forward(id, via, now);
    }
}

inline void Core::forward(std::uint32_t id, std::uint32_t via, Time now) {
    const Port& link = ports_[via];
    Packet& packet = packets_[id];
    Node& node = nodes_[link.to_node];
    packet.ingress = link.peer;
    const std::uint32_t egress = route(node, link.to_node, packet, now);
    if (egress == kNone) return drop(id, via);
    const Bytes wire{packet.wire};  // before it may be trimmed
    if (!admit(node, packet, egress, now)) return drop(id, egress);
    packet.time = now + node.latency;
    if (node.cut_through) {
        packet.time += cut_through_wait(link, wire, egress, packet, now);
        Time& clear_at = clear_at_[egress];
        clear_at = std::max(clear_at, packet.time) + serialisation(ports_[egress].pace_q16, {packet.wire});
    }
    append(egress, id);
}

// How long a packet must wait after its header for its last bit: not at all if it can be cut through, into a port that
// will have sent all it holds when the packet gets there.
inline Time Core::cut_through_wait(const Port& link, Bytes wire, std::uint32_t egress, const Packet& packet,
                                   Time now) {
    const Port& out = ports_[egress];
    const Time backlog_gone = std::max(now, out.free_at) + long_serialisation(out.pace_q16, {depth_[egress].now});
    if (clear_at_[egress] <= packet.time && backlog_gone <= packet.time &&
        queue_at(egress, packet.queue).credit <= packet.time && !halted(out, packet.queue) &&
        out.pace_q16 >= link.pace_q16) {
        return {};
    }
    return serialisation(link.pace_q16, wire) - serialisation(link.pace_q16, std::min(wire, kCutThroughHeader));
}

// The egress port, or kNone where no port towards the destination is up.
inline std::uint32_t Core::route(Node& node, std::uint32_t number, const Packet& packet, Time now) {
    const Endpoint& end = endpoints_[packet.destination];
    if (end.leaf == number) return ports_[end.last_port].up ? end.last_port : kNone;
    if (end.leaf_index == kNone) return kNone;
    const auto ports = routes_.towards(node.route_row, end.leaf_index);
    if (ports.size() < 2) return ports.empty() ? kNone : ports[0];
    switch (classes_[packet.traffic_class].routing) {
    case Routing::ecmp: return ports[reduce(mix32(packet.hash ^ node.tier_seed), ports.size())];
    case Routing::flowlet: return choose_flowlet(node, mix32(packet.hash ^ node.tier_seed), ports, now);
    case Routing::spray_random: return ports[reduce(draw(node), ports.size())];
    case Routing::spray_round_robin: return ports[turn(node, end.leaf_index, packet) % ports.size()];
    case Routing::adaptive: return choose_adaptive(node, ports, now);
    case Routing::pinned: break;
    }
    return node.tier == 0 ? ports[0] : ports[(std::uint64_t{packet.hash} >> (8 * (node.tier - 1)) & 255) % ports.size()];
}

// Whose turn it is among the ways towards a leaf: the next one, beginning anywhere; data and control apart.
inline std::uint32_t Core::turn(const Node& node, std::uint32_t leaf, const Packet& packet) {
    return turns_[2 * (node.route_row + leaf) + (packet.kind == PacketKind::data ? 0 : 1)]++;
}

// 32 random bits: a hash of seed, switch and counter.
inline std::uint32_t Core::draw(Node& node) {
    return static_cast<std::uint32_t>(mix64(in_.seed ^ node.spray_key ^ (node.counter++ * kStep)) >> 32);
}

// The port of the least signal; of several the first, beginning at a place drawn by lot.
inline std::uint32_t Core::choose_adaptive(Node& node, std::span<const std::uint32_t> ports, Time now) {
    const std::size_t count = ports.size();
    const std::size_t start = reduce(draw(node), count);
    if (in_.ar_staleness > 0) look_again(ports, now);
    std::uint32_t best = ports[start];
    std::int64_t least = signal_[best];
    for (std::size_t i = start + 1; i < count && least > 0; ++i) {
        if (signal_[ports[i]] < least) least = signal_[best = ports[i]];
    }
    for (std::size_t i = 0; i < start && least > 0; ++i) {
        if (signal_[ports[i]] < least) least = signal_[best = ports[i]];
    }
    return best;
}

inline bool Core::admit(Node& node, Packet& packet, std::uint32_t egress, Time now) {
    if (storm_drops(ports_[egress], packet.queue)) return false;
    const ClassRules& rules = classes_[packet.traffic_class];
    const Bytes held = rules.marks ? queue_at(egress, packet.queue).bytes : Bytes{};
    if (charge(node, packet, egress, now)) [[likely]] {
        if (rules.marks) mark(packet, egress, held);
        return true;
    }
    return rules.trims && trim(node, packet, egress, now);
}

inline bool Core::charge(Node& node, Packet& packet, std::uint32_t egress, Time now) {
    const QueueRules& rules = queue_rules_[packet.queue];
    if (rules.lossless) return charge_ingress(node, packet, rules, now);
    const Bytes held = queue_at(egress, packet.queue).bytes;
    if (!fits(node, rules, held, {packet.wire})) return false;
    node.shared_used += growth(rules, held, {packet.wire});
    packet.charge = Charge::egress;
    return true;
}

inline bool Core::charge_ingress(Node& node, Packet& packet, const QueueRules& rules, Time now) {
    const Bytes wire{packet.wire};
    Ingress& group = ingress_at(packet.ingress, packet.queue);
    if (!group.xoff && fits(node, rules, group.used, wire)) [[likely]] {
        node.shared_used += growth(rules, group.used, wire);
        group.used += wire;
        packet.charge = Charge::ingress;
        return true;
    }
    const bool roomy = group.headroom_used + wire <= group.headroom;
    if (roomy) {
        group.headroom_used += wire;
        packet.charge = Charge::ingress;
    }
    if (!group.xoff && (group.used > Bytes{} || group.headroom_used > Bytes{})) {
        group.xoff = true;
        ++counters_at(packet.ingress, packet.queue).pauses;
        send_frame(packet.ingress, packet.queue, true, now);
    }
    return roomy;
}

// Free what a packet held at a switch that has just left its queue.
inline void Core::release(Packet& packet, std::uint32_t egress, Time now) {
    const QueueRules& rules = queue_rules_[packet.queue];
    const Bytes wire{packet.wire};
    Node& node = nodes_[ports_[egress].node];
    if (packet.charge == Charge::egress) {
        node.shared_used -= growth(rules, queue_at(egress, packet.queue).bytes, wire);
        return;
    }
    Ingress& group = ingress_at(packet.ingress, packet.queue);
    const Bytes from_headroom = std::min(wire, group.headroom_used);
    group.headroom_used -= from_headroom;
    group.used -= wire - from_headroom;
    node.shared_used -= growth(rules, group.used, wire - from_headroom);
    if (group.xoff) resume_if_empty_enough(node, rules, group, packet.ingress, packet.queue, now);
}

}  // namespace fourlane::fabric
