#include "network.hpp"

#include <algorithm>

#include "../fabric/hashing.hpp"

namespace fourlane::flow_level {

namespace {

using fabric::Routing;

constexpr double kPs = 1e-12;
constexpr double kPace = kPs / 65536;
constexpr double kBoundless = 1e300;
constexpr double kLeastRoom = 0.01;  // of a port: what is sent into a full one now and then

bool packet_by_packet(Routing routing) {
    return routing == Routing::adaptive || routing == Routing::spray_random || routing == Routing::spray_round_robin;
}

}  // namespace

Network::Network(const FabricScenario& scenario, std::size_t epoch)
    : in_(scenario), routes_(in_), traffic_class_(in_.flow_class), pin_(in_.flow_pin) {
    routes_.enter(epoch);
    measure_links();
    find_spreads();
    index_trunks();
    find_paths();
}

void Network::measure_links() {
    capacity.reserve(ports());
    for (std::size_t p = 0; p < ports(); ++p) {
        capacity.push_back(1.0 / (static_cast<double>(in_.port_ps_q16[p]) * kPace));
        shown_as.push_back(static_cast<std::uint32_t>(p));
    }
}

Routing Network::routing(std::uint32_t flow) const {
    return static_cast<Routing>(in_.class_routing[traffic_class_[flow]]);
}

std::uint32_t Network::node_behind(std::uint32_t port) const {
    return static_cast<std::uint32_t>(in_.port_node[peer(port)]);
}

std::span<const std::uint32_t> Network::towards(std::uint32_t node, std::uint32_t leaf) const {
    const auto row = static_cast<std::uint32_t>(in_.switch_index[node]) * routes_.leaves();
    return routes_.towards(row, static_cast<std::uint32_t>(in_.leaf_index[leaf]));
}

// Find what flows that are routed packet by packet take in common; afterwards all trunks are known.
void Network::find_spreads() {
    const std::size_t count = in_.flow_src_port.size();
    spread.assign(count, kNone);
    way_.assign(count, {});
    for (std::uint32_t f = 0; f < count; ++f) {
        if (in_.flow_src_port[f] < 0 || !packet_by_packet(routing(f))) continue;
        const std::uint32_t from = node_behind(static_cast<std::uint32_t>(in_.flow_src_port[f]));
        const std::uint32_t leaf = node_behind(static_cast<std::uint32_t>(in_.flow_dst_port[f]));
        if (from == leaf) continue;
        const Spread& found = spread_between(from, leaf, routing(f));
        spread[f] = found.number;
        way_[f] = found.way;
    }
}

const Network::Spread& Network::spread_between(std::uint32_t from, std::uint32_t leaf, Routing routing) {
    const Ends ends{from, leaf, routing == Routing::adaptive};
    const std::uint64_t key = (std::uint64_t{from} << 33) | (std::uint64_t{leaf} << 1) | (ends.adaptive ? 1 : 0);
    const auto found = known_.find(key);
    if (found != known_.end()) return found->second;
    const auto number = static_cast<std::uint32_t>(spreads.size());
    Room known;
    const auto weight = [&](std::uint32_t port) { return ends.adaptive ? room_by(port, leaf, {}, known) : 1.0; };
    spread_out(ends, weight, [this](std::span<const std::uint32_t> ports, double share) {
        spreads.values.push_back({ports.size() == 1 ? ports[0] : trunk_of(ports), static_cast<float>(share)});
    });
    spreads.end_row();
    ends_.push_back(ends);
    return known_.emplace(key, Spread{number, first_way(ends)}).first->second;
}

// Tell in what parts the flow between two leaves takes links, switch by switch and level by level, always in the same
// order: of each port, or of all ports among which a switch spreads adaptively.
template <typename Weight, typename Tell>
void Network::spread_out(const Ends& ends, const Weight& weight, const Tell& tell) const {
    std::vector<std::pair<std::uint32_t, double>> level{{ends.from, 1.0}}, next;
    while (!level.empty()) {
        next.clear();
        for (const auto& [node, share] : level) {
            const auto ports = towards(node, ends.leaf);
            if (ports.empty()) continue;  // cut off: scenarios with such flows are refused before
            if (ends.adaptive) tell(ports, share);
            double all = 0;
            for (const std::uint32_t port : ports) all += weight(port);
            for (const std::uint32_t port : ports) {
                const double part = share * (all > 0 ? weight(port) / all : 1.0 / static_cast<double>(ports.size()));
                if (!ends.adaptive) tell(std::span{&port, 1}, part);
                if (node_behind(port) != ends.leaf) next.emplace_back(node_behind(port), part);
            }
        }
        std::ranges::sort(next, {}, [](const auto& one) { return one.first; });
        std::size_t kept = 0;
        for (std::size_t i = 0; i < next.size(); ++i) {
            if (kept > 0 && next[kept - 1].first == next[i].first) {
                next[kept - 1].second += next[i].second;
            } else {
                next[kept++] = next[i];
            }
        }
        next.resize(kept);
        level.swap(next);
    }
}

Network::Way Network::first_way(const Ends& ends) const {
    Way way;
    for (std::uint32_t node = ends.from; node != ends.leaf;) {
        const auto ports = towards(node, ends.leaf);
        if (ports.empty()) break;
        step(way, ports.front(), false);
        node = node_behind(ports.front());
    }
    return way;
}

void Network::respread(std::uint32_t spread, std::span<const double> taken, std::vector<float>& shares) const {
    const Ends& ends = ends_[spread];
    shares.clear();
    Room known;
    const auto weight = [&](std::uint32_t port) { return ends.adaptive ? room_by(port, ends.leaf, taken, known) : 1.0; };
    spread_out(ends, weight, [&](std::span<const std::uint32_t>, double share) {
        shares.push_back(static_cast<float>(share));
    });
}

double Network::room(std::uint32_t node, std::uint32_t leaf, std::span<const double> taken, Room& known) const {
    if (node == leaf) return kBoundless;
    const auto found = known.find(node);
    if (found != known.end()) return found->second;
    double sum = 0;
    for (const std::uint32_t port : towards(node, leaf)) sum += room_by(port, leaf, taken, known);
    known.emplace(node, sum);
    return sum;
}

double Network::room_by(std::uint32_t port, std::uint32_t leaf, std::span<const double> taken, Room& known) const {
    const double used = taken.empty() ? 0.0 : taken[port];
    const double own_room = std::max(capacity[port] - used, kLeastRoom * capacity[port]);
    return std::min(own_room, room(node_behind(port), leaf, taken, known));
}

// The trunk of these ports of a switch, made when it is first asked for.
std::uint32_t Network::trunk_of(std::span<const std::uint32_t> ports) {
    const std::uint64_t key = (std::uint64_t{ports.front()} << 24) ^ (std::uint64_t{ports.back()} << 44) ^ ports.size();
    const auto found = trunks_.find(key);
    if (found != trunks_.end() && std::ranges::equal(ports, members_[found->second - this->ports()])) return found->second;
    const auto link = static_cast<std::uint32_t>(capacity.size());
    double rate = 0;
    for (const std::uint32_t port : ports) rate += capacity[port];
    capacity.push_back(rate);
    shown_as.push_back(ports.front());
    members_.emplace_back(ports.begin(), ports.end());
    trunks_.insert_or_assign(key, link);
    return link;
}

void Network::index_trunks() {
    std::vector<std::vector<std::uint32_t>> at(members_.empty() ? 0 : ports());
    for (std::size_t t = 0; t < members_.size(); ++t) {
        for (const std::uint32_t port : members_[t]) at[port].push_back(static_cast<std::uint32_t>(ports() + t));
    }
    for (std::size_t p = 0; p < ports(); ++p) {
        if (!at.empty()) trunks_at_.values.insert(trunks_at_.values.end(), at[p].begin(), at[p].end());
        trunks_at_.end_row();
    }
}

void Network::find_paths() {
    const std::size_t count = in_.flow_src_port.size();
    for (auto* column : {&wire, &source_use, &ack_use, &there, &back}) column->assign(count, 0.0);
    queue.resize(count);
    for (std::uint32_t f = 0; f < count; ++f) {
        queue[f] = in_.class_queue[traffic_class_[f]];
        if (in_.flow_src_port[f] >= 0) lay(f);
        own.end_row();
    }
}

// Write down the links of a flow, and what its path costs.
void Network::lay(std::uint32_t flow) {
    const auto source = static_cast<std::uint32_t>(in_.flow_src_port[flow]);
    const auto target = static_cast<std::uint32_t>(in_.flow_dst_port[flow]);
    const std::uint32_t leaf = node_behind(target);
    std::uint32_t node = node_behind(source);
    Way way = way_[flow];
    step(way, source, true);
    own.values.push_back(source);
    while (spread[flow] == kNone && node != leaf) {
        const auto ports = towards(node, leaf);
        if (ports.empty()) break;  // cut off: scenarios with such flows are refused before
        const std::uint32_t port = choose(ports, node, flow);
        own.values.push_back(port);
        const auto trunks = trunks_at_[port];
        own.values.insert(own.values.end(), trunks.begin(), trunks.end());
        step(way, port, false);
        node = node_behind(port);
    }
    own.values.push_back(peer(target));
    step(way, peer(target), false);
    own.values.insert(own.values.end(), {target, peer(source)});
    way_[flow] = way;
    measure_flow(flow);
}

// Count a link, and the switch at its far end, into what a path costs.
void Network::step(Way& way, std::uint32_t port, bool first) const {
    const double pace = static_cast<double>(in_.port_ps_q16[port]) * kPace;
    const auto from = static_cast<std::size_t>(in_.port_node[port]);
    way.fixed += static_cast<double>(in_.port_prop[port]) * kPs;
    if (first) {
        way.first_pace = pace;
        return;
    }
    way.fixed += static_cast<double>(in_.node_latency[from]) * kPs;
    if (in_.node_cut_through[from] == 0) way.pace += pace;
}

// Flows with a path of their own are counted at their port and at its trunks; what came on top is spread by the room
// that they leave.
std::vector<double> Network::on_ports(const std::vector<double>& load, double seconds) const {
    const std::size_t queues = in_.queue_weight.size();
    std::vector<double> found(load.begin(), load.begin() + static_cast<std::ptrdiff_t>(ports() * queues));
    for (std::size_t t = 0; t < members_.size(); ++t) {
        std::vector<double> room;
        std::vector<double> spread_load(load.begin() + static_cast<std::ptrdiff_t>((ports() + t) * queues),
                                        load.begin() + static_cast<std::ptrdiff_t>((ports() + t + 1) * queues));
        double all = 0;
        for (const std::uint32_t port : members_[t]) {
            double taken = 0;
            for (std::size_t q = 0; q < queues; ++q) {
                taken += load[port * queues + q];
                spread_load[q] -= load[port * queues + q];
            }
            room.push_back(std::max(capacity[port] * seconds - taken, kLeastRoom * capacity[port] * seconds));
            all += room.back();
        }
        for (std::size_t i = 0; i < room.size(); ++i) {
            for (std::size_t q = 0; q < queues; ++q) {
                found[members_[t][i] * queues + q] += std::max(0.0, spread_load[q]) * room[i] / all;
            }
        }
    }
    return found;
}

// As the packet simulator chooses for a flow with a path of its own.
std::uint32_t Network::choose(std::span<const std::uint32_t> ports, std::uint32_t node, std::uint32_t flow) const {
    if (ports.size() == 1) return ports[0];
    const std::uint8_t tier = in_.node_tier[node];
    if (routing(flow) == Routing::pinned) {
        return tier == 0 ? ports[0] : ports[(std::uint64_t{pin_[flow]} >> (8 * (tier - 1)) & 255) % ports.size()];
    }
    return ports[fabric::reduce(fabric::mix32(in_.flow_hash[flow] ^ in_.tier_seed[tier]), ports.size())];
}

// Bytes on the wire, headers included; what a NIC spends on each message, as if it were bytes; acknowledgements.
void Network::measure_flow(std::uint32_t flow) {
    const fabric::Column<std::int64_t> sizes(in_.flow_size), messages(in_.flow_message);
    const std::int64_t size = sizes[flow], message = messages[flow] == 0 ? size : std::min(size, messages[flow]);
    if (size == 0) return;
    const std::int64_t whole = size / message, rest = size % message;
    const auto packets_in = [&](std::int64_t bytes) { return (bytes + in_.mtu - 1) / in_.mtu; };
    const std::int64_t packets = whole * packets_in(message) + packets_in(rest);
    const auto source = static_cast<std::size_t>(in_.flow_src_port[flow]);
    const auto target = static_cast<std::size_t>(in_.flow_dst_port[flow]);
    const Way& way = way_[flow];
    const double gap = static_cast<double>(in_.port_message_gap[source]) * kPs * static_cast<double>(whole + (rest > 0));
    const double acks = static_cast<double>(packets) / in_.class_ack_every[traffic_class_[flow]];
    const double last = static_cast<double>(std::min(in_.mtu, rest > 0 ? rest : message) + in_.header);
    const auto ack = static_cast<double>(in_.ack_wire);
    wire[flow] = static_cast<double>(size + packets * in_.header);
    source_use[flow] = 1.0 + gap / way.first_pace / wire[flow];
    ack_use[flow] = acks * ack / wire[flow];
    there[flow] = way.fixed + last * way.pace + static_cast<double>(in_.port_rx_latency[target]) * kPs;
    back[flow] = way.fixed + ack * (way.first_pace + way.pace);
}

}  // namespace fourlane::flow_level
