// Whether a scenario's arrays fit each other, so that the simulator never reads outside them. Faults that only make
// results useless are for compiled_rules.py to name.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core.hpp"

namespace fourlane::fabric {

namespace {

constexpr std::int64_t kMostBytes = std::int64_t{1} << 44;
constexpr std::int64_t kMostShared = std::int64_t{1} << 39;  // times the largest alpha it stays below 2^63
constexpr double kLeastGain = 1.0 / (1 << 20);  // alpha is gone after some 20 million periods, not after years
constexpr std::int64_t kMostTime = std::int64_t{1} << 60;
constexpr std::int64_t kLongestPacket = 1 << 16;
constexpr std::int64_t kMostPackets = (std::int64_t{1} << 31) - 2;
constexpr std::int64_t kLimit = std::int64_t{1} << 62;

[[noreturn]] void refuse(const std::string& where, const std::string& wanted) {
    throw std::invalid_argument(where + ": expected " + wanted);
}

std::string at(const char* name, std::size_t index) { return std::string(name) + "[" + std::to_string(index) + "]"; }

std::string between(std::int64_t least, std::int64_t most) {
    return std::to_string(least) + " to " + std::to_string(most);
}

void expect_range(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
    if (value >= least && value <= most) return;
    refuse(name, between(least, most) + ", got " + std::to_string(value));
}

// Every value within bounds, and as many of them as there must be.
void expect(const char* name, const auto& values, std::size_t count, std::int64_t least, std::int64_t most) {
    if (values.size() != count) {
        refuse(name, std::to_string(count) + " entries, got " + std::to_string(values.size()));
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
        const auto value = static_cast<std::int64_t>(values[i]);
        if (value >= least && value <= most) continue;
        refuse(at(name, i), between(least, most) + ", got " + std::to_string(value));
    }
}

// One value for all flows, or one each.
void expect_each(const char* name, const auto& values, std::size_t flows, std::int64_t least, std::int64_t most) {
    expect(name, values, values.size() == 1 ? 1 : flows, least, most);
}

void expect_rising(const char* name, const auto& values, std::int64_t first, std::int64_t last) {
    if (values.empty() || values.front() != first || values.back() != last || !std::ranges::is_sorted(values)) {
        refuse(name, "to rise from " + std::to_string(first) + " to " + std::to_string(last));
    }
}

std::size_t numbers(const FabricScenario::View<std::int32_t>& index) {
    return static_cast<std::size_t>(std::max(-1, std::ranges::max(index)) + 1);
}

void check_scalars(const FabricScenario& in) {
    expect_range("mtu", in.mtu, 1, kLongestPacket);
    expect_range("header", in.header, 0, kLongestPacket - in.mtu);
    expect_range("ack_wire", in.ack_wire, 1, kLongestPacket);
    expect_range("trim_wire", in.trim_wire, 1, kLongestPacket);
    expect_range("flowlet_gap", in.flowlet_gap, 0, kMostTime);
    expect_range("flowlet_entries", in.flowlet_entries, 1, 1 << 24);
    expect_range("ar_quantum", in.ar_quantum, 1, kMostBytes);
    expect_range("ar_levels", in.ar_levels, 1, kLimit);
    expect_range("ar_staleness", in.ar_staleness, 0, kMostTime);
    expect_range("pfc_response", in.pfc_response, 0, kMostTime);
    expect_range("xon_offset", in.xon_offset, 0, kMostBytes);
    expect_range("watchdog_detection", in.watchdog_detection, 0, kMostTime);
    expect_range("watchdog_restoration", in.watchdog_restoration, 0, kMostTime);
    expect_range("sample_interval", in.sample_interval, 0, kMostTime);
    expect_range("max_events", in.max_events, 1, kLimit);
    expect_range("max_time", in.max_time, 1, kLimit);
}

void expect_number(const char* name, double value, double least, double most) {
    if (!(value >= least && value <= most)) {
        refuse(name, std::to_string(least) + " to " + std::to_string(most) + ", got " + std::to_string(value));
    }
}

void check_dcqcn(const FabricDcqcn& p) {
    expect_number("dcqcn_g", p.g, 0, 1);
    if (p.g > 0 && p.g < kLeastGain) refuse("dcqcn_g", "0, or 2^-20 to 1");
    expect_number("dcqcn_alpha0", p.alpha0, 0, 1);
    expect_number("dcqcn_max_decrease", p.max_decrease, 0, 1);
    expect_number("dcqcn_rate_ai", p.rate_ai, 0, 1e15);
    expect_number("dcqcn_rate_hai", p.rate_hai, 0, 1e15);
    expect_number("dcqcn_min_rate", p.min_rate, 1, 1e15);
    expect_range("dcqcn_alpha_period", p.alpha_period, 1, kMostTime);
    expect_range("dcqcn_cnp_interval", p.cnp_interval, 0, kMostTime);
    expect_range("dcqcn_decrease_gate", p.decrease_gate, 0, kMostTime);
    expect_range("dcqcn_timer", p.timer, 1, kMostTime);
    expect_range("dcqcn_byte_counter", p.byte_counter, 1, kMostBytes);
    expect_range("dcqcn_fast_rounds", p.fast_rounds, 0, 1 << 20);
}

void check_nodes(const FabricScenario& in) {
    const std::size_t nodes = in.node_kind.size();
    if (nodes == 0 || nodes >= kNone) refuse("node_kind", "at least one node");
    expect("node_kind", in.node_kind, nodes, 0, 1);
    expect("node_tier", in.node_tier, nodes, 0, 7);
    expect("node_latency", in.node_latency, nodes, 0, kMostTime);
    expect("node_cut_through", in.node_cut_through, nodes, 0, 1);
    expect("node_shared", in.node_shared, nodes, 0, kMostShared);
    expect("leaf_index", in.leaf_index, nodes, -1, static_cast<std::int64_t>(nodes) - 1);
    expect("switch_index", in.switch_index, nodes, -1, static_cast<std::int64_t>(nodes) - 1);
    expect("tier_seed", in.tier_seed, 8, 0, ~0U);
    for (std::size_t n = 0; n < nodes; ++n) {
        if ((in.node_kind[n] == 1) != (in.switch_index[n] >= 0)) refuse(at("switch_index", n), "-1 for hosts only");
    }
}

void check_ports(const FabricScenario& in) {
    const std::size_t nodes = in.node_kind.size();
    const std::size_t ports = in.port_node.size();
    if (ports == 0 || ports >= 1U << 26) refuse("port_node", "1 to 2^26 - 1 ports, got " + std::to_string(ports));
    expect("port_node", in.port_node, ports, 0, static_cast<std::int64_t>(nodes) - 1);
    expect("port_peer", in.port_peer, ports, 0, static_cast<std::int64_t>(ports) - 1);
    expect("port_ps_q16", in.port_ps_q16, ports, 1, std::int64_t{1} << 40);
    expect("port_prop", in.port_prop, ports, 0, kMostTime);
    expect("port_headroom", in.port_headroom, ports, 0, kMostBytes);
    expect("port_tx_latency", in.port_tx_latency, ports, 0, kMostTime);
    expect("port_rx_latency", in.port_rx_latency, ports, 0, kMostTime);
    expect("port_message_gap", in.port_message_gap, ports, 0, kMostTime);
    expect("node_first_port", in.node_first_port, nodes + 1, 0, static_cast<std::int64_t>(ports));
    expect_rising("node_first_port", in.node_first_port, 0, static_cast<std::int64_t>(ports));
    for (std::size_t p = 0; p < ports; ++p) {
        const auto peer = static_cast<std::size_t>(in.port_peer[p]);
        if (peer == p || static_cast<std::size_t>(in.port_peer[peer]) != p) {
            refuse(at("port_peer", p), "another port whose peer is this one");
        }
        const auto node = static_cast<std::size_t>(in.port_node[p]);
        if (static_cast<std::int64_t>(p) < in.node_first_port[node] || static_cast<std::int64_t>(p) >= in.node_first_port[node + 1]) {
            refuse(at("port_node", p), "the node that node_first_port gives the port to");
        }
    }
    expect("sample_ports", in.sample_ports, in.sample_ports.size(), 0, static_cast<std::int64_t>(ports) - 1);
}

void check_routes(const FabricScenario& in) {
    const std::size_t epochs = in.epoch_time.size();
    const std::size_t ports = in.port_node.size();
    if (epochs == 0 || epochs > 1U << 20) refuse("epoch_time", "1 to 2^20 epochs, got " + std::to_string(epochs));
    expect("epoch_time", in.epoch_time, epochs, 0, kMostTime);
    expect_rising("epoch_time", in.epoch_time, 0, in.epoch_time.back());
    expect("epoch_port_up", in.epoch_port_up, epochs * ports, 0, 1);
    const std::size_t cells = numbers(in.switch_index) * numbers(in.leaf_index);
    if (in.route_first.empty() || in.route_first.size() % (cells + 1) != 0) {
        refuse("route_first", "tables of " + std::to_string(cells + 1) + " entries (switches x leaves, and one)");
    }
    const std::size_t tables = in.route_first.size() / (cells + 1);
    expect("route_table", in.route_table, epochs, 0, static_cast<std::int64_t>(tables) - 1);
    expect("route_first", in.route_first, in.route_first.size(), 0, static_cast<std::int64_t>(in.route_ports.size()));
    expect("route_ports", in.route_ports, in.route_ports.size(), 0, static_cast<std::int64_t>(ports) - 1);
    const std::size_t leaves = numbers(in.leaf_index);
    for (std::size_t table = 0; table < tables; ++table) {
        const auto first = in.route_first.subspan(table * (cells + 1), cells + 1);
        if (!std::ranges::is_sorted(first)) refuse("route_first", "each table to rise");
        for (std::size_t cell = 0; cell < cells; ++cell) {
            for (std::int64_t i = first[cell]; i < first[cell + 1]; ++i) {
                const auto port = static_cast<std::size_t>(in.route_ports[static_cast<std::size_t>(i)]);
                const auto node = static_cast<std::size_t>(in.port_node[port]);
                if (in.switch_index[node] == static_cast<std::int32_t>(cell / leaves)) continue;
                refuse(at("route_ports", static_cast<std::size_t>(i)), "a port of the switch it is listed for");
            }
        }
    }
}

void check_lanes(const FabricScenario& in) {
    const std::size_t queues = in.queue_weight.size();
    const std::size_t classes = in.class_queue.size();
    if (queues < 1 || queues > kMostQueues) refuse("queue_weight", "1 to 8 queues, got " + std::to_string(queues));
    if (classes < 1 || classes > 16) refuse("class_queue", "1 to 16 classes, got " + std::to_string(classes));
    const std::int64_t largest = std::max({in.mtu + in.header, in.ack_wire, in.trim_wire});
    const auto last_queue = static_cast<std::int64_t>(queues) - 1;
    expect("queue_weight", in.queue_weight, queues, 0, std::int64_t{1} << 31);
    expect("queue_cap_q16", in.queue_cap_q16, queues, 0, 100 << 16);
    expect("queue_alpha_q16", in.queue_alpha_q16, queues, 0, 128 << 16);
    expect("queue_reserved", in.queue_reserved, queues, 0, kMostBytes);
    expect("queue_lossless", in.queue_lossless, queues, 0, 1);
    expect("queue_kmin", in.queue_kmin, queues, -1, kMostBytes);
    expect("queue_kmax", in.queue_kmax, queues, 0, kMostBytes);
    expect("queue_pmax_q32", in.queue_pmax_q32, queues, 0, std::int64_t{1} << 32);
    expect("queue_service", in.queue_service, queues, 0, 1);
    for (std::size_t q = 0; q < queues; ++q) {
        if (in.queue_weight[q] != 0 && in.queue_weight[q] < largest) {
            refuse(at("queue_weight", q), "0 (strict) or at least " + std::to_string(largest));
        }
        if (in.queue_cap_q16[q] != 0 && in.queue_cap_q16[q] < 65536) refuse(at("queue_cap_q16", q), "0 or at least 65536");
    }
    expect("class_queue", in.class_queue, classes, 0, last_queue);
    expect("class_ack_queue", in.class_ack_queue, classes, 0, last_queue);
    expect("class_cnp_queue", in.class_cnp_queue, classes, 0, last_queue);
    expect("class_routing", in.class_routing, classes, 0, 5);
    expect("class_transport", in.class_transport, classes, 0, 2);
    expect("class_cc", in.class_cc, classes, 0, 2);
    expect("class_window", in.class_window, classes, 0, kMostBytes);
    expect("class_rto", in.class_rto, classes, 0, kMostTime);
    expect("class_ack_every", in.class_ack_every, classes, 1, 1 << 20);
    expect("class_trim", in.class_trim, classes, 0, 1);
    expect("class_ecn", in.class_ecn, classes, 0, 1);
    expect("class_cts_slots", in.class_cts_slots, classes, 1, 1 << 20);
    for (std::size_t c = 0; c < classes; ++c) {
        const bool singly = in.class_ack_every[c] == 1 || in.class_transport[c] == 0;
        if (!singly && (in.class_rto[c] > 0 || in.class_trim[c] != 0)) {
            refuse(at("class_ack_every", c), "1 where a class repeats selectively");
        }
    }
    expect_range("trim_queue", in.trim_queue, 0, last_queue);
}

void check_flows(const FabricScenario& in) {
    const std::size_t flows = in.flow_src_port.size();
    const auto ports = static_cast<std::int64_t>(in.port_node.size());
    if (flows >= kEventIds) refuse("flow_src_port", "fewer than 2^30 flows");
    expect("flow_src_port", in.flow_src_port, flows, -1, ports - 1);
    expect("flow_dst_port", in.flow_dst_port, flows, -1, ports - 1);
    expect_each("flow_size", in.flow_size, flows, 0, kMostBytes);
    expect_each("flow_message", in.flow_message, flows, 0, kMostBytes);
    expect_each("flow_class", in.flow_class, flows, 0, static_cast<std::int64_t>(in.class_queue.size()) - 1);
    expect_each("flow_start", in.flow_start, flows, 0, kMostTime);
    expect_each("flow_delay", in.flow_delay, flows, 0, kMostTime);
    expect("flow_hash", in.flow_hash, flows, 0, ~0U);
    expect("flow_back_hash", in.flow_back_hash, flows, 0, ~0U);
    expect_each("flow_pin", in.flow_pin, flows, 0, ~0U);
    const Column<std::int64_t> size(in.flow_size), message(in.flow_message);
    const auto host_port = [&](std::int32_t port) {
        return port >= 0 && in.node_kind[static_cast<std::size_t>(in.port_node[static_cast<std::size_t>(port)])] == 0;
    };
    for (std::size_t f = 0; f < flows; ++f) {
        if (size[f] == 0) continue;
        if (!host_port(in.flow_src_port[f])) refuse(at("flow_src_port", f), "a port of a host");
        if (!host_port(in.flow_dst_port[f])) refuse(at("flow_dst_port", f), "a port of a host");
        const std::int64_t part = message[f] == 0 ? in.mtu : std::min(in.mtu, message[f]);
        if (size[f] / part + 1 > kMostPackets / 2) refuse(at("flow_size", f), "fewer than 2^30 packets");
    }
    const std::size_t firsts = in.flow_after_first.size();
    if (firsts == 1 && in.flow_after.empty()) return;
    if (firsts != flows + 1) refuse("flow_after_first", std::to_string(flows + 1) + " entries, got " + std::to_string(firsts));
    expect_rising("flow_after_first", in.flow_after_first, 0, static_cast<std::int64_t>(in.flow_after.size()));
    expect("flow_after", in.flow_after, in.flow_after.size(), 0, static_cast<std::int64_t>(flows) - 1);
}

}  // namespace

void check(const FabricScenario& in) {
    check_scalars(in);
    check_dcqcn(in.dcqcn);
    check_nodes(in);
    check_ports(in);
    check_routes(in);
    check_lanes(in);
    check_flows(in);
}

}  // namespace fourlane::fabric
