// What is rare at a switch: trimming, marking, pausing, dropping, and routing that keeps notes.
#include <algorithm>

#include "core.hpp"
#include "hashing.hpp"
#include "switching.hpp"

namespace fourlane::fabric {

namespace {

__extension__ using Wide = unsigned __int128;

}  // namespace

// Keep to the flow's last port, unless it has paused so long that a new path cannot reorder it.
std::uint32_t Core::choose_flowlet(Node& node, std::uint32_t hash, std::span<const std::uint32_t> ports, Time now) {
    Flowlet& flowlet = flowlets_[node.flowlets + hash % static_cast<std::uint64_t>(in_.flowlet_entries)];
    const bool known = std::ranges::find(ports, flowlet.port) != ports.end();
    if (!known || (now - flowlet.last).ps > in_.flowlet_gap) flowlet.port = choose_adaptive(node, ports, now);
    flowlet.last = now;
    return flowlet.port;
}

// Look at queue depths anew where the last look is `ar_staleness` old.
void Core::look_again(std::span<const std::uint32_t> ports, Time now) {
    for (const std::uint32_t port : ports) {
        Time& looked = cold_[port].looked;
        if (looked >= Time{} && (now - looked).ps < in_.ar_staleness) continue;
        looked = now;
        signal_[port] = signal_of(depth_[port].now);
    }
}

// Cut a packet that did not fit down to its header, in the queue for such.
bool Core::trim(Node& node, Packet& packet, std::uint32_t egress, Time now) {
    const std::uint8_t q = packet.queue;
    const std::uint32_t whole = packet.wire;
    if (packet.kind != PacketKind::data || packet.trimmed) return false;
    if (queue_rules_[q].lossless || whole <= in_.trim_wire) return false;
    packet.wire = static_cast<std::uint32_t>(in_.trim_wire);
    packet.queue = static_cast<std::uint8_t>(in_.trim_queue);
    if (storm_drops(ports_[egress], packet.queue) || !charge(node, packet, egress, now)) {
        packet.wire = whole;
        packet.queue = q;
        return false;
    }
    packet.trimmed = true;
    ++counters_at(egress, q).trims;
    wire_dropped_ += {whole - packet.wire};
    return true;
}

// Mark congestion (ECN, by RED) on a packet that found `held` bytes in its queue.
void Core::mark(Packet& packet, std::uint32_t egress, Bytes held) {
    const QueueRules& rules = queue_rules_[packet.queue];
    if (packet.kind != PacketKind::data || packet.marked || packet.trimmed) return;
    if (rules.kmin < 0 || held.count < rules.kmin) return;
    if (held.count < rules.kmax) {
        const auto chance = static_cast<Wide>(rules.pmax_q32) *
                            static_cast<std::uint64_t>(held.count - rules.kmin) /
                            static_cast<std::uint64_t>(rules.kmax - rules.kmin);
        const std::uint64_t salt = ((egress + std::uint64_t{1}) * kGolden) ^ (cold_[egress].marks_drawn++ * kStep);
        if (mix64(in_.seed ^ 0xA5A5 ^ salt) >> 32 >= chance) return;
    }
    packet.marked = true;
    ++counters_at(egress, packet.queue).marks;
}

// Send XON once headroom is empty and the group is `xon_offset` below its threshold, or within its reservation.
void Core::resume_if_empty_enough(const Node& node, const QueueRules& rules, Ingress& group, std::uint32_t ingress,
                                  unsigned queue, Time now) {
    if (group.headroom_used > Bytes{}) return;
    const Bytes over = group.used - rules.reserved;
    if (over > Bytes{} && over + Bytes{in_.xon_offset} > threshold(node, rules)) return;
    group.xoff = false;
    send_frame(ingress, queue, false, now);
}

// Send a PFC frame back along the cable: after the packet being sent there and after earlier frames.
void Core::send_frame(std::uint32_t ingress, unsigned queue, bool xoff, Time now) {
    const Port& port = ports_[ingress];
    Time& frame_free = cold_[ingress].frame_free;
    frame_free = std::max({now, port.free_at, frame_free}) + serialisation(port.pace_q16, kPauseFrame);
    events_.push(frame_free + port.propagation + Time{in_.pfc_response}, EventKind::pause,
                 port.peer * 16 + queue * 2 + (xoff ? 1 : 0));
}

// Lose a packet, and count that at a port.
void Core::drop(std::uint32_t id, std::uint32_t port) {
    const Packet& packet = packets_[id];
    ++counters_at(port, packet.queue).drops;
    wire_dropped_ += {packet.wire};
    if (packet.kind == PacketKind::data) ++data_dropped_;
    packets_.give(id);
}

}  // namespace fourlane::fabric
